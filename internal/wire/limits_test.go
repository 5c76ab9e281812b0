package wire_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/wire"
)

func get(t *testing.T, c *http.Client, url string, header ...string) int {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range header {
		r.Header.Add("Authorization", h)
	}
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

// TestRates: who asks too often is refused for a while; others are not, and limits can be lifted.
func TestRates(t *testing.T) {
	t.Parallel()
	s, url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if err := wire.EnterNamespace(r.Context(), r.URL.Query().Get("ns")); err != nil {
			if fault.CodeOf(err) != fault.RateLimited {
				t.Error(err)
			}
			http.Error(w, err.Error(), http.StatusTeapot)
		}
	})
	clock := s.FreezeLimits(wire.Limits{CallerRate: 2, CallerBurst: 3, NamespaceRate: 1, NamespaceBurst: 2, LoginRate: 1, LoginBurst: 2})
	greedy, other := client(t, 7), client(t, 8)
	ask := func(what string, c *http.Client, ns string, want ...int) {
		t.Helper()
		for i, w := range want {
			if got := get(t, c, url+"/x?ns="+ns); got != w {
				t.Errorf("%s, request %d: %d, want %d", what, i+1, got, w)
			}
		}
	}
	ask("in its rate", greedy, "a", 200, 200)
	ask("the namespace is full", greedy, "a", http.StatusTeapot)
	ask("too often", greedy, "b", http.StatusTooManyRequests, http.StatusTooManyRequests)
	ask("another caller", other, "a", http.StatusTeapot)
	ask("another namespace", other, "b", 200)
	clock.Add(int64(time.Second))
	ask("a second later", greedy, "a", 200)
	ask("a second later", greedy, "b", 200)
	ask("a second later", greedy, "c", http.StatusTooManyRequests)
	login := url + "/rotor.v1.AuthService/Login"
	for i, want := range []int{200, 200, http.StatusTooManyRequests} {
		if got := get(t, client(t, 0), login); got != want && (want == 200) != (got == http.StatusTeapot) {
			t.Errorf("login %d: %d, want %d", i+1, got, want)
		}
	}
	if got := get(t, client(t, 0), url+"/healthz?ns=z"); got != http.StatusOK {
		t.Errorf("health: %d", got)
	}
	s.SetLimits(wire.Limits{})
	for range 20 {
		ask("without limits", greedy, "a", 200)
	}
}

// TestSessions: one bearer, well formed, counts alone.
func TestSessions(t *testing.T) {
	t.Parallel()
	_, url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, wire.Caller(r.Context()).Name, wire.Certificate(r.Context()) == nil)
	})
	for what, c := range map[string]struct {
		serial int64
		header []string
		want   int
	}{
		"session": {0, []string{"Bearer s-x"}, 200}, "in lower case": {0, []string{"bearer s-x"}, 200}, "beside a certificate": {7, []string{"Bearer s-x"}, 200},
		"unknown": {0, []string{"Bearer x"}, 401}, "unknown beside a certificate": {7, []string{"Bearer x"}, 401}, "two": {0, []string{"Bearer s-x", "Bearer s-x"}, 401},
		"another scheme": {7, []string{"Basic czpz"}, 401}, "empty": {7, []string{""}, 401}, "none": {0, nil, 401}, "huge": {0, []string{"Bearer s-" + string(make([]byte, 0)) + fmt.Sprintf("%0300d", 1)}, 401},
	} {
		if got := get(t, client(t, c.serial), url+"/x", c.header...); got != c.want {
			t.Errorf("%s: %d, want %d", what, got, c.want)
		}
	}
}

// pair writes a certificate of a serial number and its key.
func pair(t *testing.T, dir string, serial int64) (certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tpl := &x509.Certificate{SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tpl, tpl, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	certificate, key = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	write(t, certificate, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), serial)
	write(t, key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), serial)
	return certificate, key
}

// write gives each version of a file a time of its own, whatever the file system counts in.
func write(t *testing.T, path string, b []byte, version int64) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	at := time.Unix(1_700_000_000+version, 0)
	if err := os.Chtimes(path, at, at); err != nil {
		t.Fatal(err)
	}
}

func TestKeyPairIsReloaded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var clock atomic.Int64
	certificate, key := pair(t, dir, 1)
	k, err := wire.NewKeyPair(certificate, key, func() time.Time { return time.Unix(0, clock.Load()) }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	shows := func(what string, serial int64) {
		t.Helper()
		if c, err := k.Get(nil); err != nil || c.Leaf.SerialNumber.Int64() != serial {
			t.Errorf("%s: %v, %v", what, c, err)
		}
	}
	later := func() { clock.Add(int64(10 * time.Second)) }
	shows("at first", 1)
	pair(t, dir, 2)
	shows("a moment later", 1)
	later()
	shows("later", 2)
	write(t, key, []byte("half a file"), 3)
	later()
	shows("wrong files", 2)
	pair(t, dir, 4)
	later()
	shows("right again", 4)
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	later()
	shows("gone", 4)
	if _, err := wire.NewKeyPair(certificate, key, time.Now, slog.Default()); fault.CodeOf(err) != fault.Invalid {
		t.Error(err)
	}
}

func TestOldTLS(t *testing.T) {
	t.Parallel()
	certificate, key := pair(t, t.TempDir(), 1)
	k, err := wire.NewKeyPair(certificate, key, time.Now, slog.Default())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		old     bool
		version uint16
		suite   uint16
		want    bool
	}{
		{false, tls.VersionTLS13, 0, true}, {false, tls.VersionTLS12, 0, false}, {true, tls.VersionTLS12, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, true},
		{true, tls.VersionTLS12, tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, false}, {true, tls.VersionTLS11, 0, false}, {true, tls.VersionTLS13, 0, true},
	} {
		l := listen(t, wire.OwnTLS(k, c.old))
		done := make(chan struct{})
		go func() {
			defer close(done)
			if in, err := l.Accept(); err == nil {
				_ = in.(*tls.Conn).Handshake() // what comes of it the client says
				in.Close()
			}
		}()
		conf := &tls.Config{InsecureSkipVerify: true, MinVersion: c.version, MaxVersion: c.version}
		if c.suite != 0 {
			conf.CipherSuites = []uint16{c.suite}
		}
		conn, err := tls.Dial("tcp", l.Addr().String(), conf)
		if (err == nil) != c.want {
			t.Errorf("%+v: %v", c, err)
		}
		if err == nil {
			conn.Close()
		}
		<-done
		l.Close()
	}
}
