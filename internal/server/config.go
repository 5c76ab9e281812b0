// Package server makes a running server of a configuration: it chooses engine and seal, wires the rooms, starts and stops them.
package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/authn"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/identity"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/seal/local"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/bolt"
)

// Version of this build.
const Version = "0.1.0"

// Files in a server's directory.
const (
	storeFile = "rotor.db"
	sealFile  = "seal.key"
	rulesFile = "rules.yaml"
	adminDir  = "admin"

	firstAdmin = "admin" // the name of the administrator that Init makes
)

// Config says what server to run. Dir alone must be set.
type Config struct {
	Dir         string           // everything the server keeps; made with mode 0700
	Listen      string           // host:port; default 127.0.0.1:7420; port 0 takes a free one
	Advertise   string           // host:port that join tokens name; default: the listener's
	Hosts       []string         // names and addresses in the server's certificate, for strangers that check them; default: the listener's host
	Rules       string           // path of the rules file; default Dir/rules.yaml
	SealKey     string           // path of the local seal's key file; default Dir/seal.key. On another disk than Dir it protects more
	TrustDomain string           // of SPIFFE IDs, chosen at Init; default rotor.local
	Namespace   string           // that joined instances work in; default "default"
	LeaseTTL    time.Duration    // how long an instance may go on in fence mode without the server; default 10 s
	MaxSkew     time.Duration    // bound of the drift between two clocks in one LeaseTTL; default LeaseTTL / 10
	Log         *slog.Logger     // default: slog.Default
	Now         func() time.Time // default: time.Now
}

func (c Config) defaults() Config {
	c.Listen = cmp.Or(c.Listen, "127.0.0.1:7420")
	c.Rules = cmp.Or(c.Rules, filepath.Join(c.Dir, rulesFile))
	c.SealKey = cmp.Or(c.SealKey, filepath.Join(c.Dir, sealFile))
	c.TrustDomain = cmp.Or(c.TrustDomain, "rotor.local")
	c.Namespace = cmp.Or(c.Namespace, "default")
	c.LeaseTTL = cmp.Or(c.LeaseTTL, 10*time.Second)
	c.MaxSkew = cmp.Or(c.MaxSkew, c.LeaseTTL/10)
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}

func (c Config) validate() error {
	bad := func(field, hint string) error { return fault.New(fault.Invalid, field).WithHint("%s", hint) }
	switch {
	case c.Dir == "":
		return bad("dir", "name the server's directory")
	case c.LeaseTTL < 100*time.Millisecond || c.LeaseTTL > 24*time.Hour:
		return bad("lease_ttl", "100 ms to 24 h")
	case c.MaxSkew < 0 || c.MaxSkew > c.LeaseTTL:
		return bad("max_skew", "not negative, at most the lease's time")
	}
	host, _, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return bad("listen", "host:port")
	}
	if ip := net.ParseIP(host); c.Advertise == "" && (host == "" || ip != nil && ip.IsUnspecified()) {
		return bad("advertise", "name the host:port that instances reach, because the listener takes every address")
	}
	if c.Advertise != "" {
		if host, port, err := net.SplitHostPort(c.Advertise); err != nil || host == "" || port == "" || strings.ContainsAny(c.Advertise, "/?#@% ") {
			return bad("advertise", "host:port")
		}
	}
	if !trustDomain.MatchString(c.TrustDomain) {
		return bad("trust_domain", "1 to 255 lower-case letters, digits and . _ - (SPIFFE-ID, 2.1)")
	}
	if !keyring.ValidName(c.Namespace) {
		return bad("namespace", "1 to 64 lower-case letters, digits, and inside . _ -")
	}
	if slices.Contains(c.Hosts, "") {
		return bad("hosts", "names and addresses, none empty")
	}
	return nil
}

