package wire_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/rpc"
	"github.com/rotorkms/rotor/internal/wire"
)

// named takes every certificate for the instance that its serial number counts.
type named struct{}

func (named) Identify(s tls.ConnectionState, _ bool) (policy.Caller, error) {
	if len(s.PeerCertificates) == 0 {
		return policy.Caller{}, fault.New(fault.Unauthenticated, "caller")
	}
	n := s.PeerCertificates[0].SerialNumber.String()
	return policy.Caller{Kind: policy.KindInstance, Name: "spiffe://t/instance/" + n, Instance: n}, nil
}

// Session takes "s-NAME" for the session of a caller.
func (named) Session(_ context.Context, token, _ string) (policy.Caller, time.Time, error) {
	name, ok := strings.CutPrefix(token, "s-")
	if !ok {
		return policy.Caller{}, time.Time{}, fault.New(fault.Unauthenticated, "session")
	}
	return policy.Caller{Kind: policy.KindToken, Name: "token/t/" + name, Session: name}, time.Now().Add(time.Hour), nil
}

func certificate(t *testing.T, serial int64) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tpl := &x509.Certificate{SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tpl, tpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// front is a protocol with one path of each kind.
func front() wire.Front {
	return wire.Front{Route: wire.Paths(map[string]wire.Route{
		"/healthz": {Stranger: true}, "/.well-known/jwks.json": {Stranger: true}, "/rotor.v1.JoinService/Join": {Stranger: true},
		"/rotor.v1.AuthService/Login": {Stranger: true, Login: true},
		"/rotor.v1.FleetService/Hold": {Stream: true, Unbounded: true}, "/rotor.v1.AuditService/Tail": {Stream: true},
	})}
}

// serve runs a handler behind the listener.
func serve(t *testing.T, h http.HandlerFunc) (s *wire.Server, url string) {
	t.Helper()
	return serveAs(t, wire.NewServer, h)
}

func serveAs(t *testing.T, build func(wire.Config) *wire.Server, h http.HandlerFunc) (s *wire.Server, url string) {
	t.Helper()
	c := &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{certificate(t, 1)}, ClientAuth: tls.RequestClientCert, NextProtos: []string{"h2", "http/1.1"},
	}
	l := listen(t, c)
	s = build(wire.Config{TLS: c, Identifier: named{}, Handler: h, Fronts: []wire.Front{other(), front()}, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		s.Shutdown(ended)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s, "https://" + l.Addr().String()
}

func client(t *testing.T, serial int64) *http.Client {
	t.Helper()
	c := &tls.Config{InsecureSkipVerify: true}
	if serial > 0 {
		c.Certificates = []tls.Certificate{certificate(t, serial)}
	}
	tr := &http.Transport{TLSClientConfig: c, ForceAttemptHTTP2: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// TestOneCallerCannotTakeAll: who has too much in flight is refused, and others are not.
func TestOneCallerCannotTakeAll(t *testing.T) {
	t.Parallel()
	entered, release := make(chan struct{}), make(chan struct{})
	_, url := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("wait") {
			entered <- struct{}{}
			<-release
		}
	})
	path := "/.well-known/jwks.json"
	results := make(chan int, 64)
	greedy := client(t, 0)
	for range 64 {
		go func() {
			resp, err := greedy.Get(url + path + "?wait")
			if err != nil {
				results <- 0
				return
			}
			resp.Body.Close()
			results <- resp.StatusCode
		}()
		<-entered
	}
	get := func(c *http.Client) int {
		resp, err := c.Get(url + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode
	}
	if got := get(client(t, 0)); got != http.StatusServiceUnavailable {
		t.Errorf("the 65th of the address: %d", got)
	}
	if got := get(client(t, 7)); got != http.StatusOK {
		t.Errorf("somebody who is known: %d", got)
	}
	close(release)
	for range 64 {
		if got := <-results; got != http.StatusOK {
			t.Errorf("one of the first 64: %d", got)
		}
	}
	if got := get(client(t, 0)); got != http.StatusOK {
		t.Errorf("after they were answered: %d", got)
	}
}

// TestBodiesOfOneCaller: the bodies that one caller has at a server are bounded together, others are not touched, and what was answered counts no more.
func TestBodiesOfOneCaller(t *testing.T) {
	t.Parallel()
	read, release := make(chan error), make(chan struct{})
	_, url := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		read <- err
		<-release
	})
	body := make([]byte, wire.MaxMessage)
	send := func(c *http.Client, size int) {
		resp, err := c.Post(url+"/rotor.v1.KeyService/List", "application/proto", bytes.NewReader(body[:size]))
		if err == nil {
			resp.Body.Close()
		}
	}
	greedy := client(t, 7)
	var sent sync.WaitGroup
	for range wire.MaxBodies / wire.MaxMessage {
		sent.Go(func() { send(greedy, wire.MaxMessage) })
		if err := <-read; err != nil {
			t.Fatal(err)
		}
	}
	sent.Go(func() { send(greedy, 1) })
	if err := <-read; fault.CodeOf(rpc.Decode(err)) != fault.Unavailable {
		t.Errorf("one byte more: %v", err)
	}
	sent.Go(func() { send(client(t, 8), wire.MaxMessage) })
	if err := <-read; err != nil {
		t.Errorf("somebody else: %v", err)
	}
	close(release)
	sent.Wait()
	sent.Go(func() { send(greedy, wire.MaxMessage) })
	if err := <-read; err != nil {
		t.Errorf("after they were answered: %v", err)
	}
	sent.Wait()
}

// TestLargeBodies: whoever has many names has no more of the server's memory for large bodies than it gives to all, and keeps no small one out.
func TestLargeBodies(t *testing.T) {
	t.Parallel()
	read, release := make(chan error), make(chan struct{})
	_, url := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		read <- err
		<-release
	})
	body := make([]byte, wire.MaxMessage)
	var sent sync.WaitGroup
	send := func(name int64, size int) error {
		c := client(t, name)
		sent.Go(func() {
			if resp, err := c.Post(url+"/rotor.v1.KeyService/List", "application/proto", bytes.NewReader(body[:size])); err == nil {
				resp.Body.Close()
			}
		})
		return <-read
	}
	const beyond = wire.MaxMessage - wire.SmallBody
	for i := range wire.MaxLarge / beyond {
		if err := send(int64(10+i/(wire.MaxBodies/wire.MaxMessage)), wire.MaxMessage); err != nil {
			t.Fatal(err)
		}
	}
	if err := send(1000, wire.MaxMessage); fault.CodeOf(rpc.Decode(err)) != fault.Unavailable {
		t.Errorf("one more: %v", err)
	}
	if err := send(1000, wire.SmallBody); err != nil {
		t.Errorf("a small one: %v", err)
	}
	close(release)
	sent.Wait()
	if err := send(1000, wire.MaxMessage); err != nil {
		t.Errorf("after they were answered: %v", err)
	}
	sent.Wait()
}

