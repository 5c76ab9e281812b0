package identity_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/identity"
)

func TestAddresses(t *testing.T) {
	if got, err := identity.Addresses("a:1, b:2,[::1]:3"); err != nil || strings.Join(got, " ") != "a:1 b:2 [::1]:3" {
		t.Errorf("%q, %v", got, err)
	}
	for _, bad := range []string{"", "a", "a:1,", "a:1,,b:2", "https://a:1", "a:1/x", "u@a:1", ":1", "a:", strings.Repeat("a:1,", 16) + "a:1"} {
		if _, err := identity.Addresses(bad); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// answers are servers, by address.
type answers map[string]func(body string) (status int, err error)

func (a answers) RoundTrip(r *http.Request) (*http.Response, error) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	status, err := a[r.URL.Host](string(b))
	var op *net.OpError
	if trace := httptrace.ContextClientTrace(r.Context()); trace != nil && !errors.As(err, &op) {
		trace.GotConn(httptrace.GotConnInfo{})
	}
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: status, Body: io.NopCloser(bytes.NewReader(nil))}, nil
}

// TestFailover: what was not sent goes to the next server, what was sent does only if it may be repeated, with its whole body; the next request
// begins where the last one ended.
func TestFailover(t *testing.T) {
	var log []string
	say := func(who string, status int, err error) func(string) (int, error) {
		return func(body string) (int, error) {
			log = append(log, who+body)
			return status, err
		}
	}
	refused, broken := &net.OpError{Op: "dial", Err: errors.New("refused")}, errors.New("connection reset")
	for name, c := range map[string]struct {
		path   string
		first  func(string) (int, error)
		want   string
		failed bool
	}{
		"refused, write":       {writes, say("a", 0, refused), "ax bx bx", false},
		"refused, read":        {reads, say("a", 0, refused), "ax bx bx", false},
		"reset, write":         {writes, say("a", 0, broken), "ax bx", true},
		"reset, read":          {reads, say("a", 0, broken), "ax bx bx", false},
		"unavailable, write":   {writes, say("a", 503, nil), "ax bx", true},
		"unavailable, read":    {reads, say("a", 503, nil), "ax bx bx", false},
		"refused by a handler": {reads, say("a", 403, nil), "ax ax", true},
	} {
		log = nil
		f := &identity.Failover{Base: answers{"a:1": c.first, "b:2": say("b", 200, nil)}, Addresses: []string{"a:1", "b:2"}, Repeat: identity.Repeatable}
		failed := false
		for i := range 2 {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://x:1"+c.path, strings.NewReader("x"))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := f.RoundTrip(r)
			if i == 0 {
				failed = err != nil || resp.StatusCode != http.StatusOK
			}
			if err == nil {
				_ = resp.Body.Close()
			}
		}
		if got := strings.Join(log, " "); got != c.want || failed != c.failed {
			t.Errorf("%s: %q, failed %t", name, got, failed)
		}
	}
	none := &identity.Failover{Base: answers{"a:1": say("a", 0, refused), "b:2": say("b", 0, refused)}, Addresses: []string{"a:1", "b:2"}, Repeat: identity.Repeatable}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://x:1"+reads, strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := none.RoundTrip(r); err == nil {
		_ = resp.Body.Close()
		t.Error("answered by nobody")
	}
}

// TestAnswerBreaksOff: an answer whose server dies in the middle of it is no answer, if another server may be asked; else the caller hears of it.
func TestAnswerBreaksOff(t *testing.T) {
	serve := func(h http.HandlerFunc) string {
		s := httptest.NewServer(h)
		t.Cleanup(s.Close)
		return strings.TrimPrefix(s.URL, "http://")
	}
	large := strings.Repeat("whole", 1<<19) // more than is read ahead
	dies := serve(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000")
		_, _ = io.WriteString(w, "half")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	lives := serve(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "T")
		_, _ = io.WriteString(w, large)
		w.Header().Set("T", "there")
	})
	for path, good := range map[string]bool{"/rotor.v1.KeyService/Decrypt": true, "/rotor.v1.KeyService/Rotate": false} {
		f := &identity.Failover{Base: &http.Transport{}, Addresses: []string{dies, lives}, Repeat: identity.Repeatable}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://x:1"+path, strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := f.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if whole := err == nil && string(b) == large && resp.Trailer.Get("T") == "there"; whole != good {
			t.Errorf("%s: %d bytes, %v, trailer %v", path, len(b), err, resp.Trailer)
		}
		f.CloseIdleConnections()
	}
}

// slow are servers that take their time, by address; who asked them and gave up is noted.
type slow struct {
	takes map[string]time.Duration

	mu       sync.Mutex // guards what follows
	asked    []string
	given    []string
	restless string // path that is answered at once
}

func (s *slow) RoundTrip(r *http.Request) (*http.Response, error) {
	host := r.URL.Host
	if r.URL.Path == s.restless {
		return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Who": {host}}, Body: http.NoBody}, nil
	}
	s.mu.Lock()
	s.asked = append(s.asked, host)
	s.mu.Unlock()
	if trace := httptrace.ContextClientTrace(r.Context()); trace != nil && trace.GotConn != nil {
		trace.GotConn(httptrace.GotConnInfo{})
	}
	select {
	case <-time.After(s.takes[host]):
		return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Who": {host}}, Body: http.NoBody}, nil
	case <-r.Context().Done():
		s.mu.Lock()
		defer s.mu.Unlock()
		s.given = append(s.given, host)
		return nil, r.Context().Err()
	}
}

