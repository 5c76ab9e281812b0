package delivery_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotorkms/rotor/internal/delivery"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/secret"
)

// server signs as guard does: domain and message together.
type server struct{ key ed25519.PrivateKey }

func newServer() server {
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	return server{key}
}

func (s server) sign(domain string, msg []byte) []byte {
	return ed25519.Sign(s.key, append([]byte(domain+"\x00"), msg...))
}

func (s server) verify(domain string, msg, sig []byte) bool {
	public, _ := s.key.Public().(ed25519.PublicKey)
	return ed25519.Verify(public, append([]byte(domain+"\x00"), msg...), sig)
}

// signature is the server's over a body alone.
func (s server) signature(body []byte) delivery.Signature {
	out, _ := delivery.NewSigner(s.sign).Sign(body)
	return out
}

func address(instance string) delivery.Address {
	return delivery.Address{Cluster: "c", Instance: instance, Incarnation: bytes.Repeat([]byte{1}, delivery.NonceSize), Session: bytes.Repeat([]byte{2}, delivery.NonceSize)}
}

func snapshot() keyring.Snapshot {
	return keyring.Snapshot{
		Key: "k", Namespace: "default", Name: "records", Custody: keyring.CustodyFleet, Epoch: keyring.Epoch{Incarnation: 1, Counter: 5}, Primary: 2,
		Versions: []keyring.SnapshotVersion{
			{Number: 1, Handle: 11, Phase: keyring.PhaseDecryptOnly, State: keyring.Active},
			{Number: 2, Handle: 12, Phase: keyring.PhasePrimary, State: keyring.Active},
		},
	}
}

var planted = []byte("a secret that must never be seen")

func materials() delivery.Materials {
	return delivery.Materials{1: secret.Copy(planted), 2: secret.Copy(bytes.ToUpper(planted))}
}

