package server

import (
	"context"
	"errors"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/sealing"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/store"
)

// offline opens the store and its guard, whatever is wrong with it, for the time that f takes.
func (c Config) offline(ctx context.Context, f func(context.Context, *guard.Guard) error) error {
	return c.offlineWith(ctx, nil, func(ctx context.Context, g *guard.Guard, _ *sealing.Keeper) error { return f(ctx, g) })
}

// offlineWith is offline for a store that shares open; f gets the keeper that took them, nil without any.
func (c Config) offlineWith(ctx context.Context, shares []string, f func(context.Context, *guard.Guard, *sealing.Keeper) error) (err error) {
	db, err := openExisting(ctx, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	sealers, custodians, err := c.sealersWith(ctx, db, shares)
	if err != nil {
		return err
	}
	statements, err := c.statements()
	if err != nil {
		return err
	}
	g, err := guard.Open(ctx, guard.Config{Store: db, Sealers: sealers, Now: c.Now, Log: c.Log, Statements: statements, Recovery: true})
	if err != nil {
		return err
	}
	if custodians != nil {
		custodians.Opened(g)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }() // ends with ctx, below
	err = f(ctx, g, custodians)
	stop()
	return errors.Join(err, <-done)
}

// sealersWith are what a store may open with: what the configuration names, or what shares make of it together with that, and the keeper that took them.
func (c Config) sealersWith(ctx context.Context, db store.Store, shares []string) ([]seal.Sealer, *sealing.Keeper, error) {
	if len(shares) == 0 {
		sealers, err := storeSealers(ctx, c, db)
		return sealers, nil, err
	}
	wrapped, err := guard.ReadWraps(ctx, db)
	if err != nil {
		return nil, nil, err
	}
	custodians, err := c.custodians(ctx, wrapped.Wraps, shares)
	if err != nil {
		return nil, nil, err
	}
	return custodians.Sealers(), custodians, nil
}

// custodians takes shares for a wrap set.
func (c Config) custodians(ctx context.Context, wraps map[string][]byte, shares []string) (*sealing.Keeper, error) {
	named, _ := openSealers(c) // one that is away is not needed if the shares suffice
	k := sealing.NewKeeper(sealing.Config{Named: named, Wraps: wraps, Now: c.Now, Log: c.Log})
	for _, s := range shares {
		_, err := k.Unseal(ctx, "", "", secret.Copy([]byte(s)))
		if id, why := k.Missing(); fault.CodeOf(err) == fault.ShareForeign && id != "" {
			return nil, fault.Wrap(fault.ShareForeign, "", err).WithHint("the set that it is of may be a part of %s: %s", id, why)
		}
		if err != nil {
			return nil, err
		}
	}
	return k, nil
}
