// Package mounts keeps what is mounted where in each namespace: secret engines and ways to log in, with the settings that their clients give them. A
// lookup is made in memory, for every request; a change is one commit of one record for each namespace, so that two mounts never clash.
package mounts

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/store"
)

// prefix of the records, by namespace.
const prefix = "mounts/"

// Types of mounts.
const (
	Transit    = "transit"
	System     = "system"
	Cubbyhole  = "cubbyhole"
	Identity   = "identity"
	Token      = "token"
	AppRole    = "approle"
	Userpass   = "userpass"
	JWT        = "jwt"
	Kubernetes = "kubernetes"
	Cert       = "cert"
)

// Bounds of mounts.
const (
	MaxMounts   = 256       // of a namespace, beside those that are always there
	MaxPath     = 96        // of a mount, in bytes: its keys have names of at most 192
	maxSegments = 8         // of a path
	maxText     = 4 << 10   // of a description, or of one list or map of settings, in bytes
	maxElements = 64        // of a list or map of settings
	maxRecord   = 512 << 10 // of the mounts of a namespace, in bytes
	maxLease    = 10 * 366 * 24 * time.Hour
)

// DefaultLease is how long what comes from a mount is good for where nobody says otherwise, and at most: 32 days, as clients expect.
const DefaultLease = 768 * time.Hour

// Mount is one mount of a namespace.
type Mount struct {
	Path        string            `json:"path"` // with a slash at its end; of a way to log in without "auth/"
	Type        string            `json:"type"`
	Auth        bool              `json:"auth,omitempty"` // it is a way to log in
	Description string            `json:"description,omitempty"`
	Accessor    string            `json:"accessor"` // unique, and another one when it is mounted again
	UUID        string            `json:"uuid"`
	Options     map[string]string `json:"options,omitempty"`
	Local       bool              `json:"local,omitempty"`
	SealWrap    bool              `json:"seal_wrap,omitempty"`
	Settings    Settings          `json:"settings,omitzero"`
	To          string            `json:"to,omitempty"`   // path that it is on its way to; meanwhile nothing below it is served
	Moved       Moved             `json:"moved,omitzero"` // the last move
	BuiltIn     bool              `json:"-"`              // it is there in every namespace and stays
}

// Moved is a move of a mount to where it is, or on its way to.
type Moved struct {
	ID   string `json:"id"`
	From string `json:"from"` // the path that it had
}

// Settings are what can be tuned. But for the leases and the type of token, which ways to log in go by, they are kept and shown, and change nothing.
type Settings struct {
	DefaultLease, MaxLease  int64    `json:",omitempty"` // seconds; 0: DefaultLease
	ForceNoCache            bool     `json:",omitempty"`
	AuditNonHMACRequest     []string `json:",omitempty"`
	AuditNonHMACResponse    []string `json:",omitempty"`
	PassthroughHeaders      []string `json:",omitempty"`
	AllowedResponseHeaders  []string `json:",omitempty"`
	AllowedManagedKeys      []string `json:",omitempty"`
	ListingVisibility       string   `json:",omitempty"` // "", "hidden" or "unauth"
	TokenType               string   `json:",omitempty"` // of a way to log in: "", "default-service", "default-batch", "service" or "batch"
	UserLockoutThreshold    uint64   `json:",omitempty"`
	UserLockoutDuration     int64    `json:",omitempty"` // seconds
	UserLockoutCounterReset int64    `json:",omitempty"` // seconds
	UserLockoutDisable      bool     `json:",omitempty"`
}

// Leases are the default and the longest life of what comes from the mount.
func (m Mount) Leases() (usual, most time.Duration) {
	most = time.Duration(cmp.Or(m.Settings.MaxLease, int64(DefaultLease/time.Second))) * time.Second
	usual = time.Duration(cmp.Or(m.Settings.DefaultLease, int64(DefaultLease/time.Second))) * time.Second
	return min(usual, most), most
}

// Full is the path from the root of the namespace, with a slash at its end.
func (m Mount) Full() string {
	if m.Auth {
		return "auth/" + m.Path
	}
	return m.Path
}

