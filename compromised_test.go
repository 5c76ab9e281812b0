package rotor_test

import (
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// TestReadCompromised: a holder refuses what is under a compromised version; whoever has the right reads it at the server, and is told what it is.
func TestReadCompromised(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.create(&rotorv1.Key{Name: "records", Purpose: "encrypt", Custody: "fleet"})
	c.create(&rotorv1.Key{Name: "models", Purpose: "wrap"})
	a := c.mustDial("a", rotor.Config{Keys: []string{"records"}})
	message, err := a.Key("records").Encrypt(t.Context(), []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "f.rotor")
	if err := c.admin.EncryptFile(t.Context(), "models", strings.NewReader("y"), path, rotor.FileOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"records", "models"} {
		m := &rotorv1.ChangeRequest{Key: &rotorv1.KeyRef{Name: key}, Version: 1, Event: "compromise"}
		if _, err := c.admin.Admin().Keys.Change(t.Context(), connect.NewRequest(m)); err != nil {
			t.Fatal(err)
		}
	}
	out, suspect, err := c.admin.Key("records").DecryptCompromised(t.Context(), message)
	if err != nil || !suspect || string(out) != "x" {
		t.Errorf("%q, %v, %v", out, suspect, err)
	}
	if _, err := c.admin.OpenFile(t.Context(), path); rotor.CodeOf(err) != "wrong_state" {
		t.Errorf("without asking: %v", err)
	}
	f, suspect, err := c.admin.OpenCompromisedFile(t.Context(), path)
	if err != nil || !suspect {
		t.Fatalf("%v, %v", suspect, err)
	}
	defer f.Close()
	if b, err := f.ReadAll(t.Context()); err != nil || string(b) != "y" {
		t.Errorf("%q, %v", b, err)
	}
}
