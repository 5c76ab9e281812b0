package rotor_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/identity"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// TestCopiedIdentity starts two processes' worth of one identity in two directories: the second is refused while the first lives, and
// is the instance once the first has left.
func TestCopiedIdentity(t *testing.T) {
	c := startCluster(t)
	c.create(&rotorv1.Key{Name: "records", Purpose: "encrypt", Custody: "fleet"})
	path, other := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "copy")
	out, err := c.admin.Admin().Fleet.Invite(t.Context(), connect.NewRequest(&rotorv1.InviteRequest{Name: "a"}))
	if err != nil {
		t.Fatal(err)
	}
	first, err := rotor.Dial(t.Context(), rotor.Config{Identity: path, JoinToken: out.Msg.GetToken(), Keys: []string{"records"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rotor.Dial(t.Context(), rotor.Config{Identity: path}); fault.CodeOf(err) != fault.IdentityInUse {
		t.Fatalf("one directory: %v", err)
	}
	if err := os.CopyFS(other, os.DirFS(path)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(other, "identity.json"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := rotor.Dial(t.Context(), rotor.Config{Identity: other, Keys: []string{"records"}}); fault.CodeOf(err) != fault.IdentityInUse {
		t.Fatalf("a copy of the directory: %v", err)
	}
	if _, err := first.Key("records").Encrypt(t.Context(), []byte("x")); err != nil {
		t.Fatalf("the first was disturbed: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second, err := rotor.Dial(t.Context(), rotor.Config{Identity: other, Keys: []string{"records"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestJoinTokenOnce uses one token from two directories.
func TestJoinTokenOnce(t *testing.T) {
	c := startCluster(t)
	out, err := c.admin.Admin().Fleet.Invite(t.Context(), connect.NewRequest(&rotorv1.InviteRequest{Name: "a", TtlNs: int64(time.Minute)}))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "a")
	client, err := rotor.Dial(t.Context(), rotor.Config{Identity: path, JoinToken: out.Msg.GetToken()})
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	thief := filepath.Join(t.TempDir(), "b")
	if _, err := rotor.Dial(t.Context(), rotor.Config{Identity: thief, JoinToken: out.Msg.GetToken()}); fault.CodeOf(err) != fault.JoinTokenUsed {
		t.Fatal(err)
	}
	if d, err := identity.Read(thief); err != nil || d.Joined() {
		t.Fatalf("the thief joined: %v", err)
	}
}
