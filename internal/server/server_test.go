package server_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/identity"
	"github.com/rotorkms/rotor/internal/rpc"
	"github.com/rotorkms/rotor/internal/server"
	"github.com/rotorkms/rotor/internal/store/bolt"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

const rules = `version: 1
rules:
  - name: all
    callers: ["admin/*", "spiffe://rotor.local/instance/*"]
    actions: ["*"]
    keys: {namespace: "**", names: ["**"]}
`

// logged is a log that tests can search.
type logged struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// world is a cluster whose server can be started again.
type world struct {
	t      testing.TB
	config server.Config
	source server.Config // what a reload reads, after reconfigure
	admin  string
	log    *logged
	offset atomic.Int64
	*server.Server
}

func newWorld(t testing.TB) *world { t.Helper(); return newWorldAt(t, 0) }

// newConfig is the configuration of a cluster that is still to be made.
func newConfig(t testing.TB) *world { t.Helper(); return newConfigAt(t, 0) }

func newConfigAt(t testing.TB, offset time.Duration) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{t: t, log: &logged{}}
	w.offset.Store(int64(offset))
	w.config = server.Config{
		Dir: dir, Listen: "127.0.0.1:0", Rules: filepath.Join(dir, "rules.yaml"), Log: slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Now: func() time.Time { return time.Now().Add(time.Duration(w.offset.Load())) },
	}
	if err := os.WriteFile(w.config.Rules, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	return w
}

// newWorldAt makes a cluster whose clock is off by so much.
func newWorldAt(t testing.TB, offset time.Duration) *world {
	t.Helper()
	w := newConfigAt(t, offset)
	made, err := server.Init(t.Context(), w.config)
	if err != nil {
		t.Fatal(err)
	}
	w.admin = made.AdminDir
	w.start()
	return w
}

func (w *world) start() {
	w.t.Helper()
	s, err := server.Start(w.t.Context(), w.config)
	if err != nil {
		w.t.Fatal(err)
	}
	w.Server = s
	w.t.Cleanup(func() {
		if err := s.Close(); err != nil && !s.Waiting() && fault.CodeOf(err) != fault.Sealed && fault.CodeOf(err) != fault.Recovery { // a test sealed it, or set its store back
			w.t.Error(err)
		}
	})
}

func (w *world) client() *rotor.Client {
	w.t.Helper()
	c, err := rotor.Dial(w.t.Context(), rotor.Config{Identity: w.admin, Address: w.Address()})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}

func (w *world) invite(name string) string {
	w.t.Helper()
	out, err := w.client().Admin().Fleet.Invite(w.t.Context(), connect.NewRequest(&rotorv1.InviteRequest{Name: name}))
	if err != nil {
		w.t.Fatal(err)
	}
	return out.Msg.GetToken()
}

