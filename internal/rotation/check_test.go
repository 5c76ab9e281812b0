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
		crashes: true, restarts: true, replicas: silence == keyring.Fence, symmetry: true,
	}
}

func TestExhaustSmall(t *testing.T) {
	for _, silence := range []keyring.Silence{keyring.Block, keyring.Fence} {
		r := explore(small(silence), 0)
		t.Logf("%s, 1 instance, 1 record: %v", silence, r)
		if r.broken != "" {
			t.Errorf("%s: %s", silence, r.print())
		}
	}
}
