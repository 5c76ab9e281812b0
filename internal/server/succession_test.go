package server_test

import (
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/server"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// TestExpiredAuthority rehearses docs/runbooks/expired-ca.md: every certificate of the cluster ended while its server stood. A start gives the authority
// another certificate, who has store and seal is an administrator again in the same directory, and instances join.
func TestExpiredAuthority(t *testing.T) {
	t.Parallel()
	w := newWorldAt(t, -10*365*24*time.Hour-24*time.Hour)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w.offset.Store(0)
	w.start()
	c, err := rotor.Dial(t.Context(), rotor.Config{Identity: w.admin, Address: w.Address()})
	if err == nil {
		_, err = c.Admin().Keys.List(t.Context(), connect.NewRequest(&rotorv1.ListRequest{}))
	}
	if fault.CodeOf(err) != fault.Unauthenticated {
		t.Fatalf("a certificate of an administrator that ended nine years ago: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := server.NewAdmin(t.Context(), w.config, "admin", w.admin); err != nil {
		t.Fatalf("the same directory, from store and seal: %v", err)
	}
	w.start()
	w.join("m")
}
