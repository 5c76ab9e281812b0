package authn

import (
	"context"
	"crypto/x509"
	"strconv"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/store"
)

// removal is the stored record of a removed instance. Each removal begins a generation of the name; join tokens and certificates carry
// theirs, and an older one is refused. Times would not do: a renewal that runs beside a removal could be dated after it.
type removal struct {
	Generation uint64    `json:"generation"`
	At         time.Time `json:"at"`
}

// generation is what a certificate of an instance says in its subject's serial number (X.520, 6.2.9).
func generation(leaf *x509.Certificate) uint64 {
	n, err := strconv.ParseUint(leaf.Subject.SerialNumber, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func (a *Authority) isRemoved(name string, generation uint64) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return generation < a.removed.Rows[name].Value.Generation
}

// present reads the generation of a name linearizably, with the condition that it does not change.
func (a *Authority) present(ctx context.Context, name string) (removal, guard.Cond, error) {
	return guard.Fetch[removal](ctx, a.Guard, removedPrefix+name)
}

// Remove denies every certificate and every join token that an instance has now.
func (a *Authority) Remove(ctx context.Context, c policy.Caller, name string) error {
	p, err := a.Guard.Admit(ctx, c, policy.ActRemove, policy.Resource{})
	if err != nil {
		return err
	}
	if !keyring.ValidName(name) {
		return fault.New(fault.Invalid, "instance name")
	}
	return a.again(ctx, func() (store.Rev, error) {
		v, cond, err := a.present(ctx, name)
		if err != nil {
			return 0, err
		}
		v = removal{v.Generation + 1, a.Now().UTC()}
		w, err := guard.Put(cond.Path, v)
		if err != nil {
			return 0, err
		}
		return a.commit(ctx, p, []guard.Cond{cond}, []guard.Write{w}, map[string]string{"instance": name})
	})
}

// again repeats a step that reads and commits while somebody else changes what it read.
func (a *Authority) again(ctx context.Context, step func() (store.Rev, error)) error {
	for {
		if _, err := step(); fault.CodeOf(err) != fault.Conflict {
			return err
		}
		if err := ctx.Err(); err != nil {
			return fault.Wrap(fault.Canceled, "", err)
		}
	}
}
