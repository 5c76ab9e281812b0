package rotation_test

import (
	"testing"

	"github.com/rotorkms/rotor/internal/keyring"
)

// small is the configuration that the fast tests exhaust.
func small(silence keyring.Silence) config {
	return config{
		silence: silence, instances: 1, records: 1, versions: 2,
		ttl: 2, margin: 1, skew: 1, lag: 1, stale: 2, session: 1, window: 1, wait: 1, floor: true,
		crashes: true, restarts: true, replicas: silence == keyring.Fence, symmetry: true, eager: true,
	}
}

func TestExhaustSmall(t *testing.T) {
	for _, silence := range []keyring.Silence{keyring.Block, keyring.Fence} {
		r := explored(small(silence))
		t.Logf("%s, 1 instance, 1 record: %v", silence, r)
		if r.broken != "" {
			t.Errorf("%s: %s", silence, r.print())
		}
	}
}

// TestRollbackSmall allows one rollback with three versions, to a depth past which a mistake in rotation.Back was found.
func TestRollbackSmall(t *testing.T) {
	c := small(keyring.Block)
	c.versions, c.rollbacks, c.eager, c.crashes, c.restarts = 3, 1, false, false, false
	r := explore(c, 20)
	t.Logf("block, 1 instance, 1 record, 3 versions, one rollback, to depth 20: %v", r)
	if r.broken != "" {
		t.Error(r.print())
	}
}
