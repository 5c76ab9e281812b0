package server

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/store"
)

// StartOn starts a server on a store of the test's.
func StartOn(ctx context.Context, c Config, db store.Store, sealers []seal.Sealer) (*Server, error) {
	return start(ctx, c, db, named(sealers), nil)
}

func named(sealers []seal.Sealer) map[string]seal.Sealer {
	out := map[string]seal.Sealer{}
	for _, s := range sealers {
		out[s.ID()] = s
	}
	return out
}

// Defaults fills what a test left out.
func (c Config) Defaults() Config { return c.defaults() }

// Impatient makes the checks of /readyz quick, and each one anew.
func (s *Server) Impatient() {
	s.health.mu.Lock()
	defer s.health.mu.Unlock()
	s.health.kept, s.health.patience = 0, 50*time.Millisecond
}

// StartShared starts a server on a store of the test's that other servers share.
func StartShared(ctx context.Context, c Config, db store.Store, sealers []seal.Sealer) (*Server, error) {
	return startAs(ctx, c.defaults(), db, named(sealers), nil, true)
}

// InitOn makes a cluster in a store of the test's.
func InitOn(ctx context.Context, c Config, db store.Store) (InitResult, error) {
	return initDir(ctx, c.defaults(), db)
}

// Sealers opens the sealers of a configuration.
func Sealers(c Config) ([]seal.Sealer, error) {
	all, problem := openSealers(c.defaults())
	if len(all) == 0 {
		return nil, problem
	}
	return slices.Collect(maps.Values(all)), nil
}

// Opened waits until the store is open and served, or the server has ended.
func (s *Server) Opened() {
	select {
	case <-s.opened:
	case <-s.ended:
	}
}

// KMS is the use cases of keys that stand behind every protocol.
func (s *Server) KMS() *kms.Service { return s.rooms.Load().kms }
