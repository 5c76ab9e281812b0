// Package server makes a running server of a configuration: it chooses engine and seal, wires the rooms, starts and stops them.
package server

import (
	"cmp"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/replica"
	"github.com/rotorkms/rotor/internal/sealing"
)

// Version of this build.
const Version = "0.2.0"

// Files in a server's directory.
const (
	storeFile = "rotor.db"
	sealFile  = "seal.key"
	rulesFile = "rules.yaml"
	adminDir  = "admin"

	firstAdmin = "admin" // the name of the administrator that Init makes
)

// Config says what server to run. Dir alone must be set. Its tags name the keys of the configuration file (ReadFile).
type Config struct {
	Dir         string           `yaml:"dir"`            // everything the server keeps; made with mode 0700
	Listen      string           `yaml:"listen"`         // host:port; default 127.0.0.1:7420; port 0 takes a free one
	Advertise   string           `yaml:"advertise"`      // host:port that clients reach this server at; default: the listener's
	Issuer      string           `yaml:"issuer"`         // https URL that access tokens name as their issuer, the same at all servers of a cluster; default https:// and Advertise
	Hosts       []string         `yaml:"hosts"`          // names and addresses in the server's certificate, for strangers that check them; default: the listener's host
	Store       string           `yaml:"store"`          // URL of the store; default bolt:, which is the file Dir/rotor.db
	Rules       string           `yaml:"rules"`          // path of the rules file; default Dir/rules.yaml
	SealKey     string           `yaml:"seal_key"`       // path of the local seal's key file; default Dir/seal.key. On another disk than Dir it protects more
	Anchor      string           `yaml:"anchor"`         // path of the file that keeps how far the log was; default Dir/anchor. On another disk than the store it shows more
	Seals       []Seal           `yaml:"seals"`          // roots of trust that the server can ask; default: one named local, of seal_key
	SealHold    time.Duration    `yaml:"seal_hold"`      // how long the server goes on when no root that opens by itself answers; then it seals itself; default 0, for ever
	ShredEvery  time.Duration    `yaml:"shred_every"`    // how often what was destroyed is erased, without anybody asking; default 0, never. At least 1 h, in profile dev 1 s
	RecoverWait time.Duration    `yaml:"recovery_delay"` // between the announcement of a recovery and the recovery, where a root of trust opens without people; default 24 h, at least 1 h, at most 30 d; in profile dev any, and default 0
	InitSeals   []string         `yaml:"-"`              // of Init: the wrap set, each a specification of sealing.New; default: the first seal
	SealedFor   sealing.Reason   `yaml:"-"`              // why a server that sealed itself is started again; one that was told to opens by shares alone
	TrustDomain string           `yaml:"trust_domain"`   // of SPIFFE IDs, chosen at Init; default rotor.local
	Namespace   string           `yaml:"namespace"`      // that joined instances work in; default "default"
	LeaseTTL    time.Duration    `yaml:"lease_ttl"`      // how long an instance may go on in fence mode without the server; default 10 s
	MaxSkew     time.Duration    `yaml:"max_skew"`       // bound of the drift between two clocks in one LeaseTTL; default LeaseTTL / 10
	SessionTTL  time.Duration    `yaml:"session_ttl"`    // silence after which other servers on the store take this one for dead; default 5 s
	Metrics     Metrics          `yaml:"metrics"`        // what /metrics shows
	Profile     string           `yaml:"profile"`        // dev, single or ha: decides defaults and what is refused; default single
	Sandbox     string           `yaml:"sandbox"`        // on, off or require: whether the process shuts itself in; default by profile on, off (dev), require (ha)
	Drain       Drain            `yaml:"drain"`          // how the server stops
	Logging     Logging          `yaml:"log"`            // how the server logs
	Suites      Suites           `yaml:"suites"`         // which algorithms new key versions may have
	Auth        Auth             `yaml:"auth"`           // who may come in besides instances and administrators
	Limits      Limits           `yaml:"limits"`         // what callers may do and keep
	Socket      string           `yaml:"socket"`         // path of a local socket, for processes of the server's user and of root: init, status and shares; default: there is none
	Public      Public           `yaml:"public"`         // a second listener with a certificate of the operator's
	Enrol       bool             `yaml:"-"`              // of Init: make an enrolment token for the first administrator, and no directory
	Root        bool             `yaml:"-"`              // of Init: make a token of Vault's clients with the policy root
	Log         *slog.Logger     `yaml:"-"`              // default: slog.Default
	Now         func() time.Time `yaml:"-"`              // default: time.Now

	HSM          HSM      `yaml:"hsm"`           // token in which keys of custody hsm are; default: none
	SandboxPaths []string `yaml:"sandbox_paths"` // more directories that the process may read and write when it has shut itself in
	Tracing      Tracing  `yaml:"tracing"`       // where traces go
	User         string   `yaml:"user"`          // that a server started as root goes on as; default: it stays who it is

	Before *guard.Guard `yaml:"-"` // of Restart alone: the guard of the same store that the process had open
	Local  *LocalSocket `yaml:"-"` // of Restart alone: the local socket that the process has open

	// Source reads the configuration again for a reload; nil: it stays, and a reload reads the rules alone.
	Source   func() (Config, error) `yaml:"-"`
	File     string                 `yaml:"-"` // that it was read from; empty: none
	LogLevel *slog.LevelVar         `yaml:"-"` // of Log, for a reload to change; nil: it stays
}