// TestStreamsOutliveTheTimeLimits: a request has deadlines, a stream has none but its certificate's.
func TestStreamsOutliveTheTimeLimits(t *testing.T) {
	t.Parallel()
	_, url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		end, ok := r.Context().Deadline()
		fmt.Fprint(w, ok && time.Until(end) > 50*time.Minute)
	})
	c := client(t, 7)
	for path, want := range map[string]string{
		"/rotor.v1.FleetService/Hold": "true", "/rotor.v1.AuditService/Tail": "true", "/rotor.v1.KeyService/Get": "false", "/rotor.v1.FleetService/Hold/x": "false",
	} {
		resp, err := c.Post(url+path, "text/plain", nil)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", path, b, err)
		}
	}
}

// TestCutAndDrain: the connections of one instance are closed at once; streams end when the server drains, and no new one begins.
func TestCutAndDrain(t *testing.T) {
	t.Parallel()
	entered := make(chan struct{}, 2)
	s, url := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		<-r.Context().Done()
	})
	stream := func(serial int64) chan error {
		out := make(chan error, 1)
		c := client(t, serial)
		go func() {
			resp, err := c.Post(url+"/rotor.v1.AuditService/Tail", "text/plain", nil)
			if err == nil {
				resp.Body.Close()
			}
			out <- err
		}()
		<-entered
		return out
	}
	a, b := stream(7), stream(8)
	s.Cut("7")
	if err := <-a; err == nil {
		t.Error("the connection of a removed instance lived on")
	}
	select {
	case err := <-b:
		t.Errorf("another instance was cut: %v", err)
	default:
	}
	s.Shutdown(t.Context())
	if err := <-b; err != nil {
		t.Errorf("a stream that was drained: %v", err)
	}
}

