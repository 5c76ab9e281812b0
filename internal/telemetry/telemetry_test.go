package telemetry_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/mem"
	"github.com/rotorkms/rotor/internal/telemetry"
)

// scrape returns the lines of a scrape, and the types of its metrics.
func scrape(t *testing.T, m *telemetry.Metrics) (lines []string, types map[string]string) {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	b, err := io.ReadAll(w.Result().Body)
	if err != nil || w.Code != 200 {
		t.Fatalf("%d, %v: %s", w.Code, err, b)
	}
	types = map[string]string{}
	for _, l := range strings.Split(string(b), "\n") {
		if rest, ok := strings.CutPrefix(l, "# TYPE "); ok {
			name, kind, _ := strings.Cut(rest, " ")
			types[name] = kind
		}
		lines = append(lines, l)
	}
	return lines, types
}

func full() telemetry.View {
	return telemetry.View{
		Ready: true, Token: true, Sealed: true, SealedFor: "hold", Holds: true, HoldSeconds: 30, Sealers: []telemetry.Sealer{{ID: "local:x", Kind: "local", Opened: true, OpenedSeconds: 90}},
		Checks: map[string]bool{"store": true, "log": false}, Instances: 3, Connected: 2, CertificateDays: map[string]float64{"server": 12.5},
		Keys: []telemetry.Key{
			{Namespace: "default", Name: "b", Primary: 1},
			{
				Namespace: "default", Name: "a", Primary: 4, Live: 2, Holders: 4, Laggards: 1, AgeSeconds: 60, HasPeriod: true, PeriodDays: -1.5, InFlight: true, Paused: true,
				Census: &telemetry.Census{AgeSeconds: 5, Primary: 7, Older: 2, Unknown: 1, Unreachable: 1},
			},
		},
	}
}

// TestSealed: a sealed server shows that it is, why, and nothing else.
func TestSealed(t *testing.T) {
	w := httptest.NewRecorder()
	telemetry.Sealed("hold").ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	var samples []string
	for l := range strings.Lines(w.Body.String()) {
		if !strings.HasPrefix(l, "#") {
			samples = append(samples, strings.TrimSpace(l))
		}
	}
	if want := []string{`rotor_check{check="unsealed"} 0`, "rotor_ready 0", "rotor_sealed 1", `rotor_sealed_reason{reason="hold"} 1`}; !slices.Equal(samples, want) {
		t.Errorf("%q", samples)
	}
}

// TestEveryMetricIsThere: what the catalogue names is in a scrape, with the type and the labels that it says, and nothing else of rotor's.
func TestEveryMetricIsThere(t *testing.T) {
	m := telemetry.New(telemetry.Build{Version: "1", Engine: "mem"})
	m.Show(full)
	m.Request("KeyService/Encrypt", "ok", time.Millisecond, false)
	m.Reload(nil)
	s := m.Store(mem.New())
	use(t, s)
	lines, types := scrape(t, m)
	var known []string
	for _, c := range telemetry.Catalogue() {
		known = append(known, c.Name)
		if types[c.Name] != c.Type {
			t.Errorf("%s is a %q, the catalogue says %s", c.Name, types[c.Name], c.Type)
		}
		i := slices.IndexFunc(lines, func(l string) bool {
			return regexp.MustCompile("^" + c.Name + `(_bucket|_count)?[{ ]`).MatchString(l)
		})
		if i < 0 {
			t.Errorf("%s has no sample", c.Name)
			continue
		}
		for _, label := range c.Labels {
			if !strings.Contains(lines[i], label+`="`) {
				t.Errorf("%s has no label %s", lines[i], label)
			}
		}
	}
	for name := range types {
		if strings.HasPrefix(name, "rotor_") && !slices.Contains(known, name) {
			t.Errorf("%s is not in the catalogue", name)
		}
	}
	for _, want := range []string{
		`rotor_key_acknowledged_ratio{key="a",namespace="default"} 0.75`, `rotor_key_acknowledged_ratio{key="b",namespace="default"} 1`,
		`rotor_key_cryptoperiod_remaining_days{key="a",namespace="default"} -1.5`, `rotor_key_census_ciphertexts{key="a",namespace="default",under="older"} 2`,
		`rotor_keys_period_over 1`, `rotor_rotations_paused 1`, `rotor_check{check="log"} 0`, `rotor_check{check="store"} 1`,
		`rotor_requests_total{code="ok",method="KeyService/Encrypt"} 1`, `rotor_certificate_expiry_days{certificate="server"} 12.5`,
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("no %s", want)
		}
	}
	for _, l := range lines {
		if strings.HasPrefix(l, `rotor_key_cryptoperiod_remaining_days{key="b"`) {
			t.Errorf("a key without a period has %s", l)
		}
	}
}

