package fleet

import "github.com/rotorkms/rotor/internal/keyring"

// Lags says whether a holder of a key has not acknowledged an epoch. It stops at the first.
func (f *Fleet) Lags(id keyring.KeyID, epoch keyring.Epoch) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.members {
		if acked, ok := m.Keys[id]; ok && acked.Less(epoch) {
			return true
		}
	}
	return false
}

// Tally counts the holders of one key.
type Tally struct {
	Holders, Behind int // Behind: those of them that have not acknowledged the epoch asked for
}

// Tally counts the holders of every key in one pass over the members, each against the epoch that epoch gives for the key.
func (f *Fleet) Tally(epoch func(keyring.KeyID) keyring.Epoch) map[keyring.KeyID]Tally {
	wanted := map[keyring.KeyID]keyring.Epoch{}
	out := map[keyring.KeyID]Tally{}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.members {
		for id, acked := range m.Keys {
			want, ok := wanted[id]
			if !ok {
				want = epoch(id)
				wanted[id] = want
			}
			t := out[id]
			t.Holders++
			if acked.Less(want) {
				t.Behind++
			}
			out[id] = t
		}
	}
	return out
}
