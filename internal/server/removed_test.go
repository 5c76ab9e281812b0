package server_test

import (
	"testing"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor/internal/identity"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// TestRemovedStaysRemoved: a stream that was let in before the removal and says hello during it makes no member. What is stored is looked
// at after the server has drained, when no handler can still be about to write.
func TestRemovedStaysRemoved(t *testing.T) {
	w := newWorld(t)
	w.made(&rotorv1.Key{Name: "records", Purpose: "encrypt", Custody: "fleet"})
	admin := w.client().Admin()
	for range 8 {
		const name = "a" // invited again each time
		d, err := identity.Read(w.join(name))
		if err != nil {
			t.Fatal(err)
		}
		h := d.HTTPClient()
		defer h.CloseIdleConnections()
		first, _ := hello(t, w, d, h)
		if err := first.Send(&rotorv1.HoldUp{Keys: []string{"records"}}); err != nil {
			t.Fatal(err)
		}
		if _, err := first.Receive(); err != nil {
			t.Fatal(err)
		}
		second := rotorv1.NewFleetServiceClient(h, "https://"+w.Address()).Hold(t.Context())
		if err := second.Send(nil); err != nil { // only the header
			t.Fatal(err)
		}
		up := helloUp(t, d)
		up.Keys = nil
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = first.Receive() // the removal ends it: now
			_ = second.Send(up)    // whether these arrive is chance
			_ = second.Send(&rotorv1.HoldUp{Keys: []string{"records"}})
		}()
		if _, err := admin.Fleet.Remove(t.Context(), connect.NewRequest(&rotorv1.RemoveRequest{Name: name})); err != nil {
			t.Fatal(err)
		}
		<-done
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w.start()
	all, err := w.client().Admin().Fleet.Instances(t.Context(), connect.NewRequest(&rotorv1.InstancesRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range all.Msg.GetInstances() {
		t.Errorf("removed, and a member: %v", i)
	}
}
