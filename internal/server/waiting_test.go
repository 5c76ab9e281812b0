package server_test

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/server"
)

// local is a client of Vault's protocol at the local socket of a world's configuration.
func (w *world) local(token string) *vaultClient {
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", w.config.Socket)
	}}
	w.t.Cleanup(tr.CloseIdleConnections)
	return &vaultClient{w.t, "http://localhost/v1/", token, http.Header{}, &http.Client{Transport: tr}}
}

// waiting is a server that waits for its init.
func waiting(t *testing.T) (w *world, secret string) {
	t.Helper()
	w = newConfig(t)
	w.config.Socket = filepath.Join(w.config.Dir, "local")
	w.start()
	if !w.Waiting() || w.Address() != "unix:"+w.config.Socket {
		t.Fatalf("it does not wait, at %s", w.Address())
	}
	b, err := os.ReadFile(filepath.Join(w.config.Dir, "init-secret"))
	if err != nil {
		t.Fatal(err)
	}
	return w, strings.TrimSpace(string(b))
}

// again starts the server again, as rotor server run does.
func (w *world) again() {
	w.t.Helper()
	if err := w.Wait(); !server.StartsAgain(err) {
		w.t.Fatal(err)
	}
	s, err := w.Restart(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	w.Server = s
	w.t.Cleanup(func() {
		if err := s.Close(); err != nil && fault.CodeOf(err) != fault.Sealed {
			w.t.Error(err)
		}
	})
}

// TestVaultInit is the whole way of vault operator init and unseal, over the local socket, by somebody who can read the server's directory.
func TestVaultInit(t *testing.T) {
	t.Parallel()
	w, secret := waiting(t)
	for path, mode := range map[string]os.FileMode{w.config.Socket: 0o600, filepath.Join(w.config.Dir, "init-secret"): 0o600} {
		if at, err := os.Stat(path); err != nil || at.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", path, at.Mode(), err)
		}
	}
	nobody, me := w.local(""), w.local(secret)
	nobody.do("GET", "sys/health", nil).want(t, "health", 501, `"initialized":false`)
	nobody.do("GET", "sys/health?uninitcode=200", nil).want(t, "uninitcode", 200, `"sealed":true`)
	nobody.do("GET", "sys/seal-status", nil).want(t, "seal-status", 200, `"initialized":false`)
	nobody.do("GET", "sys/init", nil).want(t, "init", 200, `{"initialized":false}`)
	nobody.do("GET", "sys/mounts", nil).want(t, "the rest", 503, "Vault is sealed")
	nobody.do("PUT", "sys/unseal", map[string]any{"key": "x"}).want(t, "unseal", 400, "Vault is not initialized")
	init := map[string]any{"secret_shares": 3, "secret_threshold": 2}
	nobody.do("PUT", "sys/init", init).want(t, "without the secret", 403, "permission denied: the token is the enrolment secret in ")
	w.local(secret+"x").do("PUT", "sys/init", init).want(t, "with another", 403, "permission denied")
	me.do("PUT", "sys/init", map[string]any{"secret_shares": 1, "secret_threshold": 1}).want(t, "one share", 400, "at least 2")
	me.do("PUT", "sys/init", map[string]any{"secret_shares": 3, "secret_threshold": 2, "pgp_keys": []string{"x", "y", "z"}}).want(t, "PGP", 400, "parameter pgp_keys is not supported")

	var wait sync.WaitGroup
	answers := make([]answer, 4)
	for i := range answers { // of several at once one makes the cluster
		wait.Go(func() { answers[i] = w.local(secret).do("PUT", "sys/init", init) })
	}
	wait.Wait()
	var made answer
	for _, a := range answers {
		if a.status == 200 && made.status == 0 {
			made = a
		} else if a.status != 400 {
			t.Errorf("a second init: %d %s", a.status, a.text)
		}
	}
	if made.status == 0 {
		t.Fatalf("no init: %s", answers[0].text)
	}
	keys, _ := made.body["keys"].([]any)
	if len(keys) != 3 || made.body["root_token"] == "" {
		t.Fatal(made.body)
	}
	w.again()
	if _, err := os.Stat(filepath.Join(w.config.Dir, "init-secret")); !os.IsNotExist(err) {
		t.Errorf("the enrolment secret stays: %v", err)
	}
	me.do("GET", "sys/health", nil).want(t, "health", 503, `"initialized":true`)
	me.do("PUT", "sys/init", init).want(t, "another init", 400, "Vault is already initialized")
	me.do("PUT", "sys/unseal", map[string]any{"key": keys[0]}).want(t, "a share", 200, `"progress":1`)
	me.do("PUT", "sys/unseal", map[string]any{"reset": true}).want(t, "reset over the local socket", 200, `"progress":0`)
	me.do("PUT", "sys/unseal", map[string]any{"key": keys[0]}).want(t, "a share", 200, `"progress":1`)
	me.do("PUT", "sys/unseal", map[string]any{"key": keys[2]}).want(t, "the last share", 200, `"sealed":false`)
	w.Opened()
	me.do("GET", "sys/health", nil).want(t, "health", 200, `"sealed":false`)
	me.do("GET", "sys/mounts", nil).want(t, "what is not for the local socket", 404, "alone")

	w.vault(made.body["root_token"].(string)).do("GET", "auth/token/lookup-self", nil).want(t, "the root token", 200, `"policies":["root"]`)
	admin, err := rotor.Dial(t.Context(), rotor.Config{Identity: filepath.Join(t.TempDir(), "admin"), JoinToken: made.body["enrolment_token"].(string), Address: w.Address()})
	if err != nil {
		t.Fatalf("the administrator that the enrolment token makes: %v", err)
	}
	if err := admin.Close(); err != nil {
		t.Error(err)
	}
}