var trustDomain = regexp.MustCompile(`^[a-z0-9._-]{1,255}$`)

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
	CheckpointKey string // pins the audit log; give it to whoever verifies the log
	AdminDir      string // the administrator's identity
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
	db, err := bolt.Open(filepath.Join(c.Dir, storeFile), bolt.Options{})
	if errors.Is(err, store.ErrLocked) { // a server runs on it
		return InitResult{}, fault.Wrap(fault.Exists, "store in "+c.Dir, err)
	}
	if err != nil {
		return InitResult{}, openFault(err)
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
		return InitResult{}, fault.New(fault.Exists, "store in "+c.Dir).
			WithHint("if its init was cut off before it made the administrator: rotor server admin %s --dir DIR --out DIR/%s", firstAdmin, adminDir)
	}
	sealer, err := local.Create(c.SealKey)
	if fault.CodeOf(err) == fault.Exists {
		sealer, err = local.Open(c.SealKey)
	}
	if err != nil {
		return InitResult{}, err
	}
	if err := writeRules(c.Rules); err != nil {
		return InitResult{}, err
	}
	return initStore(ctx, c, db, sealer)
}

func initStore(ctx context.Context, c Config, db store.Store, sealer seal.Sealer) (InitResult, error) {
	made, err := guard.Init(ctx, c.guard(db, sealer))
	if err != nil {
		return InitResult{}, err
	}
	out := InitResult{ClusterID: made.ClusterID, CheckpointKey: made.CheckpointKey, AdminDir: filepath.Join(c.Dir, adminDir)}
	_, err = makeAdmin(ctx, c, db, sealer, firstAdmin, out.AdminDir)
	return out, err
}

func (c Config) guard(db store.Store, sealer seal.Sealer) guard.Config {
	return guard.Config{Store: db, Sealers: []seal.Sealer{sealer}, Now: c.Now, Log: c.Log}
}

// NewAdmin makes an administrator's identity in a directory, or renews the one that is there, of a server that does not run now.
// Whoever can read store and seal may do it: they could do anything. It returns what Init did. fault.NotFound, StoreLocked while the
// server runs, SealWrong.
func NewAdmin(ctx context.Context, c Config, name, path string) (InitResult, error) {
	c = c.defaults()
	if err := c.validate(); err != nil {
		return InitResult{}, err
	}
	sealer, err := local.Open(c.SealKey)
	if err != nil {
		return InitResult{}, err
	}
	if _, err := os.Stat(filepath.Join(c.Dir, storeFile)); err != nil {
		return InitResult{}, fault.New(fault.NotFound, "store in "+c.Dir)
	}
	db, err := bolt.Open(filepath.Join(c.Dir, storeFile), bolt.Options{})
	if err != nil {
		return InitResult{}, openFault(err)
	}
	made, err := makeAdmin(ctx, c, db, sealer, name, path)
	return InitResult{ClusterID: made.ClusterID, CheckpointKey: made.CheckpointKey, AdminDir: path}, errors.Join(err, db.Close())
}

// makeAdmin opens the store for the time that it takes to sign and audit an administrator's certificate.
func makeAdmin(ctx context.Context, c Config, db store.Store, sealer seal.Sealer, name, path string) (guard.InitResult, error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	g, err := guard.Open(ctx, c.guard(db, sealer))
	if err != nil {
		return guard.InitResult{}, err
	}
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }() // ends with ctx, below
	err = signAdmin(ctx, c, g, name, path)
	stop()
	return guard.InitResult{ClusterID: g.ClusterID(), CheckpointKey: g.CheckpointKey()}, errors.Join(err, <-done)
}

func signAdmin(ctx context.Context, c Config, g *guard.Guard, name, path string) error {
	a, err := authn.New(ctx, authn.Config{Guard: g, TrustDomain: c.TrustDomain, Namespace: c.Namespace, Now: c.Now})
	if err != nil {
		return err
	}
	dir, err := identity.Open(path)
	if err != nil {
		return err
	}
	if dir.IsInstance() {
		return errors.Join(fault.New(fault.Exists, "instance "+dir.Instance()+" in "+path), dir.Close())
	}
	return errors.Join(a.Admin(ctx, dir, name, cmp.Or(c.Advertise, c.Listen)), dir.Close())
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

func readRules(path string) (*policy.Rules, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "rules "+path).WithHint("name the rules file, or write one")
	}
	if err != nil {
		return nil, fmt.Errorf("read rules: %w", err)
	}
	return policy.Parse(path, b)
}

func openFault(err error) error {
	switch {
	case errors.Is(err, store.ErrLocked):
		return fault.Wrap(fault.StoreLocked, "store", err)
	case errors.Is(err, store.ErrCorrupt):
		return fault.Wrap(fault.StoreCorrupt, "store", err)
	}
	return err
}
