//go:build slow

package rotation_test

import (
	"testing"

	"github.com/rotorkms/rotor/internal/keyring"
)

// full is the model of 2 instances and 2 records.
func full(silence keyring.Silence) config {
	c := small(silence)
	c.instances, c.records, c.replicas = 2, 2, true
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
}

// TestBoundedRollback allows one rollback, or one rotation given up. With two versions that can be exhausted; with the third,
// which is needed to destroy a version that was rolled back to, it goes to the bound that is printed.
func TestBoundedRollback(t *testing.T) {
	for _, silence := range []keyring.Silence{keyring.Block, keyring.Fence} {
		c := full(silence)
		c.rollbacks = 1
		if silence == keyring.Block {
			exhaust(t, "block, one rollback, 2 versions", c)
		}
		c.versions = 3
		depth := map[keyring.Silence]int{keyring.Block: 20, keyring.Fence: 16}[silence]
		r := explore(c, depth)
		t.Logf("%s, one rollback, 3 versions, to depth %d: %v", silence, depth, r)
		if r.broken != "" {
			t.Error(r.print())
		}
		c.instances, c.records, c.replicas = 1, 1, false
		exhaust(t, string(silence)+", one rollback, 3 versions, 1 instance, 1 record, 1 replica", c)
	}
}
