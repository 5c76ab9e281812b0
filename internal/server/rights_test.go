package server_test

import (
	"crypto/rand"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor/internal/delivery"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/identity"
	"github.com/rotorkms/rotor/internal/rpc"
	"github.com/rotorkms/rotor/internal/token"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

func (w *world) rules(text string) {
	w.t.Helper()
	if err := os.WriteFile(w.config.Rules, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	if err := w.Reload(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) made(k *rotorv1.Key) *rotorv1.Key {
	w.t.Helper()
	r, err := w.client().Admin().Keys.Create(w.t.Context(), connect.NewRequest(&rotorv1.CreateRequest{Key: k}))
	if err != nil {
		w.t.Fatal(err)
	}
	return r.Msg
}

const adminOnly = `version: 1
rules:
  - name: admins
    callers: ["admin/*"]
    actions: ["*"]
    keys: {namespace: "**", names: ["**"]}
`

// TestSignCannotMakeTokens: the right to sign is not the right to be anybody.
func TestSignCannotMakeTokens(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.made(&rotorv1.Key{Name: "models", Purpose: "sign"})
	w.rules(adminOnly + `  - name: signs models
    callers: ["spiffe://rotor.local/instance/a"]
    actions: ["sign"]
    keys: {namespace: "default", names: ["models"]}
`)
	h := as(t, w.join("a"))
	resp, err := as(t, "").Get("https://" + w.Address() + "/.well-known/jwks.json")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	set, err := token.ParseSet(b)
	if err != nil || len(set.Keys) != 1 {
		t.Fatalf("%v %s", err, b)
	}
	now, iss := time.Now(), "https://"+w.Address()
	input, err := token.Input(set.Keys[0].Algorithm, set.Keys[0].ID, token.Claims{
		Issuer: iss, Subject: "admin/root", Audience: "payments", IssuedAt: now.Unix(), NotBefore: now.Unix(), Expires: now.Add(1000 * time.Hour).Unix(), ID: "x", Scope: "everything",
	})
	if err != nil {
		t.Fatal(err)
	}
	keys := rotorv1.NewKeyServiceClient(h, "https://"+w.Address())
	out, err := keys.Sign(t.Context(), connect.NewRequest(&rotorv1.SignRequest{Key: &rotorv1.KeyRef{Name: "models"}, Message: input}))
	if err != nil {
		return
	}
	c, err := token.Verify(now, token.Assemble(input, out.Msg.GetSignature()), set, token.Expect{Issuer: iss, Audience: "payments"})
	if err == nil {
		t.Errorf("instance a has only sign, and made itself %+v", c)
	}
}

// TestTailEndsWithItsRight: who is taken out of the rules reads no further.
func TestTailEndsWithItsRight(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.rules(adminOnly + `  - name: audits
    callers: ["spiffe://rotor.local/instance/a"]
    actions: ["audit.read"]
`)
	path := w.join("a")
	tail, err := rotorv1.NewAuditServiceClient(as(t, path), "https://"+w.Address()).Tail(t.Context(), connect.NewRequest(&rotorv1.TailRequest{Follow: true}))
	if err != nil {
		t.Fatal(err)
	}
	if !tail.Receive() {
		t.Fatal(tail.Err())
	}
	w.rules(adminOnly)
	w.made(&rotorv1.Key{Name: "secret-project", Purpose: "encrypt"})
	end := time.AfterFunc(5*time.Second, func() { _ = tail.Close() })
	defer end.Stop()
	for tail.Receive() {
		if strings.Contains(string(tail.Msg().GetEntry()), "secret-project") {
			t.Fatal("it reads what happens after its right was taken away")
		}
	}
	if fault.CodeOf(rpc.Decode(tail.Err())) != fault.Denied {
		t.Error(tail.Err())
	}
}

// TestForbiddenLooksMissing: names and existence of keys stay with who may know.
func TestForbiddenLooksMissing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	wrap := w.made(&rotorv1.Key{Name: "payroll", Purpose: "wrap"})
	w.made(&rotorv1.Key{Name: "signer", Purpose: "sign"})
	w.rules(adminOnly)
	d, err := identity.Read(w.join("a"))
	if err != nil {
		t.Fatal(err)
	}
	h := d.HTTPClient()
	defer h.CloseIdleConnections()
	keys := rotorv1.NewKeyServiceClient(h, "https://"+w.Address())
	_, err = keys.Unwrap(t.Context(), connect.NewRequest(&rotorv1.UnwrapRequest{Wrap: &rotorv1.FileWrap{KeyId: wrap.GetId(), Version: 1}}))
	if strings.Contains(err.Error(), "payroll") {
		t.Errorf("unwrap names the key: %v", err)
	}
	s, _ := hello(t, w, d, h)
	defer s.CloseRequest()
	_ = s.Send(&rotorv1.HoldUp{Keys: []string{"signer", "signex"}})
	var told []string
	for range 2 {
		m, err := s.Receive()
		if err != nil {
			t.Fatal(err)
		}
		told = append(told, strings.ReplaceAll(rpc.Parse(m.GetRefusal().GetFault()).Error(), m.GetRefusal().GetName(), "NAME"))
	}
	if told[0] != told[1] {
		t.Errorf("refusals differ: %q", told)
	}
	_ = s.Send(&rotorv1.HoldUp{Acks: []*rotorv1.Ack{{KeyId: wrap.GetId(), Incarnation: wrap.GetIncarnation(), Epoch: wrap.GetEpoch(), Proof: []byte("x")}}})
	_ = s.Send(&rotorv1.HoldUp{Leave: true})
	_, err = s.Receive()
	if err != nil && strings.Contains(err.Error(), "payroll") {
		t.Errorf("an acknowledgement names the key: %v", err)
	}
}

func helloUp(t *testing.T, d *identity.Dir) *rotorv1.HoldUp {
	t.Helper()
	private, err := delivery.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	a := delivery.Address{Cluster: d.Cluster(), Instance: "a", Incarnation: make([]byte, delivery.NonceSize), Session: make([]byte, delivery.NonceSize)}
	rand.Read(a.Incarnation)
	rand.Read(a.Session)
	sig, err := d.SignHello(delivery.HelloInput(a, private.Public()))
	if err != nil {
		t.Fatal(err)
	}
	return &rotorv1.HoldUp{Hello: &rotorv1.Hello{Incarnation: a.Incarnation, Session: a.Session, HpkePublic: private.Public(), Signature: sig, Namespace: d.Namespace()}}
}

func hello(t *testing.T, w *world, d *identity.Dir, h *http.Client) (*connect.BidiStreamForClient[rotorv1.HoldUp, rotorv1.HoldDown], *rotorv1.HoldUp) {
	t.Helper()
	s, up := rotorv1.NewFleetServiceClient(h, "https://"+w.Address()).Hold(t.Context()), helloUp(t, d)
	if err := s.Send(up); err != nil {
		t.Fatal(err)
	}
	return s, up
}
