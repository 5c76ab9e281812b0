package fleet

import (
	"context"

	"github.com/rotorkms/rotor/internal/policy"
)

// Instances describes all members for a caller who may list them, by name.
func (f *Fleet) Instances(ctx context.Context, c policy.Caller) ([]Info, error) {
	if _, err := f.Guard.Admit(ctx, c, policy.ActInstances, policy.Resource{}); err != nil {
		return nil, err
	}
	return f.List(), nil
}
