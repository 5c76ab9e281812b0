package identity_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

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
	const reads, writes = "/rotor.v1.KeyService/Decrypt", "/rotor.v1.KeyService/Rotate"
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
