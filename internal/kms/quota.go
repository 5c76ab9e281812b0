package kms

import (
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
)

// Quotas bound what a namespace can fill the store with. 0: no bound but the store's own. Creations at the same moment, also at several servers,
// can pass a quota together, by as many as there are of them.
type Quotas struct {
	Keys     int // keys of one namespace
	Versions int // versions of one key, also destroyed ones; an emergency passes it
}

// roomForKey says whether a namespace may have another key. fault.QuotaReached.
func (s *Service) roomForKey(ns keyring.Namespace) error {
	most := s.quotas().Keys
	if most == 0 {
		return nil
	}
	n := 0
	for k := range s.All() {
		if k.Namespace == ns {
			n++
		}
	}
	if n >= most {
		return fault.New(fault.QuotaReached, "keys of namespace "+string(ns)).WithHint("at most %d", most)
	}
	return nil
}

// roomForVersion says whether a key may have another version. fault.QuotaReached.
func (s *Service) roomForVersion(k keyring.Key) error {
	if most := s.quotas().Versions; most > 0 && k.Len() >= most {
		return fault.New(fault.QuotaReached, "versions of key "+k.Name).WithHint("at most %d, destroyed ones too: make another key", most)
	}
	return nil
}

func (s *Service) quotas() Quotas {
	if s.room == nil {
		return Quotas{}
	}
	return s.room()
}
