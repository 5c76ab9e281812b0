package server

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/replica"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/etcd"
	"github.com/rotorkms/rotor/internal/store/transfer"
)

// CopyConfig says from where to where a store moves.
type CopyConfig struct {
	Dir      string              // of a store that is a file
	From, To string              // URLs as Config.Store has them
	Progress func(done, all int) // told how many records of all are there; may be nil
}

// CopyResult is what moved, compared record by record.
type CopyResult = transfer.Result

// Copy moves a store to another engine. Servers that run on the source stop, and none starts on it again; none starts on the target until
// all of it is there. It needs no seal: records move as they are, sealed. What was interrupted goes on with the same Copy.
// fault.NotFound for no source, Exists for a target with something else in it, Conflict when the source changed meanwhile, Integrity.
func Copy(ctx context.Context, c CopyConfig) (CopyResult, error) {
	from, to := c.side(c.From), c.side(c.To)
	if c.From == c.To {
		return CopyResult{}, fault.New(fault.Invalid, "to").WithHint("name another store than the source")
	}
	for _, side := range []Config{from, to} {
		engine, err := engineOf(side.Store)
		if err != nil {
			return CopyResult{}, err
		}
		if engine == engineBolt && c.Dir == "" {
			return CopyResult{}, fault.New(fault.Invalid, "dir").WithHint("name the server's directory")
		}
	}
	source, err := openSource(ctx, from)
	if err != nil {
		return CopyResult{}, err
	}
	target, err := openEngine(ctx, to)
	if err != nil {
		return CopyResult{}, errors.Join(err, source.Close())
	}
	result, err := transfer.Copy(ctx, transfer.Config{
		From: source, To: target, Name: to.placeName(), Leave: replica.Passing, Ordered: audit.Waiting, Progress: c.Progress,
	})
	return result, errors.Join(copyFault(from, to, err), target.Close(), source.Close())
}

// side is the configuration that opens one of the two stores.
func (c CopyConfig) side(url string) Config {
	return Config{Dir: c.Dir, Store: url, Log: slog.New(slog.DiscardHandler)}
}

// AbortCopy gives a copy up that has not ended: servers may run on the source again. fault.StoreMoved when it has ended, NotFound when
// none was begun.
func AbortCopy(ctx context.Context, c CopyConfig) error {
	from := c.side(c.From)
	source, err := openSource(ctx, from)
	if err != nil {
		return err
	}
	return errors.Join(copyFault(from, from, transfer.Abort(ctx, source)), source.Close())
}

// openSource opens a store that is there, whatever a copy has made of it.
func openSource(ctx context.Context, c Config) (store.Store, error) {
	engine, err := engineOf(c.Store)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(c.Dir, storeFile)); err != nil && engine == engineBolt {
		return nil, fault.New(fault.NotFound, c.storeName())
	}
	return openEngine(ctx, c)
}

// placeName is for who finds the source later: where the store has gone. It holds no secret.
func (c Config) placeName() string {
	engine, _ := engineOf(c.Store) // asked before
	if e, err := etcd.ParseURL(c.Store); err == nil {
		return "store in etcd under " + e.Prefix
	}
	if engine == engineBolt {
		return "file " + filepath.Join(c.Dir, storeFile)
	}
	return "store in " + engine
}

func copyFault(from, to Config, err error) error {
	switch {
	case errors.Is(err, transfer.ErrEmpty):
		return fault.Wrap(fault.NotFound, from.storeName(), err)
	case errors.Is(err, transfer.ErrNotEmpty):
		return fault.Wrap(fault.Exists, to.storeName(), err).WithHint("name an empty store, or another prefix or schema in it")
	case errors.Is(err, transfer.ErrChanged):
		return fault.Wrap(fault.Conflict, from.storeName(), err).WithHint("servers that ran on it have stopped by now: run the copy again")
	case errors.Is(err, transfer.ErrDiffers):
		return fault.Wrap(fault.StoreCorrupt, to.storeName(), err).WithHint("something else writes to the target; nothing has moved")
	}
	return openFault(err)
}