// Config is what a Service needs.
type Config struct {
	Guard *guard.Guard
	Log   *slog.Logger
	Home  keyring.Namespace // the namespace that the others are in

	// Clear removes what is below a mount that goes, before it does; it is called again after a crash, and an error keeps the mount. nil: nothing is.
	Clear func(ctx context.Context, c policy.Caller, ns keyring.Namespace, m Mount) error
	// Move takes what is below a mount to another path, before the mount goes there; it is called again after a crash, and an error keeps the mount. nil: nothing is.
	Move func(ctx context.Context, c policy.Caller, ns keyring.Namespace, m Mount, to string) error

	Heard  func(ctx context.Context, rev store.Rev) error // waits until no server acts on memory older than a commit; nil: there is no other server
	Agreed func() bool                                    // every server on the store knows that namespaces end; nil: there is no other server
	// Vacant refuses when a closed namespace has something that may not go with it; it is also asked before it is closed. nil: nothing may not.
	Vacant func(ctx context.Context, ns keyring.Namespace) error
	// Vacate removes all that is in a closed namespace but its mounts, under the condition that it is still closed; it is called again after a crash. nil: nothing is.
	Vacate func(ctx context.Context, p *guard.Permit, still guard.Cond, ns keyring.Namespace) error
}

// Service keeps the mounts of all namespaces. Safe for concurrent use.
type Service struct {
	Config
	from  store.Rev
	taken atomic.Uint64 // the last commit that Run has followed

	mu     sync.Mutex // held while tables is replaced
	tables atomic.Pointer[map[keyring.Namespace]*table]
}

// table is the mounts of one namespace, of one commit.
type table struct {
	rev    store.Rev
	byPath map[string]Mount // by Full
}