func private(t testing.TB) delivery.Private {
	t.Helper()
	p, err := delivery.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func pack(t testing.TB, s server, a delivery.Address, p delivery.Private) delivery.Parcel {
	t.Helper()
	out, err := delivery.NewSender(a, p.Public(), delivery.NewSigner(s.sign).Sign).Pack(encoded(snapshot()), materials(), time.Unix(1, 0).UTC())
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestParcelArrives(t *testing.T) {
	s, p, a := newServer(), private(t), address("a")
	in := pack(t, s, a, p)
	if bytes.Contains(in.Body, planted) || bytes.Contains(in.Sealed, planted) {
		t.Error("material in the clear")
	}
	got, m, err := delivery.NewReceiver(a, p, s.verify).Unpack(in)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(snapshot(), got); d != "" {
		t.Error(d)
	}
	for n, want := range materials() {
		if !m[n].Equal(want) {
			t.Errorf("material of version %d", n)
		}
	}
	if len(m) != 2 {
		t.Errorf("%d materials", len(m))
	}
}

// TestParcelRefused: whatever an intermediary does to a parcel, the process refuses it and says why, without a secret.
func TestParcelRefused(t *testing.T) {
	s, p, a := newServer(), private(t), address("a")
	evil := newServer()
	resigned := func(edit func(*delivery.Body)) func(delivery.Parcel) delivery.Parcel { // by the true server, for the wrong stream
		return func(in delivery.Parcel) delivery.Parcel {
			var b delivery.Body
			if err := json.Unmarshal(in.Body, &b); err != nil {
				t.Fatal(err)
			}
			edit(&b)
			in.Body, _ = json.Marshal(b)
			in.Signature = s.signature(in.Body)
			return in
		}
	}
	for name, change := range map[string]func(delivery.Parcel) delivery.Parcel{
		"signed by somebody else": func(in delivery.Parcel) delivery.Parcel {
			in.Signature = evil.signature(in.Body)
			return in
		},
		"signed for another use": func(in delivery.Parcel) delivery.Parcel {
			in.Signature, _ = delivery.NewSigner(func(_ string, msg []byte) []byte { return s.sign("rotor/other/1", msg) }).Sign(in.Body)
			return in
		},
		"material of another process's": func(in delivery.Parcel) delivery.Parcel {
			in.Sealed = pack(t, s, address("b"), private(t)).Sealed
			return in
		},
		"material taken out":      func(in delivery.Parcel) delivery.Parcel { in.Sealed, in.Encapsulated = nil, nil; return in },
		"encapsulation taken out": func(in delivery.Parcel) delivery.Parcel { in.Encapsulated = nil; return in },
		"another index":           func(in delivery.Parcel) delivery.Parcel { in.Signature.Index++; return in },
		"a larger tree":           func(in delivery.Parcel) delivery.Parcel { in.Signature.Size++; return in },
		"no tree":                 func(in delivery.Parcel) delivery.Parcel { in.Signature.Size = 0; return in },
		"a longer path": func(in delivery.Parcel) delivery.Parcel {
			in.Signature.Path = append(in.Signature.Path, make([]byte, 32))
			return in
		},
		"a path of other hashes": func(in delivery.Parcel) delivery.Parcel {
			in.Signature.Path = [][]byte{{1}}
			return in
		},
		"material without a hash":  resigned(func(b *delivery.Body) { b.Sealed = nil }),
		"another cluster":          resigned(func(b *delivery.Body) { b.Cluster = "d" }),
		"another instance":         resigned(func(b *delivery.Body) { b.Instance = "b" }),
		"another incarnation":      resigned(func(b *delivery.Body) { b.Incarnation = bytes.Repeat([]byte{9}, delivery.NonceSize) }),
		"another session":          resigned(func(b *delivery.Body) { b.Session = nil }),
		"sealed for another epoch": resigned(func(b *delivery.Body) { b.Snapshot.Epoch.Counter++ }),
		"sealed for another key":   resigned(func(b *delivery.Body) { b.Snapshot.Key = "l" }),
		"too large":                func(in delivery.Parcel) delivery.Parcel { in.Sealed = make([]byte, delivery.MaxBody+1); return in },
		"not JSON": func(in delivery.Parcel) delivery.Parcel {
			in.Body = []byte("{")
			in.Signature = s.signature(in.Body)
			return in
		},
	} {
		_, m, err := delivery.NewReceiver(a, p, s.verify).Unpack(change(pack(t, s, a, p)))
		if fault.CodeOf(err) != fault.SnapshotRefused || m != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if strings.Contains(fmt.Sprintf("%+v", err), string(planted)) {
			t.Errorf("%s: the error tells the secret", name)
		}
	}
	if _, _, err := delivery.NewReceiver(a, private(t), s.verify).Unpack(pack(t, s, a, p)); fault.CodeOf(err) != fault.SnapshotRefused {
		t.Errorf("opened with another process's key: %v", err)
	}
}

// TestEveryBit: one bit anywhere is noticed.
func TestEveryBit(t *testing.T) {
	s, p, a := newServer(), private(t), address("a")
	in := pack(t, s, a, p)
	for _, part := range []*[]byte{&in.Body, &in.Sealed, &in.Encapsulated, &in.Signature.Bytes} {
		whole := *part
		for i := range whole {
			*part = bytes.Clone(whole)
			(*part)[i] ^= 1 << (i % 8)
			if _, _, err := delivery.NewReceiver(a, p, s.verify).Unpack(in); fault.CodeOf(err) != fault.SnapshotRefused {
				t.Fatalf("byte %d: %v", i, err)
			}
		}
		*part = whole
	}
}

// TestHelloInput: no two introductions sign the same bytes.
func TestHelloInput(t *testing.T) {
	base := address("a")
	seen := map[string]string{string(delivery.HelloInput(base, []byte("public"))): "base"}
	for name, edit := range map[string]func(*delivery.Address){
		"cluster":     func(a *delivery.Address) { a.Cluster = "ca" },
		"moved":       func(a *delivery.Address) { a.Cluster, a.Instance = "", "ca" },
		"incarnation": func(a *delivery.Address) { a.Incarnation = a.Session },
		"session":     func(a *delivery.Address) { a.Session = a.Incarnation },
	} {
		a := base
		edit(&a)
		in := string(delivery.HelloInput(a, []byte("public")))
		if other, ok := seen[in]; ok {
			t.Errorf("%s and %s sign the same", name, other)
		}
		seen[in] = name
	}
}

// TestProof: a proof is of one process, epoch and set of materials.
func TestProof(t *testing.T) {
	prove := func(a delivery.Address, s keyring.Snapshot, m delivery.Materials) string {
		t.Helper()
		b, err := delivery.Proof(a, s, func(n uint32) (secret.Bytes, bool) { v, ok := m[n]; return v, ok })
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	base := prove(address("a"), snapshot(), materials())
	if prove(address("a"), snapshot(), materials()) != base {
		t.Error("not repeatable")
	}
	newer := snapshot()
	newer.Epoch.Counter++
	reborn := snapshot()
	reborn.Epoch.Incarnation++
	swapped := delivery.Materials{1: materials()[2], 2: materials()[1]}
	wrong := materials()
	wrong[1] = secret.Copy(make([]byte, 32))
	for name, other := range map[string]string{
		"another instance": prove(address("b"), snapshot(), materials()), "another epoch": prove(address("a"), newer, materials()),
		"another incarnation of the cluster": prove(address("a"), reborn, materials()), "swapped": prove(address("a"), snapshot(), swapped),
		"one version wrong": prove(address("a"), snapshot(), wrong),
	} {
		if other == base {
			t.Errorf("%s: the same proof", name)
		}
	}
	if _, err := delivery.Proof(address("a"), snapshot(), func(uint32) (secret.Bytes, bool) { return secret.Bytes{}, false }); fault.CodeOf(err) != fault.UnknownVersion {
		t.Errorf("proof without material: %v", err)
	}
}

func TestCheckPublic(t *testing.T) {
	good := private(t).Public()
	if err := delivery.CheckPublic(good); err != nil {
		t.Error(err)
	}
	for _, b := range [][]byte{nil, good[1:], append(bytes.Clone(good), 0)} {
		if err := delivery.CheckPublic(b); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%d bytes: %v", len(b), err)
		}
		if _, err := delivery.NewSender(address("a"), b, delivery.NewSigner(newServer().sign).Sign).Pack(encoded(snapshot()), materials(), time.Now()); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("packed to %d bytes: %v", len(b), err)
		}
	}
}

// FuzzUnpack gives the process any body and material with a true signature: a server that is wrong must not bring it down, and what is
// believed is for this stream.
func FuzzUnpack(f *testing.F) {
	s, p, a := newServer(), private(f), address("a")
	in := pack(f, s, a, p)
	f.Add(in.Body, in.Sealed)
	f.Add(in.Body, []byte(nil))
	f.Add([]byte("{}"), []byte(nil))
	f.Add([]byte(`{"sealed":""}`), in.Sealed)
	f.Fuzz(func(t *testing.T, body, sealed []byte) {
		parcel := delivery.Parcel{Body: body, Sealed: sealed, Encapsulated: in.Encapsulated, Signature: s.signature(body)}
		got, m, err := delivery.NewReceiver(a, p, s.verify).Unpack(parcel)
		if err != nil {
			if fault.CodeOf(err) != fault.SnapshotRefused || m != nil {
				t.Errorf("%v", err)
			}
			return
		}
		if m != nil && !bytes.Equal(sealed, in.Sealed) {
			t.Errorf("opened foreign material for %s", got.Name)
		}
	})
}

func encoded(s keyring.Snapshot) delivery.Encoded {
	e, err := delivery.Encode(s)
	if err != nil {
		panic(err) // a snapshot always encodes
	}
	return e
}

// TestBodyIsItsEncoding: a body that is put together for each stream is what encoding/json would have made of it.
func TestBodyIsItsEncoding(t *testing.T) {
	p, err := delivery.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []delivery.Materials{nil, materials()} {
		out, err := delivery.NewSender(address("a"), p.Public(), delivery.NewSigner(newServer().sign).Sign).Pack(encoded(snapshot()), m, time.Unix(1, 5).UTC())
		if err != nil {
			t.Fatal(err)
		}
		var b delivery.Body
		if err := json.Unmarshal(out.Body, &b); err != nil {
			t.Fatal(err)
		}
		want, err := json.Marshal(b)
		if err != nil || string(out.Body) != string(want) {
			t.Errorf("%s\nwant %s, %v", out.Body, want, err)
		}
		if d := cmp.Diff(delivery.Body{Address: address("a"), Issued: time.Unix(1, 5).UTC(), Snapshot: snapshot(), Sealed: b.Sealed}, b); d != "" || (len(b.Sealed) > 0) != (m != nil) {
			t.Error(d)
		}
	}
}

// TestAllocationsOfAParcel bounds what one of ten thousand parcels of an update costs beside its signature.
func TestAllocationsOfAParcel(t *testing.T) {
	p, err := delivery.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	unsigned := func([]byte) (delivery.Signature, error) { return delivery.Signature{}, nil }
	s, m, now := encoded(snapshot()), materials(), time.Unix(1, 0).UTC()
	for name, c := range map[string]struct {
		m    delivery.Materials
		most float64
	}{"public": {nil, 8}, "sealed": {m, 40}} {
		sender := delivery.NewSender(address("a"), p.Public(), unsigned)
		n := testing.AllocsPerRun(100, func() {
			if _, err := sender.Pack(s, c.m, now); err != nil {
				t.Fatal(err)
			}
		})
		if t.Logf("%s: %v allocations", name, n); n > c.most {
			t.Errorf("%s: %v allocations, at most %v", name, n, c.most)
		}
	}
}