// join makes an identity and gives its directory, closed.
func (w *world) join(name string) string {
	w.t.Helper()
	path := filepath.Join(w.t.TempDir(), name)
	c, err := rotor.Dial(w.t.Context(), rotor.Config{Identity: path, JoinToken: w.invite(name)})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// as is an HTTP client that shows the certificate of an identity, and trusts whoever answers.
func as(t testing.TB, path string) *http.Client {
	t.Helper()
	c := &tls.Config{InsecureSkipVerify: true}
	if path != "" {
		d, err := identity.Read(path)
		if err != nil {
			t.Fatal(err)
		}
		c.GetClientCertificate = d.ClientTLS(nil).GetClientCertificate
	}
	tr := &http.Transport{TLSClientConfig: c, ForceAttemptHTTP2: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// procedures are all of them, from the descriptors.
func procedures() (all []string) {
	services := rotorv1.File_rotor_v1_rotor_proto.Services()
	for i := range services.Len() {
		s := services.Get(i)
		for j := range s.Methods().Len() {
			all = append(all, "/"+string(s.FullName())+"/"+string(s.Methods().Get(j).Name()))
		}
	}
	return all
}

func TestStrangers(t *testing.T) {
	t.Parallel()
	w, other := newWorld(t), newWorld(t)
	removed, expired := w.join("removed"), w.join("expired")
	if _, err := w.client().Admin().Fleet.Remove(t.Context(), connect.NewRequest(&rotorv1.RemoveRequest{Name: "removed"})); err != nil {
		t.Fatal(err)
	}
	callers := map[string]*http.Client{
		"nobody": as(t, ""), "another cluster's": as(t, other.join("a")), "another cluster's administrator": as(t, other.admin), "removed": as(t, removed),
	}
	all := procedures()
	// What strangers may ask. A share is its own credential; the seal's status tells them whether the server is sealed, and TestSealed what more.
	open := []string{
		"/rotor.v1.JoinService/Join", "/rotor.v1.AuthService/Login", "/rotor.v1.SealService/Status", "/rotor.v1.SealService/Unseal", "/rotor.v1.SealService/Reset",
	}
	if len(all) < 30 {
		t.Fatalf("only %d procedures", len(all))
	}
	refused := func(who string, h *http.Client) {
		t.Helper()
		status, code, text := http.StatusUnauthorized, "16", `"unauthenticated"`
		if who == "removed" { // known, and told that it is out
			status, code, text = http.StatusForbidden, "7", `"permission_denied"`
		}
		for _, path := range append(all, "/", "/metrics", "/rotor.v1.JoinService/", "/rotor.v1.JoinService/../rotor.v1.KeyService/List", "/healthz/x", "/debug/pprof/") {
			for _, kind := range []string{"application/json", "application/proto", "application/grpc", "application/connect+json", "text/plain"} {
				if slices.Contains(open, path) {
					continue
				}
				r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+w.Address()+path, strings.NewReader("{}"))
				if err != nil {
					t.Fatal(err)
				}
				r.Header.Set("Content-Type", kind)
				resp, err := h.Do(r)
				if err != nil {
					t.Fatalf("%s, %s: %v", who, path, err)
				}
				b, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				grpc := resp.Header.Get("Grpc-Status") + resp.Trailer.Get("Grpc-Status")
				stream := kind == "application/connect+json" && bytes.Contains(b, []byte(text))
				if resp.StatusCode != status && grpc != code && !stream {
					t.Errorf("%s, %s as %s: %d, grpc %q, %.100s", who, path, kind, resp.StatusCode, grpc, b)
				}
			}
		}
	}
	for who, h := range callers {
		refused(who, h)
	}
	for _, path := range []string{"/healthz", "/readyz", "/.well-known/jwks.json"} {
		resp, err := callers["nobody"].Get("https://" + w.Address() + path)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %v", path, err)
		}
		resp.Body.Close()
	}
	w.offset.Store(int64(38 * 24 * time.Hour)) // behind life and grace
	refused("expired", as(t, expired))
}

// dropping is a proxy that loses the answer of the first connections: it lets what the client sends through, and of what the server
// sends the handshake and the beginning of HTTP/2, but nothing that comes after the request.
func dropping(t *testing.T, target string, lose int64) (address string, lost *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	lost = &atomic.Int64{}
	go func() { // ends with the listener
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", target)
			if err != nil {
				in.Close()
				return
			}
			var sent atomic.Int64
			go func() {
				b := make([]byte, 64<<10)
				for {
					n, err := in.Read(b)
					sent.Add(int64(n))
					if _, werr := out.Write(b[:n]); err != nil || werr != nil {
						out.Close()
						return
					}
				}
			}()
			go func() {
				defer in.Close()
				defer out.Close()
				b := make([]byte, 64<<10)
				for {
					n, err := out.Read(b)
					if err != nil {
						return
					}
					if n > grant && sent.Load() > request && lost.Load() < lose {
						lost.Add(1)
						return
					}
					_, _ = in.Write(b[:n])
				}
			}()
		}
	}()
	return l.Addr().String(), lost
}