// New reads the mounts.
func New(ctx context.Context, c Config) (*Service, error) {
	s := &Service{Config: c}
	s.tables.Store(&map[keyring.Namespace]*table{})
	records, rev, err := c.Guard.List(ctx, prefix)
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	s.from = rev
	s.taken.Store(uint64(rev))
	for _, r := range records {
		if err := s.take(guard.Change{Record: r}); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Run follows what this server and others commit until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	return s.Guard.Follow(ctx, prefix, s.from, func(changes []guard.Change) error {
		for _, c := range changes {
			if err := s.take(c); err != nil {
				return err
			}
		}
		s.taken.Store(uint64(changes[len(changes)-1].Rev))
		return nil
	})
}

// Seen is a revision up to which the tables have every commit.
func (s *Service) Seen() store.Rev {
	heard := store.Rev(s.taken.Load())
	return s.Guard.SeenBy(strings.TrimSuffix(prefix, "/"), heard)
}

// take applies a change unless a later one is known.
func (s *Service) take(c guard.Change) error {
	ns := keyring.Namespace(strings.TrimPrefix(c.Path, prefix))
	s.mu.Lock()
	defer s.mu.Unlock()
	now := *s.tables.Load()
	if t := now[ns]; t != nil && t.rev > c.Rev {
		return nil
	}
	all, err := s.decode(ns, c.Value)
	if err != nil {
		return err
	}
	next := make(map[keyring.Namespace]*table, len(now)+1)
	for n, t := range now {
		next[n] = t
	}
	next[ns] = s.tableOf(ns, all, c.Rev)
	s.tables.Store(&next)
	return nil
}

// record is the stored form: what is mounted beside what is always there, and how token/ is tuned.
type record struct {
	Mounts []Mount `json:"mounts"`
}

func (s *Service) decode(ns keyring.Namespace, value []byte) ([]Mount, error) {
	if len(value) == 0 {
		return s.initial(ns), nil
	}
	var r record
	if err := json.Unmarshal(value, &r); err != nil {
		return nil, fault.Wrap(fault.RecordTampered, prefix+string(ns), err)
	}
	return r.Mounts, nil
}

// initial is what a namespace has before anybody changes it.
func (s *Service) initial(ns keyring.Namespace) []Mount {
	return []Mount{s.fixed(ns, Mount{Path: "transit/", Type: Transit})}
}

// builtIn are the mounts that every namespace has and keeps.
func (s *Service) builtIn(ns keyring.Namespace) []Mount {
	all := []Mount{
		{Path: "sys/", Type: System, Description: "system endpoints used for control, policy and debugging", SealWrap: true, Settings: Settings{PassthroughHeaders: []string{"Accept"}}},
		{Path: "identity/", Type: Identity, Description: "identity store", Settings: Settings{PassthroughHeaders: []string{"Authorization"}}},
		{Path: "cubbyhole/", Type: Cubbyhole, Description: "per-token private secret storage", Local: true},
		{Path: "token/", Type: Token, Auth: true, Description: "token based credentials"},
	}
	for i, m := range all {
		all[i] = s.fixed(ns, m)
		all[i].BuiltIn = true
	}
	return all
}

// fixed gives a mount that nobody made the accessor and UUID that it has at every server: of a hash, for they are names and no secrets.
func (s *Service) fixed(ns keyring.Namespace, m Mount) Mount {
	sum := sha256.Sum256([]byte(s.Guard.ClusterID() + "\x00" + string(ns) + "\x00" + m.Full()))
	m.Accessor, m.UUID = accessor(m, sum[:4]), uuid(sum[4:20])
	return m
}

func accessor(m Mount, random []byte) string {
	kind := m.Type
	if m.Auth {
		kind = "auth_" + kind
	}
	return kind + "_" + hex.EncodeToString(random)
}

func uuid(b []byte) string {
	h := hex.EncodeToString(b)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

func (s *Service) tableOf(ns keyring.Namespace, all []Mount, rev store.Rev) *table {
	t := &table{rev: rev, byPath: map[string]Mount{}}
	for _, m := range append(s.builtIn(ns), all...) {
		if old, ok := t.byPath[m.Full()]; ok && old.BuiltIn { // it was tuned
			old.Description, old.Options, old.Settings = m.Description, m.Options, m.Settings
			m = old
		}
		t.byPath[m.Full()] = m
	}
	return t
}

// of is the table of a namespace; one that nobody changed is made for the question.
func (s *Service) of(ns keyring.Namespace) *table {
	if t := (*s.tables.Load())[ns]; t != nil {
		return t
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := *s.tables.Load()
	if t := now[ns]; t != nil {
		return t
	}
	t := s.tableOf(ns, s.initial(ns), 0)
	if !s.Guard.HasNamespace(string(ns)) { // whoever asks for names that there are not fills no memory
		return t
	}
	next := make(map[keyring.Namespace]*table, len(now)+1)
	for n, t := range now {
		next[n] = t
	}
	next[ns] = t
	s.tables.Store(&next)
	return t
}

// Has says whether there is a namespace.
func (s *Service) Has(ns keyring.Namespace) bool {
	if _, closed := s.Guard.Life(string(ns)); closed {
		return false
	}
	return (*s.tables.Load())[ns] != nil || s.Guard.HasNamespace(string(ns))
}

// Find finds the mount that a path of a namespace is below, such as "transit/keys/a" or "auth/approle/login", and what of the path follows it. A path
// that ends where the mount does may lack the slash. One that is on its way elsewhere is not found.
func (s *Service) Find(ns keyring.Namespace, path string) (m Mount, rest string, ok bool) {
	m, rest, ok = s.of(ns).find(path)
	return m, rest, ok && m.To == ""
}

func (t *table) find(path string) (m Mount, rest string, ok bool) {
	for at := 0; at < len(path); {
		slash := strings.IndexByte(path[at:], '/')
		if slash < 0 {
			m, ok = t.byPath[path+"/"]
			return m, "", ok
		}
		at += slash + 1
		if m, ok = t.byPath[path[:at]]; ok {
			return m, path[at:], true
		}
	}
	return Mount{}, "", false
}

// Mounted is a Find of the very path of a mount, of a way to log in with auth, else of a secret engine; with or without its slash.
func (s *Service) Mounted(ns keyring.Namespace, auth bool, path string) (Mount, bool) {
	m, ok := s.of(ns).byPath[Mount{Path: clean(path), Auth: auth}.Full()]
	return m, ok && m.Auth == auth
}

// All are the mounts of a namespace by path: secret engines first, then ways to log in. It asks nobody: for List there is a right, for Shown there are the
// caller's own.
func (s *Service) All(ns keyring.Namespace) []Mount {
	var out []Mount
	for _, m := range s.of(ns).byPath {
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b Mount) int {
		if a.Auth != b.Auth {
			if b.Auth {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.Path, b.Path)
	})
	return out
}

// List is All for who may see the mounts. fault.Denied.
func (s *Service) List(ctx context.Context, c policy.Caller, ns keyring.Namespace) ([]Mount, error) {
	if _, err := s.Guard.Admit(ctx, c, policy.ActMounts, policy.Resource{Namespace: string(ns)}); err != nil {
		return nil, err
	}
	return s.All(ns), nil
}

// random are bytes of names, which are no secrets.
func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) //nolint:errcheck // it never fails (crypto/rand)
	return b
}
