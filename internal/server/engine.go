package server

import (
	"context"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/replica"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/bolt"
	"github.com/rotorkms/rotor/internal/store/etcd"
	"github.com/rotorkms/rotor/internal/store/postgres"
	"github.com/rotorkms/rotor/internal/store/transfer"
)

// openStore opens the store that the configuration names and makes an empty one where there is none. The caller closes it.
// fault.Invalid for a URL of no engine, StoreLocked, StoreCorrupt, Unavailable, StoreMoved, StoreIncomplete.
func openStore(ctx context.Context, c Config) (store.Store, error) {
	db, err := openEngine(ctx, c)
	if err != nil {
		return nil, err
	}
	if err := transfer.Check(ctx, db); err != nil {
		return nil, errors.Join(openFault(err), db.Close())
	}
	return db, nil
}

// openEngine opens a store whatever a copy has made of it.
func openEngine(ctx context.Context, c Config) (store.Store, error) {
	engine, err := engineOf(c.Store)
	if err != nil {
		return nil, err
	}
	var db store.Store
	switch engine {
	case engineBolt:
		db, err = bolt.Open(filepath.Join(c.Dir, storeFile), bolt.Options{})
	case engineEtcd:
		db, err = openEtcd(ctx, c)
	case enginePostgres:
		db, err = postgres.Open(ctx, c.Store, postgres.Options{Log: c.Log})
	}
	if err != nil {
		return nil, openFault(err)
	}
	if err := c.vouched(ctx, db); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	if err := replica.CheckFormat(ctx, db); err != nil {
		return nil, errors.Join(openFault(err), db.Close())
	}
	return db, nil
}

func openEtcd(ctx context.Context, c Config) (store.Store, error) {
	config, err := etcd.ParseURL(c.Store)
	if err != nil {
		return nil, fault.New(fault.Invalid, "store").WithHint("%s", err)
	}
	config.Log = c.Log
	s, err := etcd.Open(ctx, config)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// vouched says loudly what the engine's server may lose, and refuses it in profile ha. fault.Invalid, Unavailable.
func (c Config) vouched(ctx context.Context, db store.Store) error {
	engine, ok := db.(store.Durable)
	if !ok {
		return nil
	}
	d, err := engine.Durability(ctx)
	if err != nil {
		return openFault(err)
	}
	for _, s := range d.Crash {
		c.Log.WarnContext(ctx, "a crash of the store's server may lose keys", "setting", s)
	}
	for _, s := range d.Machine {
		c.Log.WarnContext(ctx, "the loss of the machine of the store's server loses keys", "setting", s)
	}
	if all := slices.Concat(d.Crash, d.Machine); c.Profile == ProfileHA && len(all) > 0 {
		return fault.New(fault.Invalid, "store").WithHint("profile ha needs a store that loses nothing with one machine: %s", strings.Join(all, ", "))
	}
	return nil
}

// openExisting opens a store that an Init has made. fault.NotFound when there is none.
func openExisting(ctx context.Context, c Config) (store.Store, error) {
	if engine, err := engineOf(c.Store); err != nil || engine != engineBolt {
		return openStore(ctx, c)
	}
	if _, err := os.Stat(filepath.Join(c.Dir, storeFile)); err != nil {
		return nil, fault.New(fault.NotFound, c.storeName()).WithHint("rotor server init makes a cluster, rotor backup restore brings one back")
	}
	return openStore(ctx, c)
}

// The engines, as status and the URL's scheme name them.
const (
	engineBolt     = "bolt"
	engineEtcd     = "etcd"
	enginePostgres = "postgres"
)

// engineOf names the engine that a URL asks for. fault.Invalid; its text never holds more of the URL than the scheme, for the rest may be
// a password.
func engineOf(url string) (string, error) {
	scheme, rest, ok := strings.Cut(url, ":")
	switch {
	case ok && scheme == engineBolt && rest == "":
		return engineBolt, nil
	case ok && scheme == engineEtcd:
		if _, err := etcd.ParseURL(url); err != nil {
			return "", fault.New(fault.Invalid, "store").WithHint("%s", err)
		}
		return engineEtcd, nil
	case ok && (scheme == "postgres" || scheme == "postgresql") && strings.HasPrefix(rest, "//"):
		return enginePostgres, nil
	}
	return "", fault.New(fault.Invalid, "store").WithHint("bolt: for the file %s in the server's directory, postgres://USER@HOST/DATABASE or etcd://…", storeFile)
}

// storeName names the store in errors, without what may be a secret in its URL.
func (c Config) storeName() string {
	if engine, err := engineOf(c.Store); err == nil && engine != engineBolt {
		return "store in " + engine
	}
	return "store in " + c.Dir
}

func openFault(err error) error {
	switch {
	case errors.Is(err, store.ErrLocked):
		return fault.Wrap(fault.StoreLocked, "store", err)
	case errors.Is(err, store.ErrCorrupt):
		return fault.Wrap(fault.StoreCorrupt, "store", err)
	case errors.Is(err, store.ErrUnavailable):
		return fault.Wrap(fault.Unavailable, "store", err)
	case errors.Is(err, postgres.ErrURL):
		return fault.Wrap(fault.Invalid, "store", err).WithHint("%s", err)
	case errors.Is(err, transfer.ErrMoved):
		return fault.Wrap(fault.StoreMoved, "store", err).WithHint("it is now the %s: let the configuration name it", transfer.Target(err))
	case errors.Is(err, transfer.ErrMoving):
		return fault.Wrap(fault.StoreMoved, "store", err).WithHint("end the copy to the %s, or give it up: rotor server copy --abort", transfer.Target(err))
	case errors.Is(err, transfer.ErrIncomplete):
		return fault.Wrap(fault.StoreIncomplete, "store", err)
	}
	return err
}

// Secrets are the files with passwords, tokens and private keys by which the server is known elsewhere: nobody but its user may read them. Relative paths
// in the store's URL are from the working directory, as engines take them.
func (c Config) Secrets() []string {
	var all []string
	if u, err := url.Parse(c.Store); err == nil {
		for _, name := range []string{"passfile", "password_file", "sslkey", "key_file"} {
			all = append(all, u.Query()[name]...)
		}
	}
	for _, s := range c.Seals {
		all = append(all, s.TokenFile)
	}
	for _, i := range c.Auth.Issuers {
		all = append(all, i.BearerFile)
	}
	return slices.DeleteFunc(all, func(path string) bool { return path == "" })
}

// storeFiles are the files that the URL of the store names, which are read again while the server runs. That the URL is understood validate has asked.
func (c Config) storeFiles() []string {
	switch engine, _ := engineOf(c.Store); engine {
	case engineEtcd:
		config, _ := etcd.ParseURL(c.Store)
		return config.Files()
	case enginePostgres:
		return postgres.Files(c.Store)
	}
	return nil
}
