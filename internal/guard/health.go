package guard

import (
	"context"

	"github.com/rotorkms/rotor/internal/store"
)

// Reach reads the newest revision of the store, which says whether it can be reached. What storeFault makes of its error.
func (g *Guard) Reach(ctx context.Context) (store.Rev, error) {
	const one = "log/state" // a prefix of one record
	rev, records := g.store.List(ctx, one)
	for _, err := range records {
		if err != nil {
			return 0, storeFault("store", err)
		}
	}
	return rev, nil
}

// Followed waits until the log has been followed up to a revision. fault.Canceled.
func (g *Guard) Followed(ctx context.Context, rev store.Rev) error { return g.index.wait(ctx, rev) }

// LogStats is how long the audit log is: the entries in order, and those that wait to be put into order.
func (g *Guard) LogStats() (entries int64, waiting int) { return g.audit.Stats() }
