//go:build slow

package rotation_test

import (
	"testing"

	"github.com/rotorkms/rotor/internal/keyring"
)

// full is the model of 2 instances and 2 records.
func full(silence keyring.Silence) config {
	c := small(silence)
	c.instances, c.records, c.replicas, c.eager = 2, 2, true, false
	return c
}

func exhaust(t *testing.T, name string, c config) {
	t.Helper()
	r := explore(c, 0)
	t.Logf("%s: %v", name, r)
	if r.broken != "" {
		t.Errorf("%s: %s", name, r.print())
	}
}

func TestExhaustBlock(t *testing.T) {
	c := full(keyring.Block)
	exhaust(t, "block, data set with a floor", c)
	c.retention = 1
	exhaust(t, "block, with a backup that may be restored", c)
	c = full(keyring.Block)
	c.eager = true
	exhaust(t, "block, censuses at any time", c)
	c = full(keyring.Block)
	c.floor, c.inflight = false, 1
	exhaust(t, "block, data set with an in-flight time", c)
}

func TestExhaustFence(t *testing.T) {
	c := full(keyring.Fence)
	exhaust(t, "fence, data set with a floor", c)
	c.floor, c.inflight = false, 1
	exhaust(t, "fence, data set with an in-flight time", c)
	c = full(keyring.Fence)
	c.joinCounts = true
	exhaust(t, "fence, a join counts as acknowledgement", c)
	c = full(keyring.Fence)
	c.ttl, c.session, c.restarts = 3, 2, false
	exhaust(t, "fence, a lease of 3 ticks, a session of 2", c)
}

// TestSymmetry: sorting what can be exchanged loses nothing: with and without it the same actions happen, and nothing is broken.
func TestSymmetry(t *testing.T) {
	c := full(keyring.Block)
	sorted := explore(c, 0)
	c.symmetry = false
	plain := explore(c, 0)
	t.Logf("sorted %v; plain %v", sorted, plain)
	if sorted.broken != plain.broken || sorted.broken != "" || sorted.depth != plain.depth {
		t.Errorf("sorted: %q, depth %d; plain: %q, depth %d", sorted.broken, sorted.depth, plain.broken, plain.depth)
	}
	for k := range plain.did {
		if (plain.did[k] > 0) != (sorted.did[k] > 0) {
			t.Errorf("%v: %d times sorted, %d times plain", action{kind: kind(k)}, sorted.did[k], plain.did[k])
		}
	}
}

// TestBoundedRollback allows one rollback, or one rotation given up. With two versions that can be exhausted; with the third,
// which is needed to destroy a version that was rolled back to, it goes to the bound that is printed.
func TestBoundedRollback(t *testing.T) {
	for _, silence := range []keyring.Silence{keyring.Block, keyring.Fence} {
		c := full(silence)
		c.rollbacks = 1
		exhaust(t, string(silence)+", one rollback, 2 versions", c)
		c.versions = 3
		depth := map[keyring.Silence]int{keyring.Block: 20, keyring.Fence: 17}[silence]
		r := explore(c, depth)
		t.Logf("%s, one rollback, 3 versions, to depth %d: %v", silence, depth, r)
		if r.broken != "" {
			t.Error(r.print())
		}
		c.instances, c.records, c.replicas = 1, 1, false
		exhaust(t, string(silence)+", one rollback, 3 versions, 1 instance, 1 record, 1 replica", c)
	}
}