// Sizes that tell a join from the handshake, whose hello alone has 1.2 KiB of ML-KEM: what the client has sent with its request, and the
// smallest answer with two certificates.
const (
	request = 2000
	grant   = 900
)

func TestLostReplyIsRepeated(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	address, lost := dropping(t, w.Address(), 2)
	path := filepath.Join(t.TempDir(), "a")
	c, err := rotor.Dial(t.Context(), rotor.Config{Identity: path, JoinToken: w.invite("a"), Address: address})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if lost.Load() != 2 || c.Instance() != "a" {
		t.Fatalf("%d answers were lost", lost.Load())
	}
}

func wants(t *testing.T, what string, err error, code fault.Code) {
	t.Helper()
	if fault.CodeOf(err) != code {
		t.Errorf("%s: %v, want %s", what, err, code)
	}
}

// TestImpostorGetsNothing stands in the place that a join token names, with a certificate of another CA.
func TestImpostorGetsNothing(t *testing.T) {
	t.Parallel()
	w, evil := newWorld(t), newWorld(t)
	token := w.invite("a")
	_, err := rotor.Dial(t.Context(), rotor.Config{Identity: filepath.Join(t.TempDir(), "a"), JoinToken: token, Address: evil.Address()})
	wants(t, "another CA", err, fault.Unauthenticated)
	if log := evil.log.String(); strings.Contains(log, token) || strings.Contains(log, "JoinService") {
		t.Errorf("the impostor heard of the token: %s", log)
	}
	// Another instance of the same cluster is an impostor too.
	peer, err := rotor.Dial(t.Context(), rotor.Config{Identity: w.join("peer")})
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	var asked atomic.Int64
	l, err := tls.Listen("tcp", "127.0.0.1:0", func() *tls.Config {
		c := peer.ServerTLS(nil)
		c.ClientAuth, c.VerifyConnection = tls.NoClientCert, nil
		return c
	}())
	if err != nil {
		t.Fatal(err)
	}
	fake := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	done := make(chan error, 1)
	go func() { done <- fake.Serve(l) }()
	_, err = rotor.Dial(t.Context(), rotor.Config{Identity: filepath.Join(t.TempDir(), "a"), JoinToken: token, Address: l.Addr().String()})
	wants(t, "another instance", err, fault.Unauthenticated)
	if asked.Load() != 0 {
		t.Errorf("asked %d times", asked.Load())
	}
	_ = fake.Close()
	<-done
	if _, err := rotor.Dial(t.Context(), rotor.Config{Identity: filepath.Join(t.TempDir(), "b"), JoinToken: token}); err != nil {
		t.Errorf("the token was spent: %v", err)
	}
}

func TestRemovalEndsStreams(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d, err := identity.Read(w.join("a"))
	if err != nil {
		t.Fatal(err)
	}
	h := d.HTTPClient()
	defer h.CloseIdleConnections()
	tail, err := rotorv1.NewAuditServiceClient(h, "https://"+w.Address()).Tail(t.Context(), connect.NewRequest(&rotorv1.TailRequest{Follow: true}))
	if err != nil {
		t.Fatal(err)
	}
	if !tail.Receive() {
		t.Fatal(tail.Err())
	}
	if _, err := w.client().Admin().Fleet.Remove(t.Context(), connect.NewRequest(&rotorv1.RemoveRequest{Name: "a"})); err != nil {
		t.Fatal(err)
	}
	for tail.Receive() { // ends, or the test does not
	}
	if tail.Err() == nil {
		t.Error("the stream ended as if it were complete")
	}
	_, err = rotorv1.NewKeyServiceClient(h, "https://"+w.Address()).List(t.Context(), connect.NewRequest(&rotorv1.ListRequest{}))
	if got := fault.CodeOf(rpc.Decode(err)); got != fault.Denied {
		t.Errorf("removed: %v", err)
	}
}

