package fleet

import (
	"context"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
)

// Instances describes all members for a caller who may list them, by name.
func (f *Fleet) Instances(ctx context.Context, c policy.Caller) ([]Info, error) {
	if _, err := f.Guard.Admit(ctx, c, policy.ActInstances, policy.Resource{}); err != nil {
		return nil, err
	}
	return f.List(), nil
}

// Drain ends every session, so that a server that stops does not wait for them. Members stay members.
func (f *Fleet) Drain() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.draining = true
	for _, s := range f.sessions {
		f.end(s, fault.New(fault.Unavailable, "server"))
	}
}

// Reconsider asks the rules again about everything that is held, after they changed. Who lost the right to hold a key is told, and
// holds it no longer.
func (f *Fleet) Reconsider(ctx context.Context) {
	f.mu.Lock()
	held := map[keyring.KeyID]bool{}
	for _, m := range f.members {
		for id := range m.Keys {
			held[id] = true
		}
	}
	f.mu.Unlock()
	for id := range held {
		if k, ok := f.Keys.Key(id); ok {
			f.allowed(ctx, k)
		}
	}
}
