package keybackup_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keybackup"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

const id = "00112233445566778899aabbccddeeff"

// sample is a key with a version that is destroyed and one that is primary, and its material.
func sample() (keybackup.Facts, keybackup.Content) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	k := keyring.Key{
		ID: id, Namespace: "default", Name: "k", Purpose: suite.Encrypt, Custody: keyring.CustodyServer, Algorithm: suite.XAES256GCM, Created: now, Primary: 3,
		Versions: keyring.VersionsOf(
			keyring.Version{Number: 1, Handle: 7, Algorithm: suite.XAES256GCM, State: keyring.Destroyed, Phase: keyring.PhaseDestroyed},
			keyring.Version{Number: 3, Handle: 9, Algorithm: suite.XAES256GCM, State: keyring.Active, Phase: keyring.PhasePrimary},
		),
	}
	return keybackup.Facts{ID: "b", Cluster: "c", Incarnation: 1, Namespace: "default", Key: id, Name: "k", Created: now},
		keybackup.Content{Key: k, Materials: map[uint32]secret.Bytes{3: secret.Copy(bytes.Repeat([]byte{5}, 32))}}
}

// with bends a version of the content.
func with(c *keybackup.Content, n uint32, bend func(*keyring.Version)) {
	c.Key = c.Key.Edit(n, bend)
}

// clear keeps the data key as it is, with what it is bound to.
func clear(dek secret.Bytes, bound []byte) ([]byte, error) {
	return append(bytes.Clone(dek.Reveal()), bound...), nil
}

func unclear(_ keybackup.Facts, wrapped, bound []byte) (secret.Bytes, error) {
	dek, ok := bytes.CutSuffix(wrapped, bound)
	if !ok {
		return secret.Bytes{}, fault.New(fault.DecryptFailed, "test")
	}
	return secret.Copy(dek), nil
}

