package server_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/seal/local"
	"github.com/rotorkms/rotor/internal/server"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/bolt"
	"github.com/rotorkms/rotor/internal/telemetry"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// get asks for a path and returns status, type and body.
func get(t *testing.T, c *http.Client, url string) (status int, kind, body string) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header.Get("Content-Type"), string(b)
}

const someMetrics = adminOnly + `  - name: prometheus
    callers: ["spiffe://rotor.local/instance/prometheus"]
    actions: [server.metrics]
`

// TestObservingNeedsRights: strangers get bare health and nothing else; each of metrics, profiles and reasons has its own right.
func TestObservingNeedsRights(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	url := "https://" + w.Address()
	nobody, admin, prometheus, other := as(t, ""), as(t, w.admin), as(t, w.join("prometheus")), as(t, w.join("other"))
	w.rules(someMetrics)
	for _, c := range []struct {
		who    string
		client *http.Client
		path   string
		status int
		body   string // a pattern that the body matches
	}{
		{"nobody", nobody, "/healthz", 200, `^ok\n$`},
		{"nobody", nobody, "/readyz", 200, `^ready\n$`},
		{"nobody", nobody, "/metrics", 401, `^{"code":"unauthenticated"`},
		{"nobody", nobody, "/debug/pprof/heap", 401, `^{"code":"unauthenticated"`},
		{"an instance without rights", other, "/readyz", 200, `^ready\n$`},
		{"an instance without rights", other, "/metrics", 403, `^denied \(server.metrics\)`},
		{"an instance without rights", other, "/debug/pprof/heap", 403, `^denied \(server.profile\)`},
		{"one with the right to metrics", prometheus, "/metrics", 200, `(?m)^rotor_ready 1$`},
		{"one with the right to metrics", prometheus, "/debug/pprof/heap", 403, `^denied \(server.profile\)`},
		{"one with the right to metrics", prometheus, "/readyz", 200, `^ready\n$`},
		{"the administrator", admin, "/readyz", 200, `^\{"ready":true,"checks":\[\{"name":"unsealed","ok":true\},\{"name":"store","ok":true\},\{"name":"log","ok":true\}`},
		{"the administrator", admin, "/metrics", 200, `(?m)^rotor_fleet_instances 0$`},
		{"the administrator", admin, "/debug/pprof/goroutine?debug=1", 200, `^goroutine profile`},
		{"the administrator", admin, "/debug/pprof/profile?seconds=26", 400, `at most 25`},
		{"the administrator", admin, "/debug/pprof/profile?seconds=x", 400, `at most 25`},
		{"the administrator", admin, "/debug/pprof/cmdline", 404, ``},
		{"the administrator", admin, "/debug/pprof/", 404, ``},
	} {
		status, _, body := get(t, c.client, url+c.path)
		if status != c.status || !regexp.MustCompile(c.body).MatchString(body) {
			t.Errorf("%s, %s: %d, %.300q; want %d, %s", c.who, c.path, status, body, c.status, c.body)
		}
	}
	var entries strings.Builder
	s, err := w.client().Admin().Audit.Tail(t.Context(), connect.NewRequest(&rotorv1.TailRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	for s.Receive() {
		entries.Write(s.Msg().GetEntry())
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"action":"server.profile","caller":"admin/admin"`, `"profile":"goroutine"`, `"action":"server.metrics","caller":"spiffe://rotor.local/instance/other"`} {
		if !strings.Contains(entries.String(), want) {
			t.Errorf("no entry has %s", want)
		}
	}
}

// sick is a store that can be made unreachable, or whose watch can stand still.
type sick struct {
	store.Store
	down, still atomic.Bool
}

var errDown = errors.New("no route to the store")

func (s *sick) List(ctx context.Context, prefix string) (store.Rev, iter.Seq2[store.Record, error]) {
	if s.down.Load() {
		return 0, func(yield func(store.Record, error) bool) { yield(store.Record{}, errDown) }
	}
	return s.Store.List(ctx, prefix)
}

func (s *sick) Watch(ctx context.Context, prefix string, after store.Rev) iter.Seq2[[]store.Event, error] {
	return func(yield func([]store.Event, error) bool) {
		for events, err := range s.Store.Watch(ctx, prefix, after) {
			if s.still.Load() {
				<-ctx.Done()
			}
			if !yield(events, err) {
				return
			}
		}
	}
}

// TestReadySaysWhy: a server whose store cannot be reached, or whose log is not followed, is alive and not ready.
func TestReadySaysWhy(t *testing.T) {
	t.Parallel()
	for check, fail := range map[string]func(*sick){"store": func(s *sick) { s.down.Store(true) }, "log": func(s *sick) { s.still.Store(true) }} {
		t.Run(check, func(t *testing.T) {
			w := newWorld(t)
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			db, err := bolt.Open(filepath.Join(w.config.Dir, "rotor.db"), bolt.Options{})
			if err != nil {
				t.Fatal(err)
			}
			sealer, err := local.Open(filepath.Join(w.config.Dir, "seal.key"))
			if err != nil {
				t.Fatal(err)
			}
			s := &sick{Store: db}
			w.Server, err = server.StartOn(t.Context(), w.config.Defaults(), s, []seal.Sealer{sealer})
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			w.Impatient()
			url := "https://" + w.Address()
			if status, _, body := get(t, as(t, ""), url+"/readyz"); status != 200 {
				t.Fatalf("a healthy one: %d, %s", status, body)
			}
			fail(s)
			if check == "log" { // something that is to be followed
				if _, err := db.Commit(t.Context(), nil, []store.Op{{Key: "other/x", Value: []byte("x")}}); err != nil {
					t.Fatal(err)
				}
			}
			for status := 200; status != 503; status, _, _ = get(t, as(t, ""), url+"/readyz") { // the last answer stands for a second
				if t.Context().Err() != nil {
					t.Fatal("it stays ready")
				}
			}
			if status, _, _ := get(t, as(t, ""), url+"/healthz"); status != 200 {
				t.Errorf("alive: %d", status)
			}
			var state server.Readiness
			status, kind, body := get(t, as(t, w.admin), url+"/readyz")
			if err := json.Unmarshal([]byte(body), &state); err != nil || status != 503 || kind != "application/json" || state.Ready {
				t.Fatalf("%d, %s, %v: %s", status, kind, err, body)
			}
			i := slices.IndexFunc(state.Checks, func(c server.Check) bool { return c.Name == check })
			if i < 0 || state.Checks[i].OK || state.Checks[i].Reason == "" {
				t.Errorf("%s", body)
			}
		})
	}
}

// busy makes something of everything that has metrics, and returns a scrape.
func busy(t *testing.T, w *world) string {
	t.Helper()
	w.made(&rotorv1.Key{Name: "records", Purpose: "encrypt", Custody: "fleet", OriginatorNs: int64(90 * 24 * time.Hour), RecipientNs: int64(180 * 24 * time.Hour)})
	c, err := rotor.Dial(t.Context(), rotor.Config{Identity: filepath.Join(t.TempDir(), "web-1"), JoinToken: w.invite("web-1"), Keys: []string{"records"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if _, err := w.client().Admin().Data.Census(t.Context(), connect.NewRequest(&rotorv1.CensusRequest{Key: &rotorv1.KeyRef{Name: "records"}})); err != nil {
		t.Fatal(err)
	}
	if err := w.Reload(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.client().Admin().Keys.Get(t.Context(), connect.NewRequest(&rotorv1.KeyRef{Name: "nobody-has-this"})); err == nil {
		t.Fatal("found")
	}
	for _, path := range []string{"/rotor.v1.KeyService/Made-up", "/x/1", "/x/2"} {
		get(t, as(t, w.admin), "https://"+w.Address()+path)
	}
	status, _, body := get(t, as(t, w.admin), "https://"+w.Address()+"/metrics")
	if status != 200 {
		t.Fatalf("%d: %s", status, body)
	}
	return body
}

// unwell are the metrics that a server shows only when something is wrong with its roots of trust (TestRootAway looks for them), or when it has a token.
func unwell() []string {
	return []string{"rotor_sealed_reason", "rotor_seal_hold_remaining_seconds", "rotor_token_up"}
}

// TestMetrics: a running server shows every metric of the catalogue, and what it shows of a key is so.
func TestMetrics(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	body := busy(t, w)
	for _, m := range telemetry.Catalogue() {
		if there := regexp.MustCompile(`(?m)^` + m.Name + `(_bucket|_count)?[{ ]`).MatchString(body); there == slices.Contains(unwell(), m.Name) {
			t.Errorf("%s: %t", m.Name, there)
		}
	}
	for _, want := range []string{
		`rotor_key_primary_version{key="records",namespace="default"} 1`, `rotor_key_holders{key="records",namespace="default"} 1`,
		`rotor_key_live_versions{key="records",namespace="default"} 1`, `rotor_fleet_instances 1`, `rotor_fleet_connected 1`, `rotor_keys 1`, `rotor_sealed 0`,
		`rotor_key_census_ciphertexts{key="records",namespace="default",under="older"} 0`, `rotor_config_reloads_total{outcome="ok"} 1`,
		`rotor_requests_total{code="not_found",method="KeyService/Get"} 1`, `rotor_requests_total{code="ok",method="KeyService/Create"} 1`,
		`rotor_requests_total{code="ok",method="other"} 3`,
	} {
		if !strings.Contains(body, "\n"+want+"\n") {
			t.Errorf("no %s", want)
		}
	}
	if m := regexp.MustCompile(`(?m)^rotor_key_cryptoperiod_remaining_days\{.*\} 89\.9`).FindString(body); m == "" {
		t.Error("no days to the end of the cryptoperiod")
	}
	for _, secret := range []string{"web-1", "Made-up", "/x/"} { // no instance and no path becomes a label
		if strings.Contains(body, secret) {
			t.Errorf("%s is in the metrics", secret)
		}
	}
}