// TestVaultInitWithRoot: without shares the root of the configuration opens the cluster, and the server serves at once.
func TestVaultInitWithRoot(t *testing.T) {
	t.Parallel()
	w, secret := waiting(t)
	w.local(secret).do("PUT", "sys/init", map[string]any{"recovery_shares": 5, "recovery_threshold": 3}).want(t, "init", 200, "root_token")
	w.again()
	w.vault("").do("GET", "sys/health", nil).want(t, "health", 200, `"sealed":false`)
}

// TestSealedForTheFirstTime: a server that was never open has no certificate for the time while it is sealed. It takes shares over its local socket, and has one then; without a
// socket it does not start.
func TestSealedForTheFirstTime(t *testing.T) {
	t.Parallel()
	w := newConfig(t)
	w.config.InitSeals, w.config.Socket = []string{"shamir:2/3"}, filepath.Join(w.config.Dir, "local")
	made, err := server.Init(t.Context(), w.config)
	if err != nil {
		t.Fatal(err)
	}
	certificate := filepath.Join(w.config.Dir, "sealed.pem")
	if err := os.Remove(certificate); err != nil {
		t.Fatal(err)
	}
	without := w.config
	without.Socket = ""
	if _, err := server.Start(t.Context(), without); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("without a socket: %v", err)
	}
	w.start()
	me := w.local("")
	for i, want := range []string{`"progress":1`, `"sealed":false`} {
		me.do("PUT", "sys/unseal", map[string]any{"key": made.Shares[i]}).want(t, "a share", 200, want)
	}
	w.Opened()
	w.vault("").do("GET", "sys/health", nil).want(t, "health", 200, `"sealed":false`)
	if _, err := os.Stat(certificate); err != nil {
		t.Error(err)
	}
}

// TestLocalSocketTaken: a socket that a server answers on is not taken from it, one that is left over is, and a file of another kind stays.
func TestLocalSocketTaken(t *testing.T) {
	t.Parallel()
	w, _ := waiting(t)
	if _, err := server.Start(t.Context(), w.config); fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("a second server: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(w.config.Dir, "init-secret")); !os.IsNotExist(err) {
		t.Errorf("the enrolment secret stays: %v", err)
	}
	l, err := net.Listen("unix", w.config.Socket)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.local("").do("GET", "sys/init", nil).want(t, "after one that died", 200, "false")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(w.config.Socket, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Start(t.Context(), w.config); fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("in the place of a file: %v", err)
	}
	if b, err := os.ReadFile(w.config.Socket); err != nil || string(b) != "mine" {
		t.Errorf("the file is gone: %q %v", b, err)
	}
}
