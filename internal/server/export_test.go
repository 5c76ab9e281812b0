package server

import "time"

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