// maxMetricKeys bounds Metrics.MaxKeys.
const maxMetricKeys = 100_000

// Metrics says what /metrics shows.
type Metrics struct {
	MaxKeys int `yaml:"max_keys"` // keys that have metrics of their own; default 1,000, at most 100,000. Each costs some 15 series
}

func (c Config) defaults() Config {
	c = c.profiled()
	c.Listen = cmp.Or(c.Listen, "127.0.0.1:7420")
	c.Store = cmp.Or(c.Store, "bolt:")
	c.Rules = cmp.Or(c.Rules, filepath.Join(c.Dir, rulesFile))
	c.SealKey = cmp.Or(c.SealKey, filepath.Join(c.Dir, sealFile))
	c.Anchor = cmp.Or(c.Anchor, filepath.Join(c.Dir, anchorFile))
	c.TrustDomain = cmp.Or(c.TrustDomain, "rotor.local")
	c.Namespace = cmp.Or(c.Namespace, "default")
	c.LeaseTTL = cmp.Or(c.LeaseTTL, 10*time.Second)
	c.MaxSkew = cmp.Or(c.MaxSkew, c.LeaseTTL/10)
	c.SessionTTL = cmp.Or(c.SessionTTL, replica.DefaultTTL)
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
		return bad("dir", "name the server's directory: --dir, or dir in the file that --config names")
	case c.LeaseTTL < 100*time.Millisecond || c.LeaseTTL > 24*time.Hour:
		return bad("lease_ttl", "100 ms to 24 h")
	case c.MaxSkew < 0 || c.MaxSkew > c.LeaseTTL:
		return bad("max_skew", "not negative, at most the lease's time")
	case c.SessionTTL < 500*time.Millisecond || c.SessionTTL > time.Minute:
		return bad("session_ttl", "500 ms to 1 m")
	case len(c.Socket) > maxSocketPath:
		return bad("socket", "a path of at most 107 bytes (unix(7))")
	case c.Metrics.MaxKeys < 0 || c.Metrics.MaxKeys > maxMetricKeys:
		return bad("metrics.max_keys", "at most 100,000")
	}
	if err := c.validateWaits(); err != nil {
		return err
	}
	if err := c.Suites.validate(); err != nil {
		return err
	}
	if _, err := engineOf(c.Store); err != nil {
		return err
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
	if c.Issuer != "" && (len(c.Issuer) > 256 || !issuerURL.MatchString(c.Issuer)) {
		return bad("issuer", "https://HOST, with a port and a path if it has them, without a slash at its end (RFC 8414, 2); at most 256 bytes")
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
	if err := errors.Join(c.Limits.validate(), c.Public.validate(), c.validateSeals(), c.HSM.validate()); err != nil {
		return err
	}
	return c.validateProfile()
}

var trustDomain = regexp.MustCompile(`^[a-z0-9._-]{1,255}$`)

// issuerURL is what verifiers compare byte by byte: no query, no fragment, no user.
var issuerURL = regexp.MustCompile(`^https://[A-Za-z0-9.\[\]:_-]{1,200}(/[A-Za-z0-9._~-]+){0,8}$`)
