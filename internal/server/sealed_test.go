package server_test

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/identity"
	"github.com/rotorkms/rotor/internal/rpc"
	"github.com/rotorkms/rotor/internal/seal/local"
	"github.com/rotorkms/rotor/internal/server"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// custodian is a client that takes the certificate of the server, sealed or not.
func (w *world) custodian() rotorv1.SealServiceClient {
	w.t.Helper()
	dir, err := identity.Read(w.admin)
	if err != nil {
		w.t.Fatal(err)
	}
	h := dir.PeerClient(dir.ClientTLS(func(id string) bool { return id == dir.ServerID() || id == dir.SealedID() }))
	w.t.Cleanup(h.CloseIdleConnections)
	return rotorv1.NewSealServiceClient(h, "https://"+w.Address())
}

// sealedWorld is a cluster that shares alone open, whose server is sealed.
func sealedWorld(t *testing.T, seals ...string) (*world, []string) {
	t.Helper()
	w := newConfig(t)
	w.config.InitSeals = seals
	made, err := server.Init(t.Context(), w.config)
	if err != nil {
		t.Fatal(err)
	}
	w.admin = made.AdminDir
	w.start()
	return w, made.Shares
}

func (w *world) get(path string) (int, string) {
	w.t.Helper()
	r, err := as(w.t, "").Get("https://" + w.Address() + path)
	if err != nil {
		w.t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

// unsealWith brings shares and waits until the server serves.
func (w *world) unsealWith(shares ...string) {
	w.t.Helper()
	for _, s := range shares {
		if _, err := w.custodian().Unseal(w.t.Context(), connect.NewRequest(&rotorv1.UnsealRequest{Share: s})); err != nil {
			w.t.Fatal(rpc.Decode(err))
		}
	}
	w.Opened()
}

func codeOf(err error) fault.Code {
	if err == nil {
		return ""
	}
	return fault.CodeOf(rpc.Decode(err))
}

// TestSealed: a sealed server says that it is, takes shares, and answers nothing else, not even who asks; with enough of them it serves, at
// the same address. A start seals it again.
func TestSealed(t *testing.T) {
	t.Parallel()
	w, shares := sealedWorld(t, "shamir:2/3")
	if len(shares) != 3 {
		t.Fatalf("%d shares", len(shares))
	}
	if _, err := os.Stat(filepath.Join(w.config.Dir, "seal.key")); !os.IsNotExist(err) {
		t.Errorf("a key file was made that nobody asked for: %v", err)
	}
	address := w.Address()
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 503, "/.well-known/jwks.json": 503, "/metrics": 200, "/": 503, "/debug/pprof/heap": 503, "/v1/transit/keys/a": 503} {
		if status, body := w.get(path); status != want || want == 503 && !strings.Contains(body, "sealed") || path == "/readyz" && !strings.Contains(body, "(shares)") ||
			path == "/metrics" && !strings.Contains(body, "\nrotor_sealed_reason{reason=\"shares\"} 1\n") {
			t.Errorf("%s: %d %q", path, status, body)
		}
	}
	h := as(t, w.admin)
	_, err := rotorv1.NewKeyServiceClient(h, "https://"+address).List(t.Context(), connect.NewRequest(&rotorv1.ListRequest{}))
	if codeOf(err) != fault.Sealed {
		t.Errorf("a key: %v", err)
	}
	_, err = rotorv1.NewJoinServiceClient(h, "https://"+address).Join(t.Context(), connect.NewRequest(&rotorv1.JoinRequest{}))
	if codeOf(err) != fault.Sealed {
		t.Errorf("a join: %v", err)
	}
	c := w.custodian()
	if _, err = c.Seal(t.Context(), connect.NewRequest(&rotorv1.SealRequest{})); codeOf(err) != fault.Sealed {
		t.Errorf("what needs a right: %v", err)
	}
	if err := w.Reload(); fault.CodeOf(err) != fault.Sealed {
		t.Errorf("reload: %v", err)
	}
	p, err := c.Unseal(t.Context(), connect.NewRequest(&rotorv1.UnsealRequest{Share: shares[2]}))
	if err != nil || p.Msg.GetHave() != 1 || p.Msg.GetThreshold() != 2 || p.Msg.GetDone() {
		t.Fatalf("%v, %v", p, err)
	}
	state, err := c.Status(t.Context(), connect.NewRequest(&rotorv1.SealStatusRequest{}))
	if err != nil || !state.Msg.GetSealed() || state.Msg.GetReason() != "shares" || len(state.Msg.GetShares()) != 1 || state.Msg.GetShares()[0].GetHave() != 1 {
		t.Errorf("%v, %v", state, err)
	}
	if _, err = c.Unseal(t.Context(), connect.NewRequest(&rotorv1.UnsealRequest{Share: shares[2]})); codeOf(err) != fault.ShareDuplicate {
		t.Errorf("the same again: %v", err)
	}
	dir, err := identity.Read(w.admin)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := dir.HTTPClient().Get("https://" + address + "/healthz"); err == nil {
		r.Body.Close()
		t.Error("a client takes the certificate of a sealed server for the server's")
	}
	w.unsealWith(shares[0])
	if w.Address() != address {
		t.Errorf("it moved from %s to %s", address, w.Address())
	}
	w.made(&rotorv1.Key{Name: "records", Purpose: "encrypt"})
	if status, _ := w.get("/readyz"); status != http.StatusOK {
		t.Errorf("ready: %d", status)
	}
	for _, s := range shares {
		if strings.Contains(w.log.String(), s) || strings.Contains(w.log.String(), s[10:30]) {
			t.Error("the log holds a share")
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w.start()
	if status, _ := w.get("/readyz"); status != http.StatusServiceUnavailable {
		t.Errorf("ready after a start: %d", status)
	}
	w.unsealWith(shares[0], shares[1])
	if _, err := w.client().Admin().Keys.Get(t.Context(), connect.NewRequest(&rotorv1.KeyRef{Name: "records"})); err != nil {
		t.Errorf("the key is gone: %v", err)
	}
}

// TestSealedClose: a server that nobody opens stops when it is told to.
func TestSealedClose(t *testing.T) {
	t.Parallel()
	w, _ := sealedWorld(t, "shamir:2/2")
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}

// TestSharesAndFile: with a composition neither part opens alone, and what a thief of the directory has is not enough.
func TestSharesAndFile(t *testing.T) {
	t.Parallel()
	w, shares := sealedWorld(t, "shamir:2/2+local")
	w.unsealWith(shares...)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(w.config.Dir, "seal.key")
	if err := os.Rename(key, key+".away"); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Start(t.Context(), w.config); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("without the file: %v", err)
	}
	if err := os.Rename(key+".away", key); err != nil {
		t.Fatal(err)
	}
	w.start()
	if status, _ := w.get("/readyz"); status != http.StatusServiceUnavailable {
		t.Errorf("the file alone opened it: %d", status)
	}
	w.unsealWith(shares...)
}

// TestSealCommand: whoever may seal the server does, and then it does not open by itself, though its key file is there.
func TestSealCommand(t *testing.T) {
	t.Parallel()
	w, shares := sealedWorld(t, "local", "shamir:2/2")
	c := w.custodian()
	stranger := rotorv1.NewSealServiceClient(as(t, ""), "https://"+w.Address())
	if _, err := stranger.Seal(t.Context(), connect.NewRequest(&rotorv1.SealRequest{})); codeOf(err) != fault.Unauthenticated {
		t.Errorf("a stranger: %v", err)
	}
	for name, call := range map[string]func() error{
		"change": func() error {
			_, err := stranger.Change(t.Context(), connect.NewRequest(&rotorv1.SealChangeRequest{}))
			return err
		},
		"rekey": func() error {
			_, err := stranger.StartRekey(t.Context(), connect.NewRequest(&rotorv1.StartRekeyRequest{Shares: "2/2"}))
			return err
		},
	} {
		if err := call(); codeOf(err) != fault.Unauthenticated {
			t.Errorf("a stranger, %s: %v", name, err)
		}
	}
	if _, err := c.Seal(t.Context(), connect.NewRequest(&rotorv1.SealRequest{})); err != nil {
		t.Fatal(err)
	}
	if err := w.Wait(); fault.CodeOf(err) != fault.Sealed {
		t.Fatalf("it ended with %v", err)
	}
	s, err := w.Restart(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w.Server = s
	t.Cleanup(func() { _ = s.Close() })
	if status, body := w.get("/readyz"); status != http.StatusServiceUnavailable || !strings.Contains(body, "(told)") {
		t.Errorf("ready: %d %q", status, body)
	}
	w.unsealWith(shares...)
	if status, body := w.get("/readyz"); status != http.StatusOK {
		t.Errorf("after it was unsealed: %d %q", status, body)
	}
	w.made(&rotorv1.Key{Name: "records", Purpose: "encrypt"})
}

// TestSealers: a sealer of the configuration gets into the wrap set and out of it while the server runs, and opens it at the next start.
func TestSealers(t *testing.T) {
	t.Parallel()
	w := newConfig(t)
	second := filepath.Join(t.TempDir(), "second.key")
	if _, err := local.Create(second); err != nil {
		t.Fatal(err)
	}
	first := filepath.Join(w.config.Dir, "seal.key")
	w.config.Seals = []server.Seal{{Name: "first", Type: "local", KeyFile: first}, {Name: "second", Type: "local", KeyFile: second}}
	w.config.InitSeals = []string{"first"}
	made, err := server.Init(t.Context(), w.config)
	if err != nil {
		t.Fatal(err)
	}
	w.admin = made.AdminDir
	w.start()
	change := func(what, sealer string) *rotorv1.SealStatus {
		t.Helper()
		r, err := w.custodian().Change(t.Context(), connect.NewRequest(&rotorv1.SealChangeRequest{Change: what, Sealer: sealer}))
		if err != nil {
			t.Fatal(rpc.Decode(err))
		}
		return r.Msg
	}
	if m := change("add", "second"); len(m.GetMembers()) != 2 || !strings.HasPrefix(m.GetWeakest(), "local:") {
		t.Errorf("%v", m)
	}
	change("rotate", "second")
	if m := change("remove", "first"); len(m.GetMembers()) != 1 {
		t.Errorf("%v", m)
	}
	w.made(&rotorv1.Key{Name: "records", Purpose: "encrypt"})
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(first); err != nil {
		t.Fatal(err)
	}
	w.start()
	if _, err := w.client().Admin().Keys.Get(t.Context(), connect.NewRequest(&rotorv1.KeyRef{Name: "records"})); err != nil {
		t.Errorf("with the second alone: %v", err)
	}
}

func TestBadSeals(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		seals []server.Seal
		named string
	}{
		"no name":      {[]server.Seal{{Type: "local", KeyFile: "k"}}, "seals[0].name"},
		"twice":        {[]server.Seal{{Name: "a", Type: "local", KeyFile: "k"}, {Name: "a", Type: "local", KeyFile: "k"}}, "seals[1].name"},
		"no such type": {[]server.Seal{{Name: "a", Type: "shamir"}}, "seals[0].type"},
		"incomplete":   {[]server.Seal{{Name: "a", Type: "local"}}, "seals[0].key_file"},
		"no PIN":       {[]server.Seal{{Name: "a", Type: "pkcs11", Module: "/m.so", Token: "t", Key: "k"}}, "seals[0].pin_file"},
	} {
		w := newConfig(t)
		w.config.Seals = c.seals
		if _, err := server.Init(t.Context(), w.config); fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), c.named) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
