package server

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/rotorkms/rotor/internal/backup"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/sealing"
	"github.com/rotorkms/rotor/internal/store/bolt"
)

// Backup writes a backup of a server that is stopped.
func Backup(ctx context.Context, c Config, keep time.Duration, w io.Writer) (made guard.Backup, err error) {
	c = c.defaults()
	if err := c.validate(); err != nil {
		return made, err
	}
	return made, c.offline(ctx, func(ctx context.Context, g *guard.Guard) error {
		var err error
		made, err = backup.Create(ctx, g, g.System("offline", policy.ActBackup, policy.Resource{}), keep, w)
		return err
	})
}

// backupSealers are what a backup may open with: the sealers that its own wrap set and the configuration name, and what shares, secret, make of them.
func (c Config) backupSealers(ctx context.Context, r *bufio.Reader, shares []string) ([]seal.Sealer, error) {
	ahead, err := r.Peek(r.Size())
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	header, err := backup.ReadHeader(ahead)
	if err != nil {
		return nil, err
	}
	wrapped, err := guard.ParseWraps(header.Root)
	if err != nil {
		return nil, err
	}
	if len(shares) > 0 {
		custodians, err := c.custodians(ctx, wrapped.Wraps, shares)
		if err != nil {
			return nil, err
		}
		return custodians.Sealers(), nil
	}
	named, problem := openSealers(c)
	all := sealing.Members(wrapped.Wraps, named).Sealers()
	for _, s := range named { // one that has left the set says so
		if _, in := wrapped.Wraps[s.ID()]; !in {
			all = append(all, s)
		}
	}
	if len(all) == 0 {
		return nil, problem
	}
	return all, nil
}

// VerifyBackup checks a backup with the server's sealers, or with shares, secret, of its custodians: the log, its counters and every record.
func VerifyBackup(ctx context.Context, c Config, file io.Reader, shares ...string) (backup.Report, error) {
	c = c.defaults()
	r := bufio.NewReaderSize(file, backup.HeaderSize)
	sealers, err := c.backupSealers(ctx, r, shares)
	if err != nil {
		return backup.Report{}, err
	}
	dir, err := os.MkdirTemp("", "rotor-verify-*")
	if err != nil {
		return backup.Report{}, err
	}
	defer func() { _ = os.RemoveAll(dir) }() // what is left of it is sealed
	scratch, err := bolt.Open(filepath.Join(dir, storeFile), bolt.Options{})
	if err != nil {
		return backup.Report{}, openFault(err)
	}
	report, err := backup.Verify(ctx, r, sealers, scratch, c.Now)
	return report, errors.Join(err, scratch.Close())
}

// RestoreBackup fills the server's store, which has to be empty, from a backup, which shares, secret, of its custodians open where nothing else does.
// The server then comes up in recovery mode.
func RestoreBackup(ctx context.Context, c Config, file io.Reader, shares ...string) (backup.Report, error) {
	c = c.defaults()
	if err := c.validate(); err != nil {
		return backup.Report{}, err
	}
	r := bufio.NewReaderSize(file, backup.HeaderSize)
	sealers, err := c.backupSealers(ctx, r, shares)
	if err != nil {
		return backup.Report{}, err
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return backup.Report{}, err
	}
	db, err := openStore(ctx, c)
	if err != nil {
		return backup.Report{}, err
	}
	report, err := backup.Restore(ctx, r, sealers, db)
	if err == nil {
		err = writeRules(c.Rules)
	}
	return report, errors.Join(err, db.Close())
}
