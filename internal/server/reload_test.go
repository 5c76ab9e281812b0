package server_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/server"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// entries is the audit log as text.
func (w *world) entries() string {
	w.t.Helper()
	var all strings.Builder
	x, err := w.client().Admin().Audit.Export(w.t.Context(), connect.NewRequest(&rotorv1.ExportRequest{})) // waits until what was committed is in order
	if err != nil {
		w.t.Fatal(err)
	}
	for x.Receive() {
		continue
	}
	if err := x.Err(); err != nil {
		w.t.Fatal(err)
	}
	s, err := w.client().Admin().Audit.Tail(w.t.Context(), connect.NewRequest(&rotorv1.TailRequest{}))
	if err != nil {
		w.t.Fatal(err)
	}
	for s.Receive() {
		all.Write(append(s.Msg().GetEntry(), '\n'))
	}
	if err := s.Err(); err != nil {
		w.t.Fatal(err)
	}
	return all.String()
}

// sourced is a world whose configuration is read again at each reload.
func sourced(t *testing.T) (w *world, next *server.Config) {
	t.Helper()
	w = newWorld(t)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	next = new(server.Config)
	*next = w.config
	w.config.LogLevel = new(slog.LevelVar)
	w.config.Source = func() (server.Config, error) {
		if next.Dir == "" {
			return server.Config{}, fault.New(fault.Invalid, "rotor.yaml")
		}
		return *next, nil
	}
	w.start()
	return w, next
}

// names are what the server's certificate is for.
func names(t *testing.T, w *world) []string {
	t.Helper()
	resp, err := as(t, "").Get("https://" + w.Address() + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.TLS.PeerCertificates[0].DNSNames
}

// TestReloadIsOneSwap: what can change does so together, and stands in the audit log.
func TestReloadIsOneSwap(t *testing.T) {
	t.Parallel()
	w, next := sourced(t)
	next.Hosts, next.Logging.Level = []string{"kms.example"}, "warn"
	if err := w.Reload(); err != nil {
		t.Fatal(err)
	}
	if got := names(t, w); len(got) != 1 || got[0] != "kms.example" {
		t.Errorf("the certificate is for %v", got)
	}
	if got := w.config.LogLevel.Level(); got != slog.LevelWarn {
		t.Errorf("level %v", got)
	}
	if log := w.entries(); !strings.Contains(log, `"action":"config.reload","caller":"system/server"`) || !strings.Contains(log, `"changed":"hosts log"`) {
		t.Errorf("no entry tells of the reload:\n%s", log)
	}
}

// TestReloadOrNothing: whatever is wrong is named, and nothing of the rest is taken.
func TestReloadOrNothing(t *testing.T) {
	t.Parallel()
	w, next := sourced(t)
	good := *next
	rulesFile := filepath.Join(t.TempDir(), "rules.yaml")
	if err := os.WriteFile(rulesFile, []byte("version: 1\nrulez: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for field, wrong := range map[string]func(c *server.Config){
		"listen":       func(c *server.Config) { c.Listen = "127.0.0.1:1" },
		"lease_ttl":    func(c *server.Config) { c.LeaseTTL = time.Minute },
		"trust_domain": func(c *server.Config) { c.TrustDomain = "other.example" },
		"log.level":    func(c *server.Config) { c.Logging.Level = "loud" },
		"drain.time":   func(c *server.Config) { c.Drain.Time = -1 },
		rulesFile:      func(c *server.Config) { c.Rules = rulesFile },
		"rotor.yaml":   func(c *server.Config) { c.Dir = "" },
	} {
		*next = good
		next.Hosts = []string{"half.example"} // what could change alone
		wrong(next)
		err := w.Reload()
		var f *fault.Error
		if !errors.As(err, &f) || f.Code != fault.Invalid || f.Resource != field {
			t.Errorf("%s: %v", field, err)
		}
		if got := names(t, w); len(got) > 0 {
			t.Errorf("%s: half of it was taken: %v", field, got)
		}
	}
	if strings.Contains(w.entries(), "config.reload") {
		t.Error("an entry tells of a reload")
	}
	*next = good
	if err := w.Reload(); err != nil {
		t.Errorf("after all that: %v", err)
	}
}

// TestDrain: a server that was told to stop says so, answers on for its time, and ends its streams then.
func TestDrain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w.config.Drain.Delay = 10 * time.Minute // longer than the test: only the end of a loop cuts it short
	w.start()
	tail, err := w.client().Admin().Audit.Tail(t.Context(), connect.NewRequest(&rotorv1.TailRequest{Follow: true}))
	if err != nil || !tail.Receive() {
		t.Fatal(err)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- w.Close() }()
	url := "https://" + w.Address()
	for status := http.StatusOK; status != http.StatusServiceUnavailable; status, _, _ = get(t, as(t, ""), url+"/readyz") {
	}
	if _, _, body := get(t, as(t, w.admin), url+"/readyz"); !strings.Contains(body, `{"name":"draining","ok":false`) {
		t.Errorf("no reason: %s", body)
	}
	if status, _, _ := get(t, as(t, ""), url+"/healthz"); status != http.StatusOK {
		t.Errorf("healthz: %d", status)
	}
	if _, err := w.client().Admin().Keys.List(t.Context(), connect.NewRequest(&rotorv1.ListRequest{})); err != nil {
		t.Errorf("a request while it drains: %v", err)
	}
	select {
	case err := <-stopped:
		t.Fatalf("it has stopped: %v", err)
	default:
	}
	if err := errors.Join(w.CloseNow(), <-stopped); err != nil {
		t.Fatal(err)
	}
	for tail.Receive() {
	}
	if err := tail.Err(); err == nil {
		t.Error("the stream ended as if all had been said")
	}
}

func TestProfiles(t *testing.T) {
	t.Parallel()
	ha := server.Config{Dir: "d", Profile: "ha", Store: "bolt:", Advertise: "h:1"}
	for field, c := range map[string]server.Config{
		"profile": {Dir: "d", Profile: "x"}, "sandbox": {Dir: "d", Sandbox: "x"}, "drain.delay": {Dir: "d", Drain: server.Drain{Delay: time.Hour}},
		"log.format": {Dir: "d", Logging: server.Logging{Format: "xml"}}, "store": ha,
	} {
		_, err := server.Start(t.Context(), c)
		var f *fault.Error
		if !errors.As(err, &f) || f.Code != fault.Invalid || f.Resource != field || f.Hint == "" {
			t.Errorf("%s: %v", field, err)
		}
	}
	for profile, sandbox := range map[string]string{"": "on", "dev": "off", "single": "on", "ha": "require"} {
		if c := (server.Config{Profile: profile}).Defaults(); c.Sandbox != sandbox {
			t.Errorf("%q: sandbox %s", profile, c.Sandbox)
		}
	}
}

// TestLogger: the configuration chooses format and level.
func TestLogger(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	log, level, err := server.Config{Logging: server.Logging{Format: "json", Level: "warn"}}.Logger(&b)
	if err != nil {
		t.Fatal(err)
	}
	log.Info("not shown")
	log.Warn("shown", "key", "value")
	level.Set(slog.LevelInfo)
	log.Info("shown now")
	var messages []string
	for line := range strings.Lines(b.String()) {
		var e struct{ Msg string }
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		messages = append(messages, e.Msg)
	}
	if strings.Join(messages, ";") != "shown;shown now" {
		t.Errorf("%q", messages)
	}
	if _, _, err := (server.Config{Logging: server.Logging{Format: "xml"}}).Logger(&b); fault.CodeOf(err) != fault.Invalid {
		t.Error(err)
	}
}