// TestConnectionsFollowTheCertificate: a renewed instance is not refused on the connections of its old certificate.
func TestConnectionsFollowTheCertificate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d, err := identity.Open(w.join("a"))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	h := d.HTTPClient()
	defer h.CloseIdleConnections()
	url := "https://" + w.Address()
	list := func() error {
		_, err := rotorv1.NewKeyServiceClient(h, url).List(t.Context(), connect.NewRequest(&rotorv1.ListRequest{}))
		return rpc.Decode(err)
	}
	if err := list(); err != nil {
		t.Fatal(err)
	}
	w.offset.Store(int64(8 * 24 * time.Hour))
	if err := list(); fault.CodeOf(err) != fault.Unauthenticated {
		t.Fatalf("expired on an open connection: %v", err)
	}
	csr, err := d.CSR()
	if err != nil {
		t.Fatal(err)
	}
	out, err := rotorv1.NewJoinServiceClient(h, url).Renew(t.Context(), connect.NewRequest(&rotorv1.RenewRequest{Csr: csr}))
	if err != nil {
		t.Fatal(err)
	}
	m := out.Msg
	if err := d.Accept(identity.Grant{Chain: m.GetChain(), CA: m.GetCa(), ServerKey: m.GetServerKey(), Cluster: m.GetCluster(), Namespace: m.GetNamespace()}, ""); err != nil {
		t.Fatal(err)
	}
	if err := list(); err != nil {
		t.Errorf("renewed, on the connections of before: %v", err)
	}
}

