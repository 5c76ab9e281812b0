package rotor_test

import (
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// TestAttemptsOfHolders: what a process refuses by itself because the version is retired restarts the server's wait before the destruction and is
// counted there, also when the process ends before its next lease request.
func TestAttemptsOfHolders(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64 // of the server's clock, in seconds
	c := startClusterAt(t, func() time.Time { return time.Now().Add(time.Duration(ahead.Load()) * time.Second) })
	c.create(&rotorv1.Key{Name: "records", Purpose: "encrypt", Custody: "fleet"})
	a := c.mustDial("a", rotor.Config{Keys: []string{"records"}})
	message, err := a.Key("records").Encrypt(t.Context(), []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	c.rotate("records")
	r, err := c.admin.Admin().Keys.Retire(t.Context(), connect.NewRequest(&rotorv1.RetireRequest{Key: &rotorv1.KeyRef{Name: "records"}, Version: 1}))
	if err != nil {
		t.Fatal(err)
	}
	retired := r.Msg.GetVersions()[0].GetRetired().AsTime()
	ahead.Add(2)                                             // attempts are written down once a second
	for code := rotor.Code(""); code != "version_retired"; { // until it has heard of the retirement
		_, err := a.Key("records").Decrypt(t.Context(), message)
		code = rotor.CodeOf(err)
	}
	version := func() *rotorv1.Version {
		t.Helper()
		r, err := c.admin.Admin().Keys.Get(t.Context(), connect.NewRequest(&rotorv1.KeyRef{Name: "records"}))
		if err != nil {
			t.Fatal(err)
		}
		return r.Msg.GetVersions()[0]
	}
	for version().GetAttempts() == 0 { // with the next lease request
	}
	first := version()
	if !first.GetRetired().AsTime().After(retired) {
		t.Errorf("the wait goes on since %v", retired)
	}
	ahead.Add(2)
	if _, err := a.Key("records").Decrypt(t.Context(), message); rotor.CodeOf(err) != "version_retired" {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil { // says what was left to say
		t.Fatal(err)
	}
	if last := version(); last.GetAttempts() != first.GetAttempts()+1 || !last.GetRetired().AsTime().After(first.GetRetired().AsTime()) {
		t.Errorf("%d attempts, before it closed %d", last.GetAttempts(), first.GetAttempts())
	}
}
