package movein

import (
	"context"

	"github.com/rotorkms/rotor/internal/transit"
)

// ProveEach is proveEach.
func ProveEach(ctx context.Context, m Move, i Item, content transit.Backup) error {
	return m.proveEach(ctx, i, content)
}
