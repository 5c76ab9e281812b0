package server_test

import (
	"bufio"
	"crypto/tls"
	"io"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/internal/identity"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// TestRemovedStaysRemoved: a stream that was let in before the removal and says hello during it makes no member. What is stored is looked
// at after the server has drained, when no handler can still be about to write.
func TestRemovedStaysRemoved(t *testing.T) {
	t.Parallel()
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

// TestRemovedBeforeTheBody: who was let in with the header of a request, and is removed before the body comes, does nothing more. A pool of such
// requests would otherwise be a way to come back.
func TestRemovedBeforeTheBody(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.rules(adminOnly + "  - {name: makers, callers: [credential/*], actions: [key.create], keys: {namespace: default, names: [\"**\"]}}\n")
	admin := w.client().Admin()
	path := filepath.Join(t.TempDir(), "second")
	token, err := admin.Auth.InviteAdmin(t.Context(), connect.NewRequest(&rotorv1.InviteAdminRequest{Name: "second"}))
	if err != nil {
		t.Fatal(err)
	}
	c, err := rotor.Dial(t.Context(), rotor.Config{Identity: path, JoinToken: token.Msg.GetToken(), Address: w.Address()})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	d, err := identity.Read(path)
	if err != nil {
		t.Fatal(err)
	}
	shown := d.ClientTLS(func(string) bool { return true })
	_, credential := w.credential("ci")
	s := w.session(credential)
	invite := w.begun(shown, "AuthService/InviteAdmin", "", `{"name":"third"}`)
	first := w.begun(shown, "KeyService/Create", "", `{"key":{"name":"first","purpose":"encrypt"}}`)
	last := w.begun(&tls.Config{InsecureSkipVerify: true}, "KeyService/Create", s.Token(), `{"key":{"name":"last","purpose":"encrypt"}}`)
	if status := first(); status != http.StatusOK {
		t.Errorf("while it is an administrator: %d", status)
	}
	if _, err := admin.Auth.RemoveAdmin(t.Context(), connect.NewRequest(&rotorv1.RemoveAdminRequest{Name: "second"})); err != nil {
		t.Fatal(err)
	}
	if status := invite(); status != http.StatusForbidden {
		t.Errorf("one who was removed invites another administrator: %d", status)
	}
	if _, err := admin.Auth.RevokeSessions(t.Context(), connect.NewRequest(&rotorv1.RevokeSessionsRequest{Caller: "credential/ci"})); err != nil {
		t.Fatal(err)
	}
	if status := last(); status != http.StatusUnauthorized {
		t.Errorf("a revoked session makes a key: %d", status)
	}
}

// begun sends the header of a request, and returns once the server has let the caller in and waits for the body. What it returns sends that, and gives
// the status of the answer.
func (w *world) begun(shown *tls.Config, procedure, bearer, body string) (send func() int) {
	w.t.Helper()
	shown = shown.Clone()
	shown.NextProtos = []string{"http/1.1"}
	conn, err := (&tls.Dialer{Config: shown}).DialContext(w.t.Context(), "tcp", w.Address())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close() })
	header := "POST /rotor.v1." + procedure + " HTTP/1.1\r\nHost: rotor\r\nContent-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n"
	if bearer != "" {
		header += "Authorization: Bearer " + bearer + "\r\n"
	}
	if _, err := io.WriteString(conn, header+"\r\n"); err != nil {
		w.t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	if line, err := in.ReadString('\n'); err != nil || !strings.Contains(line, "100 Continue") {
		w.t.Fatalf("%q, %v", line, err)
	}
	if _, err := in.ReadString('\n'); err != nil {
		w.t.Fatal(err)
	}
	return func() int {
		if _, err := io.WriteString(conn, body); err != nil {
			w.t.Fatal(err)
		}
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			w.t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode
	}
}
