package server_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/server"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// TestQuotas: keys of a namespace, versions of a key and instances have room for so many, and a reload makes more.
func TestQuotas(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.reconfigure(func(c *server.Config) { c.Limits = server.Limits{Keys: 2, Versions: 2, Instances: 1} })
	admin := w.client().Admin()
	create := func(name string) fault.Code {
		_, err := admin.Keys.Create(t.Context(), connect.NewRequest(&rotorv1.CreateRequest{Key: &rotorv1.Key{Name: name, Purpose: "encrypt", Custody: "fleet"}}))
		return code(err)
	}
	rotate := func() fault.Code {
		_, err := admin.Keys.Rotate(t.Context(), connect.NewRequest(&rotorv1.RotateRequest{Key: &rotorv1.KeyRef{Name: "a"}}))
		return code(err)
	}
	for i, want := range []fault.Code{"", "", fault.QuotaReached} {
		if c := create(string(rune('a' + i))); c != want {
			t.Errorf("key %d: %q", i+1, c)
		}
	}
	if c := create("a"); c != fault.QuotaReached && c != fault.Exists {
		t.Errorf("a name that is taken: %q", c)
	}
	if c := rotate(); c != "" {
		t.Errorf("second version: %q", c)
	}
	for range 5000 { // nobody holds the key, so the rotation goes through by itself
		r, err := admin.Keys.Get(t.Context(), connect.NewRequest(&rotorv1.KeyRef{Name: "a"}))
		if err != nil {
			t.Fatal(err)
		}
		if r.Msg.GetTarget() == 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if c := rotate(); c != fault.QuotaReached {
		t.Errorf("third version: %q", c)
	}
	c, err := rotor.Dial(t.Context(), rotor.Config{Identity: w.join("one"), Address: w.Address(), Keys: []string{"a"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	invite := func(name string) fault.Code {
		_, err := admin.Fleet.Invite(t.Context(), connect.NewRequest(&rotorv1.InviteRequest{Name: name}))
		return code(err)
	}
	if c := invite("two"); c != fault.QuotaReached {
		t.Errorf("second instance: %q", c)
	}
	if c := invite("one"); c != "" {
		t.Errorf("the first one again: %q", c)
	}
	w.source.Limits = server.Limits{}
	if err := w.Reload(); err != nil {
		t.Fatal(err)
	}
	if a, b := create("c"), invite("two"); a != "" || b != "" {
		t.Errorf("after the reload: %q, %q", a, b)
	}
}

// TestDestroyFloor: who makes a key cannot choose one approval where the server asks for two; a workshop asks for none more than the key.
func TestDestroyFloor(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	create := func(name string, approvals uint32) fault.Code {
		_, err := w.client().Admin().Keys.Create(t.Context(), connect.NewRequest(&rotorv1.CreateRequest{
			Key: &rotorv1.Key{Name: name, Purpose: "encrypt", Rotation: &rotorv1.Rotation{DestroyApprovals: approvals}},
		}))
		return code(err)
	}
	if one, two := create("a", 1), create("b", 2); one != fault.Invalid || two != "" {
		t.Errorf("with one %q, with two %q", one, two)
	}
	w.reconfigure(func(c *server.Config) { c.Limits = server.Limits{DestroyApprovals: 3} })
	if two, three := create("c", 2), create("d", 3); two != fault.Invalid || three != "" {
		t.Errorf("where three are asked for: with two %q, with three %q", two, three)
	}
	w.reconfigure(func(c *server.Config) { c.Profile, c.Limits = server.ProfileDev, server.Limits{} })
	if one := create("e", 1); one != "" {
		t.Errorf("in a workshop: %q", one)
	}
	for name, l := range map[string]server.Limits{"17": {DestroyApprovals: 17}, "-1": {DestroyApprovals: -1}, "2 years": {DestroyWait: 2 * 365 * 24 * time.Hour}} {
		w.source.Limits = l
		if err := w.Reload(); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCallersAreCounted: limits of the configuration reach the listener, with a code that clients know.
func TestCallersAreCounted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.made(&rotorv1.Key{Name: "a", Purpose: "encrypt"})
	w.reconfigure(func(c *server.Config) { c.Limits = server.Limits{NamespaceRate: 0.001, NamespaceBurst: 3} })
	admin := w.client().Admin()
	for i, want := range []fault.Code{"", "", "", fault.RateLimited} {
		_, err := admin.Keys.Get(t.Context(), connect.NewRequest(&rotorv1.KeyRef{Name: "a"}))
		if c := code(err); c != want {
			t.Errorf("request %d: %q, want %q", i+1, c, want)
		}
	}
	if _, err := admin.Server.Status(t.Context(), connect.NewRequest(&rotorv1.StatusRequest{})); err != nil {
		t.Errorf("about no namespace: %v", err)
	}
	w.source.Limits = server.Limits{CallerRate: 0.001, CallerBurst: 1}
	if err := w.Reload(); err != nil {
		t.Fatal(err)
	}
	for i, want := range []fault.Code{"", fault.RateLimited} {
		_, err := admin.Server.Status(t.Context(), connect.NewRequest(&rotorv1.StatusRequest{}))
		if c := code(err); c != want {
			t.Errorf("of one caller, request %d: %q, want %q", i+1, c, want)
		}
	}
}

// TestPublicListener: who knows hosts and not SPIFFE IDs comes in by a certificate of the operator's.
func TestPublicListener(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, credential := w.credential("ci")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	certificate, key := selfSigned(t)
	w.config.Public = server.Public{Listen: "127.0.0.1:0", Certificate: w.file("tls.crt", string(certificate)), Key: w.file("tls.key", string(key))}
	w.start()
	s, err := rotor.NewSession(t.Context(), rotor.Login{Address: w.PublicAddress(), CAFile: w.config.Public.Certificate, CredentialFile: credential})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(t.Context())
	if _, err := s.Admin().Auth.Whoami(t.Context(), connect.NewRequest(&rotorv1.WhoamiRequest{})); err != nil {
		t.Error(err)
	}
	if _, err := rotor.NewSession(t.Context(), rotor.Login{Address: w.PublicAddress(), CAFile: w.ca(), CredentialFile: credential}); err == nil {
		t.Error("the operator's certificate was taken for the cluster's")
	}
	old := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}}}
	if resp, err := old.Get("https://" + w.PublicAddress() + "/healthz"); err == nil {
		resp.Body.Close()
		t.Error("TLS 1.2 was spoken")
	}
	for what, p := range map[string]server.Public{
		"no key": {Listen: "127.0.0.1:0", Certificate: "x"}, "no listener": {Certificate: "x", Key: "y"}, "TLS": {Listen: "127.0.0.1:0", Certificate: "x", Key: "y", TLS: "1.1"},
		"no files": {Listen: "127.0.0.1:0", Certificate: "/nowhere", Key: "/nowhere"},
	} {
		c := w.config
		c.Public, c.Dir = p, w.config.Dir
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if s, err := server.Start(t.Context(), c); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%s: %v", what, err)
			if err == nil {
				_ = s.Close()
			}
		}
	}
}

// selfSigned makes a certificate for 127.0.0.1, in PEM.
func selfSigned(t *testing.T) (certificate, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tpl, tpl, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

// reconfigure starts the server anew with another configuration, which later reloads read from w.source.
func (w *world) reconfigure(edit func(*server.Config)) {
	w.t.Helper()
	if err := w.Close(); err != nil {
		w.t.Fatal(err)
	}
	edit(&w.config)
	w.source = w.config
	w.config.Source = func() (server.Config, error) { return w.source, nil }
	w.start()
}
