//go:build services

package testenv_test

import (
	"testing"

	"github.com/rotorkms/rotor/internal/testenv"
)

// TestPostgres: it comes back after it was killed.
func TestPostgres(t *testing.T) {
	p := testenv.Postgres(t)
	p.Kill()
	p.Start()
	p.Stop()
}

// TestEtcd: three members, one killed and started again.
func TestEtcd(t *testing.T) {
	e := testenv.Etcd(t, "3.4", 3)
	e.Kill(0)
	e.Start(0)
}