// use makes calls of a store of every kind.
func use(t *testing.T, s store.Store) {
	t.Helper()
	rev, err := s.Commit(t.Context(), nil, []store.Op{{Key: "a", Value: []byte("1")}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(t.Context(), []store.Cond{{Key: "a"}}, []store.Op{{Key: "a"}}); !errors.Is(err, store.ErrConflict) {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), "b"); !errors.Is(err, store.ErrNotFound) {
		t.Fatal(err)
	}
	at, records := s.List(t.Context(), "")
	for r, err := range records {
		if err != nil || r.Key != "a" || at != rev {
			t.Fatalf("%v, %v, %d", r, err, at)
		}
	}
	for events, err := range s.Watch(t.Context(), "", 0) {
		if err != nil || events[0].Key != "a" {
			t.Fatalf("%v, %v", events, err)
		}
		break
	}
}

func TestStoreIsTimed(t *testing.T) {
	m := telemetry.New(telemetry.Build{})
	use(t, m.Store(mem.New()))
	lines, _ := scrape(t, m)
	for _, want := range []string{
		`rotor_store_commit_duration_seconds_count{outcome="ok"} 1`, `rotor_store_commit_duration_seconds_count{outcome="conflict"} 1`,
		`rotor_store_read_duration_seconds_count{operation="get",outcome="ok"} 1`, `rotor_store_read_duration_seconds_count{operation="list",outcome="ok"} 1`,
		`rotor_store_watch_lag_seconds_count 1`,
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("no %s", want)
		}
	}
}

// broken is a store whose commits fail in a way of choice.
type broken struct {
	store.Store
	err error
}

func (b broken) Commit(context.Context, []store.Cond, []store.Op) (store.Rev, error) { return 0, b.err }
func (b broken) Get(context.Context, string) (store.Record, error) {
	return store.Record{}, b.err
}

func (b broken) Watch(context.Context, string, store.Rev) iter.Seq2[[]store.Event, error] {
	return func(yield func([]store.Event, error) bool) { yield(nil, b.err) }
}

// TestFailuresPassThrough: the caller gets the store's own error, and the outcome says which kind it is.
func TestFailuresPassThrough(t *testing.T) {
	for err, want := range map[error]string{store.ErrUnknown: "unknown", store.ErrFull: "full", store.ErrClosed: "failed"} {
		m := telemetry.New(telemetry.Build{})
		s := m.Store(broken{err: fmt.Errorf("wrapped: %w", err)})
		_, got := s.Commit(t.Context(), nil, nil)
		_, read := s.Get(t.Context(), "a")
		for _, watched := range s.Watch(t.Context(), "", 0) {
			if !errors.Is(watched, err) {
				t.Errorf("watch: %v", watched)
			}
		}
		if !errors.Is(got, err) || !errors.Is(read, err) {
			t.Errorf("%v, %v; want %v", got, read, err)
		}
		lines, _ := scrape(t, m)
		for _, l := range []string{`rotor_store_commit_duration_seconds_count{outcome="` + want + `"} 1`, `rotor_store_read_duration_seconds_count{operation="get",outcome="failed"} 1`} {
			if !slices.Contains(lines, l) {
				t.Errorf("%v: no %s", err, l)
			}
		}
	}
}

// TestKeysAreBounded: however many keys there are, so many have metrics of their own, always the same ones, and the rest is counted.
func TestKeysAreBounded(t *testing.T) {
	m := telemetry.New(telemetry.Build{})
	m.Show(func() telemetry.View {
		v := telemetry.View{MaxKeys: 10}
		for i := range 25 {
			v.Keys = append(v.Keys, telemetry.Key{Namespace: "default", Name: fmt.Sprintf("k%02d", 24-i), Primary: 1, InFlight: true})
		}
		return v
	})
	lines, _ := scrape(t, m)
	n := 0
	for _, l := range lines {
		if strings.HasPrefix(l, "rotor_key_primary_version{") {
			if want := fmt.Sprintf(`rotor_key_primary_version{key="k%02d",namespace="default"} 1`, n); l != want {
				t.Errorf("%s, want %s", l, want)
			}
			n++
		}
	}
	if n != 10 || !slices.Contains(lines, "rotor_keys_not_shown 15") || !slices.Contains(lines, "rotor_rotations_in_flight 25") {
		t.Errorf("%d keys are shown; %v", n, lines)
	}
}

var update = flag.Bool("update", false, "write the table of the reference anew")

const reference = "../../docs/reference/metrics.md"

// TestReference keeps the table of docs/reference/metrics.md what the catalogue says; -update writes it.
func TestReference(t *testing.T) {
	var b strings.Builder
	b.WriteString("| metric | type | labels | meaning |\n|---|---|---|---|\n")
	for _, m := range telemetry.Catalogue() {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", m.Name, m.Type, strings.Join(m.Labels, ", "), m.Help)
	}
	page, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(page), "| metric |")
	_, after, end := strings.Cut(rest, "\n\n")
	if !found || !end {
		t.Fatal("the page has no table that an empty line ends")
	}
	want := before + b.String() + "\n" + after
	if string(page) == want {
		return
	}
	if !*update {
		t.Fatal("it is not what the catalogue says: go test ./internal/telemetry -run TestReference -update")
	}
	if err := os.WriteFile(reference, []byte(want), 0o600); err != nil {
		t.Fatal(err)
	}
}
