package server

import (
	"context"
	"time"

	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/store"
)

// StartOn starts a server on a store of the test's.
var StartOn = start

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
	return startAs(ctx, c.defaults(), db, sealers, true)
}

// InitOn makes a cluster in a store of the test's.
func InitOn(ctx context.Context, c Config, db store.Store) (InitResult, error) {
	return initDir(ctx, c.defaults(), db)
}

// Sealers opens the sealers of a configuration.
func Sealers(c Config) ([]seal.Sealer, error) { return openSealers(c.defaults()) }