// TestPanicsStayInTheirRequest.
func TestPanicsStayInTheirRequest(t *testing.T) {
	t.Parallel()
	_, url := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" {
			panic("a mistake")
		}
	})
	c := client(t, 7)
	if resp, err := c.Get(url + "/healthz"); err == nil {
		resp.Body.Close()
		t.Error("answered")
	}
	resp, err := c.Get(url + "/other")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}

// TestNoise: what is no TLS and no HTTP does not disturb others.
func TestNoise(t *testing.T) {
	t.Parallel()
	_, url := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	for _, noise := range []string{"GET / HTTP/1.0\r\n\r\n", strings.Repeat("\x16\x03\x01", 1000), "\x16\x03\x01\xff\xff"} {
		c, err := net.Dial("tcp", strings.TrimPrefix(url, "https://"))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, noise)
		_ = c.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, c)
		c.Close()
	}
	old := client(t, 7)
	old.Transport.(*http.Transport).TLSClientConfig.MaxVersion = tls.VersionTLS12
	if resp, err := old.Get(url); err == nil {
		resp.Body.Close()
		t.Error("TLS 1.2 was spoken")
	}
	resp, err := client(t, 7).Get(url)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}

// revocable is named, but for callers that are gone.
type revocable struct {
	named
	gone *sync.Map
}

func (r revocable) Session(ctx context.Context, token, address string) (policy.Caller, time.Time, error) {
	if _, gone := r.gone.Load(token); gone {
		return policy.Caller{}, time.Time{}, fault.New(fault.Unauthenticated, "session")
	}
	return r.named.Session(ctx, token, address)
}

// TestReconsider: what goes on is looked at again, and what is of nobody any more ends: streams at once, other requests when their body is there.
func TestReconsider(t *testing.T) {
	t.Parallel()
	var gone sync.Map
	entered, look, stands := make(chan string, 2), make(chan struct{}), make(chan error, 1)
	s, url := serveAs(t, func(c wire.Config) *wire.Server {
		c.Identifier = revocable{gone: &gone}
		return wire.NewServer(c)
	}, func(_ http.ResponseWriter, r *http.Request) {
		entered <- wire.Caller(r.Context()).Session
		if strings.HasSuffix(r.URL.Path, "/Tail") {
			<-r.Context().Done()
			return
		}
		<-look
		stands <- wire.Stands(r.Context())
	})
	ask := func(token, path string) <-chan error {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+token)
		out := make(chan error, 1)
		go func() {
			resp, err := client(t, 0).Do(r)
			if err == nil {
				err = resp.Body.Close()
			}
			out <- err
		}()
		<-entered
		return out
	}
	for _, of := range []string{"s-stays", "s-goes"} {
		stream, other := ask(of, "/rotor.v1.AuditService/Tail"), ask(of, "/rotor.v1.KeyService/Get")
		s.End(func(policy.Caller) bool { return false }) // somebody else's
		gone.Store("s-goes", true)
		s.Reconsider(t.Context())
		look <- struct{}{}
		if err := <-stands; (err != nil) != (of == "s-goes") {
			t.Errorf("%s: the request: %v", of, err)
		}
		<-other
		if of == "s-goes" {
			<-stream
			break
		}
		select {
		case err := <-stream:
			t.Errorf("the stream of somebody else ended: %v", err)
		default:
		}
		gone.Delete("s-goes")
	}
}

// broken cannot ask its store.
type broken struct{ named }

func (broken) Session(context.Context, string, string) (policy.Caller, time.Time, error) {
	return policy.Caller{}, time.Time{}, fault.Wrap(fault.Unavailable, "store", errors.New("dial postgres://rotor@10.0.0.5:5432"))
}