// TestDownForLongerThanItsCertificate: an instance whose certificate ended while it was down renews it before anything else; one that
// was removed meanwhile does not.
func TestDownForLongerThanItsCertificate(t *testing.T) {
	t.Parallel()
	w := newWorldAt(t, -8*24*time.Hour)
	path, removed := w.join("a"), w.join("b")
	if _, err := w.client().Admin().Fleet.Remove(t.Context(), connect.NewRequest(&rotorv1.RemoveRequest{Name: "b"})); err != nil {
		t.Fatal(err)
	}
	key := &rotorv1.Key{Name: "records", Purpose: "encrypt", Custody: "fleet"}
	if _, err := w.client().Admin().Keys.Create(t.Context(), connect.NewRequest(&rotorv1.CreateRequest{Key: key})); err != nil {
		t.Fatal(err)
	}
	w.offset.Store(0)
	c, err := rotor.Dial(t.Context(), rotor.Config{Identity: path, Keys: []string{"records"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Key("records").Encrypt(t.Context(), []byte("x")); err != nil {
		t.Error(err)
	}
	_, err = rotor.Dial(t.Context(), rotor.Config{Identity: removed, Keys: []string{"records"}})
	wants(t, "removed", err, fault.Denied)
}

// endless is a body of 10 GB that counts what is taken of it.
type endless struct{ read atomic.Int64 }

func (e *endless) Read(b []byte) (int, error) {
	if e.read.Add(int64(len(b))) > 10<<30 {
		return 0, io.EOF
	}
	for i := range b {
		b[i] = ' '
	}
	return len(b), nil
}

func TestHugeBodies(t *testing.T) {
	w := newWorld(t)
	for _, tt := range []struct {
		name, path, identity string
		length               int64 // that the header says
		most                 int64 // that may be read
	}{
		{"announced", "/rotor.v1.KeyService/Encrypt", w.admin, 10 << 30, 3 << 20},
		{"not announced", "/rotor.v1.KeyService/Encrypt", w.admin, -1, 32 << 20},
		{"stranger, announced", "/rotor.v1.JoinService/Join", "", 10 << 30, 8 << 20},
		{"stranger, not announced", "/rotor.v1.JoinService/Join", "", -1, 8 << 20},
		{"stranger elsewhere", "/rotor.v1.KeyService/Encrypt", "", -1, 8 << 20},
		{"stream", "/rotor.v1.AuditService/Tail", w.admin, -1, 32 << 20},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		body := &endless{}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+w.Address()+tt.path, body)
		if err != nil {
			t.Fatal(err)
		}
		r.ContentLength = tt.length
		r.Header.Set("Content-Type", "application/json")
		if strings.Contains(tt.path, "Tail") {
			r.Header.Set("Content-Type", "application/connect+json")
		}
		resp, err := as(t, tt.identity).Do(r)
		if err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK && !strings.Contains(tt.path, "Tail") {
				t.Errorf("%s: %s", tt.name, resp.Status)
			}
		}
		if n := body.read.Load(); n > tt.most {
			t.Errorf("%s: %d bytes were taken", tt.name, n)
		}
		runtime.ReadMemStats(&after)
		if after.HeapSys > before.HeapSys+64<<20 {
			t.Errorf("%s: the heap grew by %d", tt.name, after.HeapSys-before.HeapSys)
		}
	}
}

func TestJSON(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := as(t, w.admin)
	post := func(path, body string, header ...string) (int, map[string]any) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+w.Address()+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		resp, err := h.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var m map[string]any
		if err := json.NewDecoder(resp.Body).Decode(&m); err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, m
	}
	if code, m := post("/rotor.v1.KeyService/Create", `{"key":{"name":"k","purpose":"encrypt"}}`); code != 200 || m["name"] != "k" {
		t.Fatal(code, m)
	}
	if code, m := post("/rotor.v1.KeyService/Create", `{"key":{"name":"k","purpose":"encrypt"}}`, "Content-Type", "application/json; charset=utf-8"); code != 409 || m["code"] != "already_exists" {
		t.Error(code, m)
	} else if d, _ := json.Marshal(m["details"]); !bytes.Contains(d, []byte("rotor.v1.Fault")) {
		t.Errorf("no fault in %s", d)
	}
	for name, body := range map[string]string{
		"misspelt field": `{"key":{"name":"k"},"rewinding":1}`, "no JSON": `{`, "empty": ``, "wrong type": `{"key":7}`, "twice": `{"key":{},"key":{}}`,
		"something behind": `{}{}`, "deep": strings.Repeat(`{"key":`, 100_000),
	} {
		if code, m := post("/rotor.v1.KeyService/Rotate", body); code != 400 || m["code"] != "invalid_argument" {
			t.Errorf("%s: %d %v", name, code, m)
		}
	}
	if code, m := post("/rotor.v1.KeyService/List", "x", "Content-Encoding", "gzip"); code != 404 && code != 501 || m["code"] != "unimplemented" {
		t.Errorf("gzip: %d %v", code, m)
	}
	long := strings.Repeat("x", 100<<10)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+w.Address()+"/healthz", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X", long)
	if resp, err := h.Do(r); err == nil {
		resp.Body.Close()
		if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("a header of 100 KiB: %s", resp.Status)
		}
	}
}

