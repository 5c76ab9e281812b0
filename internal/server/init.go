package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/rotorkms/rotor/internal/acl"
	"github.com/rotorkms/rotor/internal/authn"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/identity"
	"github.com/rotorkms/rotor/internal/mounts"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/seal/shamir"
	"github.com/rotorkms/rotor/internal/store"
)

// defaultRules let administrators do everything. Instances get their rights from the operator.
const defaultRules = `# Who may do what. Nothing is allowed that no rule allows. Reload with SIGHUP.
version: 1
rules:
  - name: administrators
    callers: ["admin/*"]
    actions: ["*"]
    keys: {namespace: "**", names: ["**"]}
`

// InitResult is what Init made.
type InitResult struct {
	ClusterID     string
	CheckpointKey string   // pins the audit log; give it to whoever verifies the log
	AdminDir      string   // the administrator's identity; empty with Config.Enrol
	Shares        []string // what custodians get, if the cluster is sealed with shares; they exist nowhere else
	Authority     string   // path of the certificate of the cluster's authority, by which custodians and others know its servers; no secret
	Enrolment     string   // with Config.Enrol: makes the first administrator, once, within an hour. It is a secret
	RootToken     string   // with Config.Root: a token of Vault's clients with the policy root, for a day. It is a secret
}

// Init makes a new cluster: store, seal key, rules, certificate authority and an administrator's identity. fault.Exists.
func Init(ctx context.Context, c Config) (InitResult, error) {
	c = c.defaults()
	if err := c.validate(); err != nil {
		return InitResult{}, err
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return InitResult{}, fmt.Errorf("make directory of the server: %w", err)
	}
	db, err := openStore(ctx, c)
	if fault.CodeOf(err) == fault.StoreLocked { // a server runs on it
		return InitResult{}, fault.Wrap(fault.Exists, c.storeName(), err)
	}
	if err != nil {
		return InitResult{}, err
	}
	out, err := initDir(ctx, c, db)
	return out, errors.Join(err, db.Close())
}

// initDir makes seal, rules and cluster. A store without a record is what an Init leaves that was cut off, and is taken.
func initDir(ctx context.Context, c Config, db store.Store) (InitResult, error) {
	_, records := db.List(ctx, "")
	for _, err := range records {
		if err != nil {
			return InitResult{}, openFault(err)
		}
		return InitResult{}, fault.New(fault.Exists, c.storeName()).
			WithHint("if its init was cut off before it made the administrator: rotor server admin %s --dir DIR --out DIR/%s", firstAdmin, adminDir)
	}
	sealers, shares, err := makeSealers(c)
	if err != nil {
		return InitResult{}, err
	}
	if err := writeRules(c.Rules); err != nil {
		return InitResult{}, err
	}
	out, err := initStore(ctx, c, db, sealers)
	out.Shares = shamir.Texts(shares)
	return out, err
}

func initStore(ctx context.Context, c Config, db store.Store, sealers []seal.Sealer) (InitResult, error) {
	if err := os.Remove(c.Anchor); err != nil && !errors.Is(err, fs.ErrNotExist) { // of a cluster that was here before
		return InitResult{}, fmt.Errorf("remove anchor: %w", err)
	}
	made, err := guard.Init(ctx, c.guard(db, sealers))
	if err != nil {
		return InitResult{}, err
	}
	out := InitResult{ClusterID: made.ClusterID, CheckpointKey: made.CheckpointKey, Authority: filepath.Join(c.Dir, authorityFile)}
	_, err = withAuthority(ctx, c, db, sealers, func(ctx context.Context, a *authn.Authority) (err error) {
		if c.Root {
			if out.RootToken, err = rootToken(ctx, c, a); err != nil {
				return err
			}
		}
		if c.Enrol {
			out.Enrolment, err = a.Enrolment(ctx, firstAdmin, cmp.Or(c.Advertise, c.Listen))
		} else {
			out.AdminDir = filepath.Join(c.Dir, adminDir)
			err = makeAdmin(ctx, c, a, firstAdmin, out.AdminDir)
		}
		return err
	})
	return out, err
}

// rootToken makes the first token of Vault's clients.
func rootToken(ctx context.Context, c Config, a *authn.Authority) (string, error) {
	m, err := mounts.New(ctx, mounts.Config{Guard: a.Guard})
	if err != nil {
		return "", err
	}
	tokens, err := acl.New(ctx, acl.Config{Guard: a.Guard, Authority: a, Mounts: m, Now: c.Now})
	if err != nil {
		return "", err
	}
	t, err := tokens.First(ctx)
	return t.Text, err
}

func (c Config) guard(db store.Store, sealers []seal.Sealer) guard.Config {
	return guard.Config{Store: db, Sealers: sealers, Now: c.Now, Log: c.Log}
}

// NewAdmin makes an administrator's identity in a directory, or renews the one that is there, of a server that does not run now.
// Whoever can read store and seal may do it: they could do anything. shares, secret, are those of custodians where nothing else opens the store.
// It returns what Init did. fault.NotFound, StoreLocked while the server runs, SealWrong, Sealed with too few shares, ShareWrong, ShareForeign, ShareDuplicate.
func NewAdmin(ctx context.Context, c Config, name, path string, shares ...string) (InitResult, error) {
	c = c.defaults()
	if err := c.validate(); err != nil {
		return InitResult{}, err
	}
	db, err := openExisting(ctx, c)
	if err != nil {
		return InitResult{}, err
	}
	sealers, _, err := c.sealersWith(ctx, db, shares)
	if err != nil {
		return InitResult{}, errors.Join(err, db.Close())
	}
	made, err := withAuthority(ctx, c, db, sealers, func(ctx context.Context, a *authn.Authority) error { return makeAdmin(ctx, c, a, name, path) })
	return InitResult{ClusterID: made.ClusterID, CheckpointKey: made.CheckpointKey, AdminDir: path, Authority: filepath.Join(c.Dir, authorityFile)}, errors.Join(err, db.Close())
}

// makeAdmin signs and audits an administrator's certificate.
func makeAdmin(ctx context.Context, c Config, a *authn.Authority, name, path string) error {
	dir, err := identity.Open(path)
	if err != nil {
		return err
	}
	if dir.IsInstance() {
		return errors.Join(fault.New(fault.Exists, "instance "+dir.Instance()+" in "+path), dir.Close())
	}
	return errors.Join(a.Admin(ctx, dir, name, cmp.Or(c.Advertise, c.Listen)), dir.Close())
}

// withAuthority opens the store for the time that it takes to do something as the certificate authority.
func withAuthority(ctx context.Context, c Config, db store.Store, sealers []seal.Sealer, do func(context.Context, *authn.Authority) error) (guard.InitResult, error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	config := c.guard(db, sealers)
	var err error
	if config.Statements, err = c.statements(); err != nil {
		return guard.InitResult{}, err
	}
	g, err := guard.Open(ctx, config)
	if err != nil {
		return guard.InitResult{}, err
	}
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }() // ends with ctx, below
	a, err := authn.New(ctx, authn.Config{Guard: g, TrustDomain: c.TrustDomain, Namespace: c.Namespace, Now: c.Now})
	if err == nil {
		err = do(ctx, a)
	}
	if err == nil {
		err = c.keepSealedCertificate(a, c.hosts())
	}
	stop()
	return guard.InitResult{ClusterID: g.ClusterID(), CheckpointKey: g.CheckpointKey()}, errors.Join(err, <-done)
}

func writeRules(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("write rules: %w", err)
	}
	_, err = f.WriteString(defaultRules)
	return errors.Join(err, f.Close())
}
