package guard

import (
	"context"

	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/policy"
)

// ReadLog gives the audit log to a caller who may read it. fault.Denied.
func (g *Guard) ReadLog(ctx context.Context, c policy.Caller) (*audit.Log, error) {
	if _, err := g.Admit(ctx, c, policy.ActAudit, policy.Resource{}); err != nil {
		return nil, err
	}
	return g.audit, nil
}
