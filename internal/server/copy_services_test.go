//go:build services

package server_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/server"
	"github.com/rotorkms/rotor/internal/testenv"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// TestCopyBetweenEngines moves a cluster with data from its file to PostgreSQL, to etcd and back into a file. After each move the server decrypts what
// it encrypted on every engine before, the log verifies, and the engine that it left is refused.
func TestCopyBetweenEngines(t *testing.T) {
	w := newWorld(t)
	key := &rotorv1.KeyRef{Name: "records"}
	w.made(&rotorv1.Key{Name: "records", Purpose: "encrypt"})
	ciphertexts := map[string][]byte{}
	const versions = 300 // in pages of their own
	c := w.operator()
	c.must("POST", "transit/keys/old", nil)
	first := c.must("POST", "transit/encrypt/old", m{"plaintext": b64("x")}).str("ciphertext")
	for range versions - 1 {
		c.must("POST", "transit/keys/old/rotate", nil)
	}
	use := func(engine string) {
		t.Helper()
		keys := w.client().Admin().Keys
		for on, c := range ciphertexts {
			r, err := keys.Decrypt(t.Context(), connect.NewRequest(&rotorv1.DecryptRequest{Key: key, Ciphertext: c}))
			if err != nil || string(r.Msg.GetPlaintext()) != "made on "+on {
				t.Errorf("on %s, decrypt what was made on %s: %v", engine, on, err)
			}
		}
		w.made(&rotorv1.Key{Name: "made-on-" + engine, Purpose: "encrypt"})
		r, err := keys.Encrypt(t.Context(), connect.NewRequest(&rotorv1.EncryptRequest{Key: key, Plaintext: []byte("made on " + engine)}))
		if err != nil {
			t.Fatal(err)
		}
		ciphertexts[engine] = r.Msg.GetCiphertext()
		all, err := keys.List(t.Context(), connect.NewRequest(&rotorv1.ListRequest{}))
		if err != nil || len(all.Msg.GetKeys()) != 2+len(ciphertexts) {
			t.Errorf("on %s: %d keys, %v", engine, len(all.Msg.GetKeys()), err)
		}
		v := w.vault(c.token)
		if a := v.must("POST", "transit/decrypt/old", m{"ciphertext": first}); a.str("plaintext") != b64("x") {
			t.Errorf("on %s: version 1 of %d: %s", engine, versions, a.text)
		}
		if a := v.must("POST", "transit/keys/old/rotate", nil); a.str("latest_version") != fmt.Sprint(versions+len(ciphertexts)) {
			t.Errorf("on %s: %s", engine, a.text)
		}
		status, err := w.client().Admin().Server.Status(t.Context(), connect.NewRequest(&rotorv1.StatusRequest{}))
		if err != nil || status.Msg.GetEngine() != strings.TrimSuffix(engine, "-again") {
			t.Errorf("on %s: %v, %v", engine, status, err)
		}
	}
	use("bolt")
	from := "bolt:"
	for _, to := range []struct{ engine, url string }{
		{"postgres", testenv.Postgres(t).URL},
		{"etcd", "etcd://" + testenv.Etcd(t, "3.4", 1).Hosts() + "/a/cluster"},
		{"etcd-again", "etcd://" + testenv.Etcd(t, "3.7", 3).Hosts()},
		{"bolt-again", "bolt:"},
	} {
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if to.url == "bolt:" { // the old file says that it has moved, and is put away
			if err := os.Rename(filepath.Join(w.config.Dir, "rotor.db"), filepath.Join(w.config.Dir, "old.db")); err != nil {
				t.Fatal(err)
			}
		}
		c := server.CopyConfig{Dir: w.config.Dir, From: from, To: to.url}
		result, err := server.Copy(t.Context(), c)
		if err != nil || result.Records < 10 {
			t.Fatalf("copy to %s: %+v, %v", to.engine, result, err)
		}
		w.config.Store = from
		_, err = server.Start(t.Context(), w.config)
		wants(t, "the old store", err, fault.StoreMoved)
		_, err = server.NewAdmin(t.Context(), w.config, "mallory", filepath.Join(t.TempDir(), "mallory"))
		wants(t, "an administrator of the old store", err, fault.StoreMoved)
		_, err = server.Copy(t.Context(), c)
		wants(t, "once more", err, fault.Exists)
		w.config.Store, from = to.url, to.url
		w.start()
		use(to.engine)
	}
}

// TestCopyUnderAServer: a server that runs on the source stops by itself and says why, and what it wrote until then is not lost.
func TestCopyUnderAServer(t *testing.T) {
	w := newWorld(t)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	cluster := testenv.Etcd(t, "3.7", 1)
	first, second := "etcd://"+cluster.Hosts()+"/first", "etcd://"+cluster.Hosts()+"/second"
	if _, err := server.Copy(t.Context(), server.CopyConfig{Dir: w.config.Dir, From: "bolt:", To: first}); err != nil {
		t.Fatal(err)
	}
	w.config.Store = first
	s, err := server.Start(t.Context(), w.config)
	if err != nil {
		t.Fatal(err)
	}
	w.Server = s
	w.made(&rotorv1.Key{Name: "late", Purpose: "encrypt"})
	move := server.CopyConfig{From: first, To: second}
	if _, err := server.Copy(t.Context(), move); err != nil {
		wants(t, "copy under a server", err, fault.Conflict)
	}
	wants(t, "the server", s.Wait(), fault.StoreMoved)
	if _, err := server.Copy(t.Context(), move); err != nil && fault.CodeOf(err) != fault.Exists { // what the first copy has ended
		t.Fatal(err)
	}
	w.config.Store = second
	w.start()
	got, err := w.client().Admin().Keys.List(t.Context(), connect.NewRequest(&rotorv1.ListRequest{}))
	if err != nil || len(got.Msg.GetKeys()) != 1 {
		t.Errorf("after the move: %v, %v", got, err)
	}
}

// TestCopyGivenUp: what ends in the middle leaves a target that no server takes; given up, the source goes on.
func TestCopyGivenUp(t *testing.T) {
	w := newWorld(t)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	target := "etcd://" + testenv.Etcd(t, "3.4", 1).Hosts() + "/copy"
	ctx, cancel := context.WithCancel(t.Context())
	_, err := server.Copy(ctx, server.CopyConfig{Dir: w.config.Dir, From: "bolt:", To: target, Progress: func(int, int) { cancel() }})
	if err == nil {
		t.Fatal("the copy was not cut off")
	}
	_, err = server.Start(t.Context(), w.config)
	wants(t, "the source", err, fault.StoreMoved)
	if f := (*fault.Error)(nil); !errors.As(err, &f) || !strings.Contains(f.HintText(), "--abort") {
		t.Errorf("no hint: %v", err)
	}
	other := w.config
	other.Store = target
	_, err = server.Start(t.Context(), other)
	wants(t, "the target", err, fault.StoreIncomplete)
	if err := server.AbortCopy(t.Context(), server.CopyConfig{Dir: w.config.Dir, From: "bolt:"}); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.made(&rotorv1.Key{Name: "goes-on", Purpose: "encrypt"})
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Copy(t.Context(), server.CopyConfig{Dir: w.config.Dir, From: "bolt:", To: target}); err != nil {
		t.Fatal(err)
	}
	w.config.Store = target
	w.start()
}
