package keyring_test

import (
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/suite"
)

func numbered(state keyring.State, phase keyring.Phase, numbers ...uint32) keyring.Key {
	k := keyring.Key{ID: "k", Name: "k", Purpose: suite.Encrypt, Epoch: keyring.Epoch{Incarnation: 1, Counter: 5}}
	for _, n := range numbers {
		k = k.Append(keyring.Version{Number: n, Handle: n + 100, Algorithm: suite.XAES256GCM, State: state, Phase: phase})
	}
	return k
}

// TestLost: what is missing is what a recovery lost, and nothing of another history.
func TestLost(t *testing.T) {
	backup := numbered(keyring.Active, keyring.PhaseDecryptOnly, 1, 2, 3)
	backup.Primary = 2
	after := numbered(keyring.Active, keyring.PhasePrimary, 1)
	after.Above = 3
	for name, c := range map[string]struct {
		have keyring.Key
		want []uint32
		code fault.Code
	}{
		"all":                 {keyring.Key{}, []uint32{2, 3, 1}, ""},
		"none":                {backup, nil, ""},
		"lost":                {after, []uint32{2, 3}, ""},
		"another of a number": {after.Edit(1, func(v *keyring.Version) { v.Handle = 7 }), nil, fault.Conflict},
		"another of a handle": {after.Append(keyring.Version{Number: 4, Handle: 102, Algorithm: suite.XAES256GCM}), nil, fault.Conflict},
		"not come so far":     {func() keyring.Key { k := after.Clone(); k.Above = 2; return k }(), nil, fault.Conflict},
	} {
		lost, err := c.have.Lost(backup)
		if fault.CodeOf(err) != c.code || len(lost) != len(c.want) {
			t.Errorf("%s: %v, %v", name, lost, err)
			continue
		}
		for i, v := range lost {
			if v.Number != c.want[i] {
				t.Errorf("%s: version %d at %d", name, v.Number, i)
			}
		}
	}
}

// TestRestored: whatever a version was in the backup, it protects only as the primary of a key without one, and is not less dead than it was.
func TestRestored(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, state := range keyring.States() {
		for _, phase := range keyring.Phases() {
			for _, has := range []bool{false, true} {
				for _, dead := range []bool{false, true} {
					k := numbered(keyring.Active, keyring.PhasePrimary)
					if has {
						k = numbered(keyring.Active, keyring.PhasePrimary, 9)
						k.Primary = 9
					}
					v := numbered(state, phase, 4).At(0)
					v.Approved = []string{"somebody"}
					k = k.Restored(v, true, dead, now)
					back, err := k.Version(4)
					if err != nil {
						t.Fatal(err)
					}
					destroyed := dead || state == keyring.Destroyed || phase == keyring.PhaseDestroyed
					if destroyed != (back.State == keyring.Destroyed && back.Phase == keyring.PhaseDestroyed) || len(back.Approved) != 0 || back.Handle != v.Handle {
						t.Errorf("%s and %s, dead %v: %+v", state, phase, dead, back)
					}
					if k.MayProtect(back, now) == nil && (has || phase != keyring.PhasePrimary || state != keyring.Active || dead) {
						t.Errorf("%s and %s, dead %v, beside a primary %v: it protects", state, phase, dead, has)
					}
					if (state == keyring.Compromised || state == keyring.Suspended) && !destroyed && back.State != state {
						t.Errorf("%s came back as %s", state, back.State)
					}
					if phase == keyring.PhaseRetired && !destroyed && (back.Phase != phase || !back.Retired.Equal(now)) {
						t.Errorf("retired came back as %s, waiting since %v", back.Phase, back.Retired)
					}
				}
			}
		}
	}
}