const (
	reads  = "/rotor.v1.KeyService/Decrypt"
	writes = "/rotor.v1.KeyService/Rotate"
	long   = "/rotor.v1.DataService/Census"
)

// ask sends a request and says who answered, after how long.
func ask(t *testing.T, f *identity.Failover, ctx context.Context, path string) (who string, took time.Duration) {
	t.Helper()
	began := time.Now()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://x:1"+path, strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := f.RoundTrip(r)
	if err != nil {
		return err.Error(), time.Since(began)
	}
	_ = resp.Body.Close()
	return resp.Header.Get("Who"), time.Since(began)
}

// TestFrozen: a server that answers nothing costs a quick request a second, or its share of the time until the deadline if that is less; the next ones
// go elsewhere at once. What takes long by itself waits for its share alone, and what changes something is never sent twice.
func TestFrozen(t *testing.T) {
	const ever = time.Hour
	for name, c := range map[string]struct {
		path     string
		takes    map[string]time.Duration
		deadline time.Duration
		who      string
		took     time.Duration
		asked    string
	}{
		"one is frozen":                 {reads, map[string]time.Duration{"a:1": ever}, 0, "b:2", time.Second, "a:1 b:2"},
		"two are":                       {reads, map[string]time.Duration{"a:1": ever, "b:2": ever}, 0, "c:3", 2 * time.Second, "a:1 b:2 c:3"},
		"a short deadline":              {reads, map[string]time.Duration{"a:1": ever, "b:2": ever}, 900 * time.Millisecond, "c:3", 600 * time.Millisecond, "a:1 b:2 c:3"},
		"the first answers after all":   {reads, map[string]time.Duration{"a:1": 1500 * time.Millisecond, "b:2": ever}, 0, "a:1", 1500 * time.Millisecond, "a:1 b:2"},
		"all are":                       {reads, map[string]time.Duration{"a:1": ever, "b:2": ever, "c:3": ever}, 9 * time.Second, "context deadline exceeded", 9 * time.Second, "a:1 b:2 c:3"},
		"a census":                      {long, map[string]time.Duration{"a:1": 20 * time.Second}, 0, "a:1", 20 * time.Second, "a:1"},
		"a census with a deadline":      {long, map[string]time.Duration{"a:1": ever}, 30 * time.Second, "b:2", 10 * time.Second, "a:1 b:2"},
		"a change":                      {writes, map[string]time.Duration{"a:1": 20 * time.Second}, 0, "a:1", 20 * time.Second, "a:1"},
		"a change that nobody answered": {writes, map[string]time.Duration{"a:1": ever}, 3 * time.Second, "context deadline exceeded", 3 * time.Second, "a:1"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &slow{takes: c.takes}
				f := &identity.Failover{Base: s, Addresses: []string{"a:1", "b:2", "c:3"}, Repeat: identity.Repeatable, Quick: identity.Quick}
				ctx, cancel := context.WithTimeout(t.Context(), cmp.Or(c.deadline, 24*time.Hour))
				defer cancel()
				if c.deadline == 0 {
					ctx = t.Context()
				}
				who, took := ask(t, f, ctx, c.path)
				synctest.Wait()
				if asked := strings.Join(s.asked, " "); who != c.who || took != c.took || asked != c.asked {
					t.Errorf("%s answered after %s, asked were %s", who, took, asked)
				}
				left := slices.DeleteFunc(slices.Clone(s.asked), func(h string) bool { return h == who })
				slices.Sort(s.given)
				if !slices.Equal(s.given, left) {
					t.Errorf("still asked are %v without %v", left, s.given)
				}
				if c.took > time.Second && who != "a:1" || c.path == reads && who == "b:2" {
					if again, took := ask(t, f, t.Context(), reads); c.takes[who] == 0 && strings.Contains(who, ":") && (again != who || took != 0) {
						t.Errorf("the next request: %s after %s", again, took)
					}
				}
			})
		})
	}
}

// TestSlowIsNotFrozen: a server that answers others is waited for, and not asked twice.
func TestSlowIsNotFrozen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slow{takes: map[string]time.Duration{"a:1": 5 * time.Second}, restless: "/rotor.v1.KeyService/Get"}
		f := &identity.Failover{Base: s, Addresses: []string{"a:1", "b:2"}, Repeat: identity.Repeatable, Quick: identity.Quick}
		busy, stop := context.WithCancel(t.Context())
		var others sync.WaitGroup
		others.Go(func() {
			for busy.Err() == nil {
				if who, _ := ask(t, f, t.Context(), s.restless); who != "a:1" {
					t.Errorf("another request went to %s", who)
				}
				time.Sleep(400 * time.Millisecond)
			}
		})
		if who, took := ask(t, f, t.Context(), reads); who != "a:1" || took != 5*time.Second || len(s.asked) != 1 {
			t.Errorf("%s after %s, asked were %v", who, took, s.asked)
		}
		stop()
		others.Wait()
	})
}
