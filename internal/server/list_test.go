package server_test

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"testing"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor/internal/identity"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// TestDataSetsOfOthers: who has dataset on one key sees no data sets of other keys.
func TestDataSetsOfOthers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.made(&rotorv1.Key{Name: "payroll", Purpose: "encrypt"})
	w.rules(adminOnly + `  - name: one key
    callers: ["spiffe://rotor.local/instance/a"]
    actions: ["dataset"]
    keys: {namespace: "default", names: ["mine"]}
`)
	a, board := w.join("a"), w.join("board")
	d, err := identity.Read(board)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"shards":["0"],"floor":true}`) })}
	l := listen(t, d)
	go func() { _ = s.Serve(l) }()
	defer s.Close()
	_, err = w.client().Admin().Data.Register(t.Context(), connect.NewRequest(&rotorv1.RegisterRequest{DataSet: &rotorv1.DataSet{
		Name: "board", Url: "https://" + l.Addr().String(), Key: &rotorv1.KeyRef{Name: "payroll"},
	}}))
	if err != nil {
		t.Fatal(err)
	}
	out, err := rotorv1.NewDataServiceClient(as(t, a), "https://"+w.Address()).DataSets(t.Context(), connect.NewRequest(&rotorv1.DataSetsRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, set := range out.Msg.GetDataSets() {
		t.Errorf("a sees %v", set)
	}
}

func listen(t *testing.T, d *identity.Dir) net.Listener {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", d.ServerTLS(func(string) bool { return true }))
	if err != nil {
		t.Fatal(err)
	}
	return l
}