// TestFaultsInBothProtocols asks for what does not exist over gRPC, gRPC-Web and Connect on one port.
func TestFaultsInBothProtocols(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, o := range map[string][]connect.ClientOption{"grpc": {connect.WithGRPC()}, "web": {connect.WithGRPCWeb()}, "connect": nil, "json": {connect.WithProtoJSON()}} {
		c := rotorv1.NewKeyServiceClient(as(t, w.admin), "https://"+w.Address(), o...)
		_, err := c.Get(t.Context(), connect.NewRequest(&rotorv1.KeyRef{Name: "none"}))
		var f *fault.Error
		if !errors.As(rpc.Decode(err), &f) || f.Code != fault.NotFound || f.Hint == "" || f.Resource != "key none" || connect.CodeOf(err) != connect.CodeNotFound {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestLongNames: a name is kept and logged also when it is refused, so nobody can make rotor keep megabytes of it.
func TestLongNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	long := strings.Repeat("x", 1<<20)
	c := w.client().Admin().Keys
	for name, ref := range map[string]*rotorv1.KeyRef{"name": {Name: long}, "namespace": {Namespace: long, Name: "k"}} {
		_, err := c.Get(t.Context(), connect.NewRequest(ref))
		if fault.CodeOf(err) != fault.NotFound || len(err.Error()) > 300 {
			t.Errorf("%s: %.300s", name, err)
		}
	}
	_, err := c.Create(t.Context(), connect.NewRequest(&rotorv1.CreateRequest{Key: &rotorv1.Key{Name: long[:65], Purpose: "encrypt"}}))
	wants(t, "created", err, fault.Invalid)
}

func TestLimitOfStreams(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := rotorv1.NewAuditServiceClient(as(t, w.admin), "https://"+w.Address())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range 16 {
		s, err := c.Tail(ctx, connect.NewRequest(&rotorv1.TailRequest{Follow: true}))
		if err != nil || !s.Receive() {
			t.Fatal(err)
		}
	}
	s, err := c.Tail(ctx, connect.NewRequest(&rotorv1.TailRequest{Follow: true}))
	if err == nil && s.Receive() {
		t.Fatal("a 17th stream")
	}
	if err == nil {
		err = s.Err()
	}
	if fault.CodeOf(rpc.Decode(err)) != fault.Unavailable {
		t.Error(err)
	}
	if err := w.Close(); err != nil { // with all of them open
		t.Fatal(err)
	}
}

// leftRunning is the stack of a goroutine of rotor's, empty when there is none. A test that waits to run beside others is none.
func leftRunning() string {
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	for _, g := range strings.Split(string(stacks), "\n\n") {
		if strings.Contains(g, "rotor/internal/") && !strings.Contains(g, "server_test.") && !strings.Contains(g, "testing.(*T).Parallel") {
			return g
		}
	}
	return ""
}

func TestStartAndStop(t *testing.T) {
	w := newWorld(t)
	if _, err := server.Start(t.Context(), w.config); fault.CodeOf(err) != fault.StoreLocked {
		t.Fatalf("second server: %v", err)
	}
	if _, err := server.Init(t.Context(), w.config); fault.CodeOf(err) != fault.Exists {
		t.Fatalf("second init: %v", err)
	}
	for range 3 {
		w.client()
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		for tries := 0; ; tries++ { // what has said that it ended may still have to return
			left := leftRunning()
			if left == "" {
				break
			}
			if tries == 1000 {
				t.Fatalf("left running:\n%s", left)
			}
			runtime.Gosched()
		}
		w.start()
	}
}

func TestReload(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	list := func() error {
		_, err := w.client().Admin().Fleet.Instances(t.Context(), connect.NewRequest(&rotorv1.InstancesRequest{}))
		return err
	}
	write := func(s string) {
		if err := os.WriteFile(w.config.Rules, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("version: 1\nrulez: []\n")
	if err := w.Reload(); fault.CodeOf(err) != fault.Invalid {
		t.Fatal(err)
	}
	if err := list(); err != nil {
		t.Fatalf("the old rules are gone: %v", err)
	}
	if err := os.Remove(w.config.Rules); err != nil {
		t.Fatal(err)
	}
	if err := w.Reload(); fault.CodeOf(err) != fault.NotFound {
		t.Fatal(err)
	}
	write("version: 1\nrules: []\n")
	if err := w.Reload(); err != nil {
		t.Fatal(err)
	}
	if err := list(); fault.CodeOf(err) != fault.Denied {
		t.Fatalf("without rules: %v", err)
	}
}

func TestConfigNamesTheField(t *testing.T) {
	t.Parallel()
	for field, c := range map[string]server.Config{
		"dir":          {},
		"lease_ttl":    {Dir: "d", LeaseTTL: time.Millisecond},
		"max_skew":     {Dir: "d", MaxSkew: -1},
		"listen":       {Dir: "d", Listen: "nowhere"},
		"advertise":    {Dir: "d", Listen: "0.0.0.0:1"},
		"trust_domain": {Dir: "d", TrustDomain: "A/b"},
		"namespace":    {Dir: "d", Namespace: "A"},
		"hosts":        {Dir: "d", Hosts: []string{""}},

		"metrics.max_keys": {Dir: "d", Metrics: server.Metrics{MaxKeys: -1}},
	} {
		_, err := server.Start(t.Context(), c)
		var f *fault.Error
		if !errors.As(err, &f) || f.Code != fault.Invalid || f.Resource != field || f.Hint == "" {
			t.Errorf("%s: %v", field, err)
		}
	}
	if _, err := server.Start(t.Context(), server.Config{Dir: "d", Listen: "[::]:1", Advertise: "h:1/x"}); fault.CodeOf(err) != fault.Invalid {
		t.Error(err)
	}
}

// TestTokens: the published set says how long it may be kept, what a caller chooses is bounded, and no secret is in the log.
func TestTokens(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.client()
	key := &rotorv1.Key{Name: "tokens", Purpose: "sign", Rotation: &rotorv1.Rotation{MarginNs: int64(90 * time.Second)}}
	if _, err := c.Admin().Keys.Create(t.Context(), connect.NewRequest(&rotorv1.CreateRequest{Key: key})); err != nil {
		t.Fatal(err)
	}
	resp, err := as(t, "").Get("https://" + w.Address() + "/.well-known/jwks.json")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if got := resp.Header.Get("Cache-Control"); got != "public, max-age=90" {
		t.Errorf("Cache-Control: %s", got)
	}
	text, err := c.Token(t.Context(), rotor.TokenRequest{Key: "tokens", Audience: "b", Scope: []string{"read"}})
	if err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]rotor.TokenRequest{
		"no audience": {}, "long audience": {Audience: strings.Repeat("x", 257)}, "audience with a line": {Audience: "a\nb"}, "scope with a space": {Audience: "b", Scope: []string{"a b"}},
		"empty scope": {Audience: "b", Scope: []string{""}}, "long scope": {Audience: "b", Scope: []string{strings.Repeat("x", 129)}},
		"many scopes": {Audience: "b", Scope: make([]string, 33)}, "negative": {Audience: "b", TTL: -1}, "too long": {Audience: "b", TTL: 25 * time.Hour},
	} {
		r.Key = "tokens"
		if _, err := c.Token(t.Context(), r); rotor.CodeOf(err) != fault.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	join := w.invite("a")
	if _, err := rotor.Dial(t.Context(), rotor.Config{Identity: filepath.Join(t.TempDir(), "a"), JoinToken: join + "A"}); err == nil {
		t.Error("joined with an edited token")
	}
	for name, secret := range map[string]string{"access token": text, "join token": join} {
		if strings.Contains(w.log.String(), secret) {
			t.Errorf("%s in the log", name)
		}
	}
}

// TestInitAgain: an init that was cut off before its one commit is repeated; after it, server admin makes what is missing.
func TestInitAgain(t *testing.T) {
	t.Parallel()
	c := server.Config{Dir: t.TempDir()}
	db, err := bolt.Open(filepath.Join(c.Dir, "rotor.db"), bolt.Options{}) // all that is there
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	made, err := server.Init(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	_, err = server.Init(t.Context(), c)
	wants(t, "a second time", err, fault.Exists)
	if err := os.RemoveAll(made.AdminDir); err != nil { // as if cut off behind the commit
		t.Fatal(err)
	}
	again, err := server.NewAdmin(t.Context(), c, "admin", made.AdminDir)
	if err != nil || !reflect.DeepEqual(again, made) {
		t.Fatalf("%+v, %v; want %+v", again, err, made)
	}
	if d, err := identity.Read(made.AdminDir); err != nil || !d.Joined() || d.IsInstance() {
		t.Errorf("the identity: %v", err)
	}
}
