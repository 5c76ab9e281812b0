package postgres

import (
	"context"
	"fmt"
	"strings"

	"github.com/rotorkms/rotor/internal/store"
)

// Durability implements store.Durable. synchronous_commit is not looked at but set for every connection of ours (on, or remote_apply where
// that is the default); whether it means another machine depends on synchronous_standby_names. Which of the named replicas are connected does not
// matter: without them commits wait.
func (s *Store) Durability(ctx context.Context) (d store.Durability, err error) {
	var fsync, pages, standbys, commit string
	err = s.read(ctx, s.timeout, func(ctx context.Context) error {
		return s.pool.QueryRow(ctx, `SELECT current_setting('fsync'), current_setting('full_page_writes'), current_setting('synchronous_standby_names'),
			current_setting('synchronous_commit')`).Scan(&fsync, &pages, &standbys, &commit)
	})
	if err != nil {
		return d, fmt.Errorf("ask for durability: %w", err)
	}
	if fsync != "on" {
		d.Crash = append(d.Crash, "fsync is "+fsync)
	}
	if pages != "on" {
		d.Crash = append(d.Crash, "full_page_writes is "+pages)
	}
	if commit != "on" && commit != "remote_apply" { // somebody changed it under us
		d.Crash = append(d.Crash, "synchronous_commit is "+commit)
	}
	if strings.TrimSpace(standbys) == "" {
		d.Machine = append(d.Machine, "synchronous_standby_names is empty")
	}
	return d, nil
}