func sealed(t testing.TB) []byte {
	t.Helper()
	f, c := sample()
	b, err := keybackup.Seal(f, c, clear)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRoundTrip(t *testing.T) {
	b := sealed(t)
	f, c, err := keybackup.Open(b, unclear)
	if err != nil {
		t.Fatal(err)
	}
	wantF, wantC := sample()
	got, _ := json.Marshal([]any{f, c.Key})
	want, _ := json.Marshal([]any{wantF, wantC.Key})
	if !bytes.Equal(got, want) || len(c.Materials) != 1 || !c.Materials[3].Equal(wantC.Materials[3]) {
		t.Errorf("%s\n%s", got, want)
	}
	if bytes.Contains(b, bytes.Repeat([]byte{5}, 32)) {
		t.Error("material stands in the clear")
	}
}

// TestTampered: no byte of a backup can be changed, added or taken away.
func TestTampered(t *testing.T) {
	b := sealed(t)
	for i := range b {
		changed := bytes.Clone(b)
		changed[i] ^= 1
		if _, _, err := keybackup.Open(changed, unclear); err == nil {
			t.Fatalf("byte %d of %d", i, len(b))
		}
		if _, _, err := keybackup.Open(b[:i], unclear); err == nil {
			t.Fatalf("cut to %d", i)
		}
	}
	if _, _, err := keybackup.Open(append(bytes.Clone(b), 0), unclear); fault.CodeOf(err) != fault.DecryptFailed {
		t.Error(err)
	}
}

// TestContent: what was sealed holds together, or is not sealed and not taken.
func TestContent(t *testing.T) {
	for name, bend := range map[string]func(*keybackup.Facts, *keybackup.Content){
		"another name":       func(f *keybackup.Facts, _ *keybackup.Content) { f.Name = "other" },
		"another ID":         func(f *keybackup.Facts, _ *keybackup.Content) { f.Key = keyring.KeyID(strings.Repeat("0", 32)) },
		"an ill-formed ID":   func(f *keybackup.Facts, c *keybackup.Content) { f.Key, c.Key.ID = "../x", "../x" },
		"another namespace":  func(f *keybackup.Facts, _ *keybackup.Content) { f.Namespace = "other" },
		"other labels":       func(f *keybackup.Facts, _ *keybackup.Content) { f.Labels = map[string]string{"a": "b"} },
		"no versions":        func(_ *keybackup.Facts, c *keybackup.Content) { c.Key.Versions, c.Materials = keyring.Versions{}, nil },
		"no material":        func(_ *keybackup.Facts, c *keybackup.Content) { c.Materials = nil },
		"empty material":     func(_ *keybackup.Facts, c *keybackup.Content) { c.Materials[3] = secret.Copy(nil) },
		"material of none":   func(_ *keybackup.Facts, c *keybackup.Content) { c.Materials[4] = secret.Random(32) },
		"of a destroyed one": func(_ *keybackup.Facts, c *keybackup.Content) { c.Materials[1] = secret.Random(32) },
		"a handle twice":     func(_ *keybackup.Facts, c *keybackup.Content) { with(c, 1, func(v *keyring.Version) { v.Handle = 9 }) },
		"no handle":          func(_ *keybackup.Facts, c *keybackup.Content) { with(c, 1, func(v *keyring.Version) { v.Handle = 0 }) },
		"no such state": func(_ *keybackup.Facts, c *keybackup.Content) {
			with(c, 3, func(v *keyring.Version) { v.State = "fine" })
		},
		"no such phase": func(_ *keybackup.Facts, c *keybackup.Content) {
			with(c, 3, func(v *keyring.Version) { v.Phase = "fine" })
		},
		"another purpose": func(_ *keybackup.Facts, c *keybackup.Content) {
			with(c, 3, func(v *keyring.Version) { v.Algorithm = suite.Ed25519 })
		},
		"no such algorithm": func(_ *keybackup.Facts, c *keybackup.Content) { c.Key.Algorithm = "ROT13" },
		"no such custody":   func(_ *keybackup.Facts, c *keybackup.Content) { c.Key.Custody = "anywhere" },
		"a number too high": func(_ *keybackup.Facts, c *keybackup.Content) { c.Key.Above = 1<<31 + 1 },
		"a record too large": func(_ *keybackup.Facts, c *keybackup.Content) {
			with(c, 1, func(v *keyring.Version) { v.Reason = strings.Repeat("x", 24<<20) })
		},
		"a backup too large":  func(_ *keybackup.Facts, c *keybackup.Content) { c.Materials[3] = secret.Random(keybackup.MaxBytes) },
		"facts that are huge": func(f *keybackup.Facts, _ *keybackup.Content) { f.ID = strings.Repeat("x", 1<<20) },
	} {
		f, c := sample()
		bend(&f, &c)
		if b, err := keybackup.Seal(f, c, clear); err == nil {
			t.Errorf("%s: sealed, %d bytes", name, len(b))
		}
	}
}

// FuzzOpen: whatever the bytes, opening ends, and what opens can be sealed again.
func FuzzOpen(f *testing.F) {
	b := sealed(f)
	f.Add(b)
	f.Add(b[:40])
	f.Add([]byte("rotor-key-backup/1\n\x00\x00\x00\x02{}\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = keybackup.Read(b)
		facts, c, err := keybackup.Open(b, unclear)
		if err != nil {
			return
		}
		if _, err := keybackup.Seal(facts, c, clear); err != nil {
			t.Error(err)
		}
	})
}

// FuzzDecode: what a holder of the data key may have sealed.
func FuzzDecode(f *testing.F) {
	facts, c := sample()
	record, _ := json.Marshal(c.Key)
	plain := append([]byte{0, 0, byte(len(record) >> 8), byte(len(record))}, record...)
	plain = append(plain, 0, 0, 0, 3, 0, 0, 0, 32)
	f.Add(append(bytes.Clone(plain), bytes.Repeat([]byte{5}, 32)...))
	f.Add(plain)
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := keybackup.Decode(facts, secret.Copy(b))
		if err != nil {
			return
		}
		if _, err := keybackup.Seal(facts, c, clear); err != nil {
			t.Error(err)
		}
	})
}
