package kms

import (
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
)

// Floors are what a destruction needs at least. Who makes a key chooses its own numbers, which may ask for more; whoever runs the server decides
// what nobody may choose away. They bind keys that were made before, too.
type Floors struct {
	Approvals int           // distinct callers
	Wait      time.Duration // between retirement and destruction
}

func (s *Service) floors() Floors {
	if s.least == nil {
		return Floors{}
	}
	return s.least()
}

// Floored is the key as its destructions are decided: with as many approvals and as long a wait as the floors ask for.
func (s *Service) Floored(k keyring.Key) keyring.Key {
	f, r := s.floors(), k.Rotation.Defaults()
	k.Rotation.Approvals, k.Rotation.Wait = max(r.Approvals, f.Approvals), max(r.Wait, f.Wait)
	return k
}

// aboveFloors refuses a new key that asks for less than it would get. fault.Invalid.
func (s *Service) aboveFloors(k keyring.Key) error {
	f, r := s.floors(), k.Rotation.Defaults()
	switch {
	case r.Approvals < f.Approvals:
		return fault.New(fault.Invalid, "rotation.destroy_approvals").WithHint("this server destroys nothing with fewer than %d (limits.destroy_approvals)", f.Approvals)
	case r.Wait < f.Wait:
		return fault.New(fault.Invalid, "rotation.destroy_wait").WithHint("this server waits at least %v (limits.destroy_wait)", f.Wait)
	}
	return nil
}
