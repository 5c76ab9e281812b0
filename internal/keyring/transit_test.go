package keyring_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/suite"
)

func TestKeyNames(t *testing.T) {
	long := strings.Repeat("a", keyring.MaxKeyName-len("m/"))
	for name, ok := range map[string]bool{
		"orders": true, "a.b-c_d": true, "Orders": false, "": false, "-a": false, // as of other keys

		"transit/orders": true, "transit/Orders": true, "transit/a.b-c": true, "transit/_": true, "a/b/c": true, "Team.1/x-y/K": true, "transit/9": true,
		"m/" + long: true, "m/" + long + "a": false,
		"transit/": false, "/orders": false, "/": false, "a//b": false, "transit/-a": false, "transit/a-": false, "transit/a.": false, "transit/.": false, "transit/..": false,
		"./a": false, "../a": false, "a/../b": false, "a/./b": false, "a b/c": false, "transit/a b": false, "transit/ü": false, "transit/a\x00b": false, "transit/a*": false,
		"tränsit/a": false, "transit\\a/b": false, "transit/a%2fb": false,
	} {
		if got := keyring.ValidKeyName(name); got != ok {
			t.Errorf("%q: %t", name, got)
		}
	}
	if mount, name, ok := keyring.CutMount("a/b/c"); !ok || mount != "a/b" || name != "c" {
		t.Errorf("%q %q %t", mount, name, ok)
	}
}

// TestNarrower: what somebody takes from a key makes it narrower; what is given back, rotations and what clocks do does not.
func TestNarrower(t *testing.T) {
	at := time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)
	k := keyring.Key{ID: "k", Name: "transit/k", Purpose: suite.Transit, Transit: &keyring.Transit{MinDecryption: 2, MinEncryption: 3, MinAvailable: 1}}
	for n := range uint32(20) {
		k = k.Append(keyring.Version{Number: n + 1, Handle: n + 1, State: keyring.Active, Phase: keyring.PhaseDecryptOnly})
	}
	set := func(f func(*keyring.Transit)) keyring.Key { next := k.Clone(); f(next.Transit); return next }
	edit := func(f func(*keyring.Version)) keyring.Key { return k.Edit(3, f) }
	less := map[string]keyring.Key{
		"suspended":   edit(func(v *keyring.Version) { v.State = keyring.Suspended }),
		"compromised": edit(func(v *keyring.Version) { v.State = keyring.Compromised }),
		"retired":     edit(func(v *keyring.Version) { v.Phase = keyring.PhaseRetired }),
		"destroyed":   edit(func(v *keyring.Version) { v.State, v.Phase = keyring.Destroyed, keyring.PhaseDestroyed }),
		"decryption":  set(func(t *keyring.Transit) { t.MinDecryption++ }),
		"encryption":  set(func(t *keyring.Transit) { t.MinEncryption++ }),
		"available":   set(func(t *keyring.Transit) { t.MinAvailable++ }),
		"aside":       set(func(t *keyring.Transit) { t.SoftDeleted = at }),
		"deleted":     k.Delete(at),
	}
	for name, next := range less {
		if !next.Narrower(k) {
			t.Errorf("%s: not narrower", name)
		}
		if k.Narrower(next) {
			t.Errorf("%s: narrower when it is taken back", name)
		}
		if next.Narrower(next) {
			t.Errorf("%s: narrower than itself", name)
		}
	}
	for name, next := range map[string]keyring.Key{
		"new version": k.Append(keyring.Version{Number: 21, Handle: 21, State: keyring.Active, Phase: keyring.PhasePrimary}),
		"demoted":     edit(func(v *keyring.Version) { v.Demoted = at }), "deactivated": edit(func(v *keyring.Version) { v.State = keyring.Deactivated }),
		"a setting": set(func(t *keyring.Transit) { t.DeletionAllowed = true }), "the same": k.Clone(),
	} {
		if next.Narrower(k) {
			t.Errorf("%s: narrower", name)
		}
	}
	if k.Narrower(keyring.Key{}) {
		t.Error("a new key is narrower than none")
	}
}

// FuzzKeyNames: what passes is safe as a path, and so is what the key is called when it is deleted.
func FuzzKeyNames(f *testing.F) {
	f.Add("transit/orders")
	f.Add("a/../b")
	f.Fuzz(func(t *testing.T, name string) {
		if !keyring.ValidKeyName(name) {
			return
		}
		k := transitKey()
		k.Name = name
		for _, s := range []string{name, k.DeletedName()} {
			if len(s) > keyring.MaxKeyName || strings.Contains(s, "//") || strings.Contains("/"+s+"/", "/../") || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) {
				t.Errorf("%q", s)
			}
		}
		if strings.Contains(name, "/") && !keyring.ValidKeyName(k.DeletedName()) {
			t.Errorf("%q becomes %q", name, k.DeletedName())
		}
	})
}

// transitKey has three versions, of which the third is primary.
func transitKey() keyring.Key {
	k := keyring.Key{
		ID: keyring.KeyID(strings.Repeat("ab", 16)), Namespace: "default", Name: "transit/k", Purpose: suite.Transit, Custody: keyring.CustodyServer, Algorithm: suite.AES256GCM,
		Primary: 3, Transit: &keyring.Transit{},
	}
	for n := uint32(1); n <= 3; n++ {
		k = k.Append(keyring.Version{
			Number: n, Handle: n, Algorithm: suite.AES256GCM, State: keyring.Active, Phase: keyring.PhaseDecryptOnly, Activated: t0, Promoted: keyring.Epoch{Incarnation: 1, Counter: uint64(n)},
		})
	}
	return k.Edit(3, func(v *keyring.Version) { v.Phase = keyring.PhasePrimary })
}