// TestCausesStayBehind: what is behind the server is not told to strangers, in any protocol.
func TestCausesStayBehind(t *testing.T) {
	t.Parallel()
	_, url := serveAs(t, func(c wire.Config) *wire.Server {
		c.Identifier = broken{}
		return wire.NewServer(c)
	}, func(http.ResponseWriter, *http.Request) {})
	for path, kind := range map[string]string{"/metrics": "", "/rotor.v1.KeyService/List": "application/json"} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+path, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer x")
		r.Header.Set("Content-Type", kind)
		resp, err := client(t, 0).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		if err = errors.Join(err, resp.Body.Close()); err != nil || resp.StatusCode != http.StatusServiceUnavailable || strings.Contains(string(b), "10.0.0.5") {
			t.Errorf("%s: %d %s, %v", path, resp.StatusCode, b, err)
		}
	}
}

// TestStrangersBeginNoTrace: the trace of a caller goes on, that of a stranger does not.
func TestStrangersBeginNoTrace(t *testing.T) {
	t.Parallel()
	got := make(chan string, 1)
	_, url := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		got <- r.Header.Get("Traceparent") + r.Header.Get("Tracestate")
	})
	for serial, want := range map[int64]string{0: "", 7: "ab"} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/rotor.v1.JoinService/Join", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Traceparent", "a")
		r.Header.Set("Tracestate", "b")
		resp, err := client(t, serial).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := resp.Body.Close(); err != nil {
			t.Error(err)
		}
		if is := <-got; is != want {
			t.Errorf("%d: %q", serial, is)
		}
	}
}

// other is a protocol whose tokens, refusals and large bodies are its own.
func other() wire.Front {
	return wire.Front{
		Route: func(r *http.Request) (wire.Route, bool) {
			return wire.Route{MaxBody: 2 * wire.MaxMessage}, strings.HasPrefix(r.URL.Path, "/other/")
		},
		Token: func(h http.Header) (string, bool, error) { return h.Get("X-Other"), true, nil },
		Identify: func(_ context.Context, token, _ string) (policy.Caller, time.Time, error) {
			if token != "right" {
				return policy.Caller{}, time.Time{}, fault.New(fault.Unauthenticated, "token")
			}
			return policy.Caller{Kind: policy.KindToken, Name: "token/other", Session: "o"}, time.Now().Add(time.Hour), nil
		},
		Deny: func(w http.ResponseWriter, _ *http.Request, err error) {
			w.WriteHeader(http.StatusTeapot)
			fmt.Fprint(w, fault.CodeOf(err))
		},
	}
}

// TestFronts: each protocol names callers and refuses them in its own way, and what one takes for a token is none to another.
func TestFronts(t *testing.T) {
	t.Parallel()
	_, url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
			return
		}
		fmt.Fprint(w, wire.Caller(r.Context()).Name)
	})
	for what, c := range map[string]struct {
		serial      int64
		path, token string
		bearer      string
		size        int64
		status      int
		want        string
	}{
		"right":                  {0, "/other/x", "right", "", 0, 200, "token/other"},
		"wrong":                  {0, "/other/x", "wrong", "", 0, http.StatusTeapot, "unauthenticated"},
		"none":                   {0, "/other/x", "", "", 0, http.StatusTeapot, "unauthenticated"},
		"a certificate":          {7, "/other/x", "", "", 0, http.StatusTeapot, "unauthenticated"},
		"a bearer of the others": {0, "/other/x", "", "s-x", 0, http.StatusTeapot, "unauthenticated"},
		"its token elsewhere":    {0, "/rotor.v1.AuditService/Tail", "right", "", 0, 401, ""},
		"its token, no protocol": {0, "/x", "right", "", 0, 401, ""},
		"a bearer elsewhere":     {0, "/x", "", "s-x", 0, 200, "token/t/x"},
		"a large body":           {0, "/other/x", "right", "", 2 * wire.MaxMessage, 200, "token/other"},
		"too large a body":       {0, "/other/x", "right", "", 2*wire.MaxMessage + 1, http.StatusTeapot, "too_large"},
		"a large body elsewhere": {7, "/x", "", "", wire.MaxMessage + 1, 413, ""},
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+c.path, bytes.NewReader(make([]byte, c.size)))
		if err != nil {
			t.Fatal(err)
		}
		if c.token != "" {
			r.Header.Set("X-Other", c.token)
		}
		if c.bearer != "" {
			r.Header.Set("Authorization", "Bearer "+c.bearer)
		}
		resp, err := client(t, c.serial).Do(r)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != c.status || c.want != "" && string(b) != c.want {
			t.Errorf("%s: %d %s", what, resp.StatusCode, b)
		}
	}
}
