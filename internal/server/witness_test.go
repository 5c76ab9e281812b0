package server_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/internal/delivery"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/identity"
	"github.com/rotorkms/rotor/internal/rpc"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// witnessed is a cluster with a key, an instance that holds it, and a copy of the store from before what the instance has seen last.
type witnessed struct {
	*world
	instance string // directory of the identity
	db, old  string
}

func newWitnessed(t *testing.T) *witnessed {
	t.Helper()
	w := &witnessed{world: newWorld(t)}
	w.db, w.old = filepath.Join(w.config.Dir, "rotor.db"), filepath.Join(t.TempDir(), "old.db")
	w.instance = w.join("a")
	w.create("records")
	w.stop()
	w.copy(w.db, w.old)
	w.start()
	w.create("later")
	w.hold()
	w.stop()
	return w
}

func (w *world) stop() {
	w.t.Helper()
	if err := w.Close(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) copy(from, to string) {
	w.t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// setBack puts the old copy in the place of the store, with all that the server itself knows of the newer one taken away.
func (w *witnessed) setBack() {
	w.t.Helper()
	w.copy(w.old, w.db)
	if err := os.Remove(filepath.Join(w.config.Dir, "anchor")); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) create(name string) {
	w.t.Helper()
	_, err := w.client().Admin().Keys.Create(w.t.Context(), connect.NewRequest(&rotorv1.CreateRequest{Key: &rotorv1.Key{
		Name: name, Purpose: "encrypt", Custody: "fleet", Algorithm: "XAES-256-GCM",
	}}))
	if err != nil {
		w.t.Fatal(err)
	}
}

// hold is one life of a process of the instance: it holds the key, hears how far the log is, and ends.
func (w *witnessed) hold() {
	w.t.Helper()
	c, err := rotor.Dial(w.t.Context(), rotor.Config{Identity: w.instance, Address: w.Address(), Keys: []string{"records"}})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		w.t.Fatal(err)
	}
}

// shows lets the instance turn to the server, which has to go to recovery mode, and starts it again.
func (w *witnessed) shows() []string {
	w.t.Helper()
	c, err := rotor.Dial(w.t.Context(), rotor.Config{Identity: w.instance, Address: w.Address()})
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = c.Close() }() // it holds nothing
	if err := w.Wait(); fault.CodeOf(err) != fault.Recovery {
		w.t.Fatalf("the server ended with %v", err)
	}
	return w.detected()
}

// detected starts the server again, and reads what it has found.
func (w *world) detected() []string {
	w.t.Helper()
	s, err := w.Restart(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	w.Server = s
	w.t.Cleanup(func() { _ = s.Close() }) // the recovery may have ended it
	r, err := w.roots().Show(w.t.Context(), connect.NewRequest(&rotorv1.ShowRootsRequest{}))
	if err != nil {
		w.t.Fatal(rpc.Decode(err))
	}
	return r.Msg.GetDetected()
}

func (w *world) roots() rotorv1.RootServiceClient {
	return rotorv1.NewRootServiceClient(as(w.t, w.admin), "https://"+w.Address())
}

// TestAnInstanceIsAWitness: a store that was set back with everything that the server knew of it is found by an instance that has seen more,
// and stays found at the next start, without the instance.
func TestAnInstanceIsAWitness(t *testing.T) {
	t.Parallel()
	w := newWitnessed(t)
	w.setBack()
	w.start()
	if got := w.shows(); len(got) != 1 || !strings.HasPrefix(got[0], "rolled back") {
		t.Errorf("detected %q", got)
	}
	if _, err := w.client().Admin().Keys.List(t.Context(), connect.NewRequest(&rotorv1.ListRequest{})); fault.CodeOf(err) != fault.Recovery {
		t.Errorf("it still serves: %v", err)
	}
	w.stop()
	if got := w.detected(); len(got) != 1 || !strings.HasPrefix(got[0], "rolled back") {
		t.Errorf("at the next start: %q", got)
	}
}

// TestTwoServersOnCopies: the copy has gone on by itself until it has as many entries as the instance has seen elsewhere.
func TestTwoServersOnCopies(t *testing.T) {
	t.Parallel()
	w := newWitnessed(t)
	w.setBack()
	w.start()
	for _, name := range []string{"c1", "c2", "c3", "c4", "c5", "c6"} {
		w.create(name)
	}
	if got := w.shows(); len(got) != 1 || !strings.HasPrefix(got[0], "forked") {
		t.Errorf("detected %q", got)
	}
}

// TestLiesOfWitnesses: a statement that the server did not sign, and one that is genuine and old, harm nobody.
func TestLiesOfWitnesses(t *testing.T) {
	t.Parallel()
	w := newWitnessed(t)
	path := filepath.Join(w.instance, "statement")
	genuine, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	other := newWitnessed(t)
	foreign, err := os.ReadFile(filepath.Join(other.instance, "statement"))
	if err != nil {
		t.Fatal(err)
	}
	w.start()
	w.create("more")
	lies := map[string][]byte{
		"nonsense": []byte("{}"), "cut off": genuine[:len(genuine)/2], "of another cluster": foreign, "old": genuine,
		"with a signature of another": []byte(strings.Replace(string(genuine), `"signature":"`, `"signature":"AAAA`, 1)),
	}
	for name, lie := range lies {
		if err := os.WriteFile(path, lie, 0o600); err != nil {
			t.Fatal(err)
		}
		w.hold()
		if _, err := w.client().Admin().Keys.List(t.Context(), connect.NewRequest(&rotorv1.ListRequest{})); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, lie := range lies { // and by a client that sends what it likes
		if err := w.says(lie); err != nil {
			t.Errorf("%s, said: %v", name, err)
		}
	}
}

// says opens a stream as the instance, with a statement in the hello and another one after it, and returns when a lease has come.
func (w *witnessed) says(statement []byte) error {
	w.t.Helper()
	dir, err := identity.Open(w.instance)
	if err != nil {
		w.t.Fatal(err)
	}
	defer dir.Close()
	private, err := delivery.NewPrivate()
	if err != nil {
		w.t.Fatal(err)
	}
	a := delivery.Address{Cluster: dir.Cluster(), Instance: "a", Incarnation: make([]byte, delivery.NonceSize), Session: make([]byte, delivery.NonceSize)}
	signature, err := dir.SignHello(delivery.HelloInput(a, private.Public()))
	if err != nil {
		w.t.Fatal(err)
	}
	stream := rotorv1.NewFleetServiceClient(as(w.t, w.instance), "https://"+w.Address()).Hold(w.t.Context())
	for _, m := range []*rotorv1.HoldUp{
		{Hello: &rotorv1.Hello{Incarnation: a.Incarnation, Session: a.Session, HpkePublic: private.Public(), Signature: signature, Statement: statement}},
		{Statement: statement}, {Beat: 1},
	} {
		if err := stream.Send(m); err != nil {
			break // Receive has the reason
		}
	}
	for {
		m, err := stream.Receive()
		if err != nil {
			return err
		}
		if m.GetLease() != nil {
			break
		}
	}
	if err := stream.Send(&rotorv1.HoldUp{Leave: true}); err != nil {
		return err
	}
	_ = stream.CloseRequest()
	for {
		if _, err := stream.Receive(); err != nil {
			return stream.CloseResponse()
		}
	}
}