func TestTransitSettings(t *testing.T) {
	if err := transitKey().Validate(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*keyring.Key)
		field  string
	}{
		"no mount":            {func(k *keyring.Key) { k.Name = "k" }, "name"},
		"dots":                {func(k *keyring.Key) { k.Name = "../k" }, "name"},
		"another purpose":     {func(k *keyring.Key) { k.Purpose = suite.Encrypt }, "name"},
		"settings of another": {func(k *keyring.Key) { k.Purpose, k.Name = suite.Encrypt, "k" }, "transit"},
		"no settings":         {func(k *keyring.Key) { k.Transit = nil }, "transit"},
		"custody fleet":       {func(k *keyring.Key) { k.Custody = keyring.CustodyFleet }, "custody"},
		"custody hsm":         {func(k *keyring.Key) { k.Custody = keyring.CustodyHSM }, "custody"},
		"exportable":          {func(k *keyring.Key) { k.Exportable = true }, "exportable"},
		"convergent":          {func(k *keyring.Key) { k.Transit.Convergent = 3 }, "convergent"},
		"key size":            {func(k *keyring.Key) { k.Transit.KeyBytes = 31 }, "key_size"},
		"large key size":      {func(k *keyring.Key) { k.Transit.KeyBytes = 513 }, "key_size"},
	} {
		k := transitKey()
		c.change(&k)
		if err := k.Validate(); fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), c.field) {
			t.Errorf("%s: %v", name, err)
		}
	}
	k := transitKey()
	k.Algorithm = suite.XAES256GCM
	if err := k.Validate(); fault.CodeOf(err) != fault.AlgorithmForbidden {
		t.Errorf("XAES: %v", err)
	}
}

func TestCloneOfTransitIsItsOwn(t *testing.T) {
	k := transitKey()
	c := k.Clone()
	c.Transit.MinDecryption = 2
	if k.Transit.MinDecryption != 0 {
		t.Error("a change of the clone shows in the key")
	}
}

// TestNamedVersionProtects: an older version protects for who names it, from the floor on and while it is active; nothing else changes that.
func TestNamedVersionProtects(t *testing.T) {
	for name, c := range map[string]struct {
		floor uint32
		n     uint32
		state keyring.State
		phase keyring.Phase
		want  fault.Code
	}{
		"primary":              {0, 3, keyring.Active, keyring.PhasePrimary, ""},
		"no floor":             {0, 2, keyring.Active, keyring.PhaseDecryptOnly, ""},
		"below it":             {3, 2, keyring.Active, keyring.PhaseDecryptOnly, fault.BelowFloor},
		"at it":                {2, 2, keyring.Active, keyring.PhaseDecryptOnly, ""},
		"window over":          {2, 2, keyring.Deactivated, keyring.PhaseDecryptOnly, fault.BelowFloor},
		"suspended":            {1, 2, keyring.Suspended, keyring.PhaseDecryptOnly, fault.WrongState},
		"compromised":          {1, 2, keyring.Compromised, keyring.PhaseDecryptOnly, fault.WrongState},
		"retired":              {1, 2, keyring.Deactivated, keyring.PhaseRetired, fault.WrongState},
		"never promoted":       {1, 2, keyring.PreActivation, keyring.PhaseDistributed, fault.WrongState},
		"compromised primary":  {1, 3, keyring.Compromised, keyring.PhasePrimary, fault.WrongState},
		"primary below a hole": {9, 3, keyring.Active, keyring.PhasePrimary, ""},
	} {
		k := transitKey()
		k.Transit.MinEncryption = c.floor
		v := k.At(int(c.n) - 1)
		v.State, v.Phase = c.state, c.phase
		if err := k.MayProtectAs(v, t0.Add(time.Hour)); fault.CodeOf(err) != c.want {
			t.Errorf("%s: %v", name, err)
		} else if c.want == fault.WrongState && !strings.Contains(err.Error(), fmt.Sprintf("is %s and %s", c.state, c.phase)) {
			t.Errorf("%s: it is called something else: %v", name, err)
		}
	}
	k := keyIn(suite.Encrypt, keyring.Active, keyring.PhaseDecryptOnly)
	if err := k.MayProtectAs(k.At(0), t0); fault.CodeOf(err) != fault.WrongState {
		t.Errorf("of another purpose: %v", err)
	}
}

func TestFloorsOfClients(t *testing.T) {
	k := transitKey()
	k.Transit.MinDecryption, k.Transit.MinAvailable = 3, 2
	for n, want := range map[uint32]fault.Code{1: fault.BelowFloor, 2: fault.BelowFloor, 3: ""} {
		if err := k.AboveFloor(n); fault.CodeOf(err) != want {
			t.Errorf("%d: %v", n, err)
		}
	}
	for i, want := range []bool{false, true, true} {
		if k.Seen(k.At(i)) != want {
			t.Errorf("version %d is seen: %t", i+1, !want)
		}
	}
	k.Transit.Deleted = t0
	if !k.Deleted() || keyIn(suite.Encrypt, keyring.Active, keyring.PhasePrimary).Deleted() {
		t.Error("what is deleted is not told")
	}
}
