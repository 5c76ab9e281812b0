// Package campaign knows where ciphertext lives: it registers data sets, counts what is under which key version, keeps the floors below
// which data sets take nothing, and moves data to another version while it is being written. A census is the evidence that retirement
// and destruction rest on.
package campaign

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/rotation"
	"github.com/rotorkms/rotor/internal/store"
)

const (
	setPrefix      = "dataset/"
	campaignPrefix = "campaign/"
	callTime       = time.Minute      // bound of one call to a data set
	countTime      = 10 * time.Minute // bound of all calls of one census to one data set
)

// Members tells who holds a key.
type Members interface {
	// Members returns the holders and the condition under which a gate over them may be passed.
	Members(id keyring.KeyID) ([]rotation.Member, guard.Cond)
	// CatchUp returns once Members knows every join and leave before the call.
	CatchUp(ctx context.Context) error
}

// Config is what a Service needs.
type Config struct {
	Guard *guard.Guard
	KMS   *kms.Service
	Fleet Members
	TLS   func(instance string) (*tls.Config, error) // to the instance that serves a data set
	Open  func(DataSet) (Adapter, error)             // instead of HTTP over TLS
	// Lead says whether this server moves data and destroys what is due, and the condition under which it does. nil: it always does.
	Lead func() (guard.Cond, bool)
	// Behind names the servers that may act on memory older than a revision. nil: there are no others.
	Behind func(store.Rev) []string
	Now    func() time.Time
	Log    *slog.Logger
}

// DataSet is a registered place where ciphertext of one key lives. It is served by the joined instance of the same name.
type DataSet struct {
	Name        string            `json:"name"`
	Namespace   keyring.Namespace `json:"namespace"`
	Key         keyring.KeyID     `json:"key"`
	URL         string            `json:"url"`
	MaxInFlight time.Duration     `json:"max_in_flight,omitempty"` // without a floor: how long a writer may take between encryption and write
	Floor       Floor             `json:"floor"`
	Raised      bool              `json:"raised"` // the data set has confirmed Floor
	Calm        keyring.Epoch     `json:"calm,omitzero"`
	CalmSince   time.Time         `json:"calm_since,omitzero"` // since when every holder had acknowledged the promotion of epoch Calm
}

// set is a data set in memory.
type set struct {
	mu  sync.Mutex // guards d and rev; held over commits of the record, never over calls to the data set
	d   DataSet
	rev store.Rev

	order   sync.Mutex // one floor at a time
	adapter Adapter
}

// Service keeps data sets and campaigns. Safe for concurrent use.
type Service struct {
	Config
	starting    sync.Mutex // held while a campaign is made, so that a key has one
	registering sync.Mutex // held while a data set is added, so that sets is what the store has

	mu        sync.Mutex // guards what follows
	sets      map[string]*set
	campaigns map[string]*running
	lowering  map[string]bool // data sets whose floor is to be lowered for a rollback; true: it is under way
	wake      chan struct{}   // tells Run that there is something to begin
	last      map[keyring.KeyID]Report
	known     store.Rev     // data sets as of this revision
	learnt    chan struct{} // closed and replaced when known grows
	began     store.Rev     // where the watch of campaigns starts
}

// New reads the registered data sets and the campaigns that have not ended.
func New(ctx context.Context, c Config) (*Service, error) {
	s := &Service{Config: c, sets: map[string]*set{}, campaigns: map[string]*running{}, lowering: map[string]bool{}, wake: make(chan struct{}, 1), last: map[keyring.KeyID]Report{}, learnt: make(chan struct{})}
	records, rev, err := c.Guard.List(ctx, setPrefix)
	if err != nil {
		return nil, fmt.Errorf("read data sets: %w", err)
	}
	for _, r := range records {
		t := &set{rev: r.Rev}
		if err := json.Unmarshal(r.Value, &t.d); err != nil {
			return nil, fault.Wrap(fault.RecordTampered, r.Path, err)
		}
		if t.adapter, err = s.connect(t.d); err != nil {
			return nil, err
		}
		s.sets[t.d.Name] = t
	}
	s.known = rev
	return s, s.loadCampaigns(ctx)
}

func (s *Service) connect(d DataSet) (Adapter, error) {
	if s.Open != nil {
		return s.Open(d)
	}
	config, err := s.TLS(d.Name)
	if err != nil {
		return nil, err
	}
	return HTTP(d.URL, config), nil
}

// maxURL bounds the URL of a data set, in bytes.
const maxURL = 1024

// validURL says whether a URL is only the place of a data set: https, so that the peer proves which instance it is before anything is
// sent, and no credentials, which would stand in the record and in lists.
func validURL(text string) bool {
	u, err := url.Parse(text)
	return err == nil && len(text) <= maxURL && u.Scheme == "https" && u.Host != "" && u.User == nil && u.RawQuery == "" && !u.ForceQuery && u.Fragment == ""
}

// Register adds a data set after asking it who it is. fault.Invalid, Exists, Unavailable, Denied.
func (s *Service) Register(ctx context.Context, c policy.Caller, ref kms.Ref, d DataSet) (DataSet, error) {
	k, err := s.KMS.MayAsk(ctx, c, policy.ActDataset, ref)
	if err != nil {
		return d, err
	}
	p, err := s.Guard.Admit(ctx, c, policy.ActDataset, kms.Resource(k))
	if err != nil {
		return d, err
	}
	if !validURL(d.URL) || !keyring.ValidName(d.Name) || d.MaxInFlight < 0 {
		return d, fault.New(fault.Invalid, "data set").WithHint("it needs the name of the instance that serves it and an https URL without credentials")
	}
	d.Namespace, d.Key = k.Namespace, k.ID
	t := &set{d: d}
	if t.adapter, err = s.connect(d); err != nil {
		return d, err
	}
	info, err := t.adapter.Info(ctx)
	if err != nil {
		return d, err
	}
	if !info.Floor && d.MaxInFlight == 0 {
		return d, fault.New(fault.Invalid, "max_in_flight").WithHint("the data set has no floor, so say how long a write may be on its way")
	}
	return d, s.add(context.WithoutCancel(ctx), p, t) // once it may be stored it has to be known
}

// add stores a new data set. The destruction of retired versions waits anew, because their census has not looked there, and the commit
// fails if one was destroyed or retired meanwhile.
func (s *Service) add(ctx context.Context, p *guard.Permit, t *set) error {
	s.registering.Lock()
	defer s.registering.Unlock()
	value, err := json.Marshal(t.d)
	if err != nil {
		return fmt.Errorf("encode data set: %w", err)
	}
	path := setPrefix + t.d.Name
	for {
		if err := s.restartWaits(ctx, t.d.Key); err != nil {
			return err
		}
		_, cond, err := s.KMS.Record(ctx, t.d.Key)
		if err != nil {
			return err
		}
		t.rev, err = p.Commit(ctx, []guard.Cond{{Path: path}, cond}, []guard.Write{{Path: path, Value: value}}, map[string]string{"data_set": t.d.Name})
		if fault.CodeOf(err) == fault.Conflict {
			if _, err := s.Guard.Get(ctx, path); err == nil {
				return fault.New(fault.Exists, "data set "+t.d.Name)
			}
			continue // the key changed
		}
		if err != nil {
			if made, lost := t.refresh(ctx, s.Guard, value); lost != nil || !made {
				return err
			}
		}
		s.mu.Lock()
		s.sets[t.d.Name] = t
		s.mu.Unlock()
		return nil
	}
}

// restartWaits lets every retired version of a key wait anew before it can be destroyed.
func (s *Service) restartWaits(ctx context.Context, id keyring.KeyID) error {
	k, _, err := s.KMS.Record(ctx, id)
	if err != nil {
		return err
	}
	for v := range k.Retired() {
		if err := s.restartWait(ctx, id, v.Number); err != nil {
			return err
		}
	}
	return nil
}

// errNothing ends a step that found nothing to do.
var errNothing = errors.New("campaign: nothing to do")

// restartWait lets one retired version wait anew.
func (s *Service) restartWait(ctx context.Context, id keyring.KeyID, n uint32) error {
	_, err := s.KMS.Step(ctx, id, guard.Cond{}, func(k keyring.Key, now time.Time) (keyring.Key, error) {
		next, changed := rotation.Attempted(k, n, now)
		if !changed {
			return k, errNothing
		}
		return next, nil
	})
	if errors.Is(err, errNothing) {
		return nil
	}
	return err
}

func (s *Service) named(name string) (*set, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.sets[name]
	return t, ok
}

// DataSets lists the registered data sets, by name.
func (s *Service) DataSets(ctx context.Context, c policy.Caller) ([]DataSet, error) {
	if _, err := s.Guard.Admit(ctx, c, policy.ActDataset, policy.Resource{}); err != nil {
		return nil, err
	}
	var all []DataSet
	for _, t := range s.of("") {
		if k, _ := s.KMS.Key(t.now().Key); s.Guard.Allows(c, policy.ActDataset, kms.Resource(k)) {
			all = append(all, t.now())
		}
	}
	return all, nil
}

// of returns the data sets of a key ("": all), by name.
func (s *Service) of(id keyring.KeyID) []*set {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []*set
	for _, name := range slices.Sorted(maps.Keys(s.sets)) {
		if t := s.sets[name]; id == "" || t.now().Key == id {
			found = append(found, t)
		}
	}
	return found
}

func (t *set) now() DataSet {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.d
}

// edit changes a data set's record under conditions. After a commit whose outcome it cannot know it reads the record again.
func (s *Service) edit(ctx context.Context, t *set, conds []guard.Cond, change func(DataSet) DataSet) (DataSet, error) {
	ctx = context.WithoutCancel(ctx) // a commit that was given up may have been made
	t.mu.Lock()
	defer t.mu.Unlock()
	next := change(t.d)
	value, err := json.Marshal(next)
	if err != nil {
		return t.d, fmt.Errorf("encode data set: %w", err)
	}
	k, _ := s.KMS.Key(t.d.Key)
	path := setPrefix + t.d.Name
	p := s.Guard.System("campaign", policy.ActDataset, kms.Resource(k))
	rev, err := p.Commit(ctx, append(conds, guard.Cond{Path: path, Rev: t.rev}), []guard.Write{{Path: path, Value: value}}, map[string]string{"data_set": t.d.Name})
	if err != nil {
		made, lost := t.refresh(ctx, s.Guard, value)
		if lost != nil || !made {
			return t.d, errors.Join(err, lost)
		}
		return t.d, nil
	}
	t.d, t.rev = next, rev
	return next, nil
}

// refresh reads the record and says whether it is a value that was to be written; t.mu is held.
func (t *set) refresh(ctx context.Context, g *guard.Guard, value []byte) (made bool, err error) {
	r, err := g.Get(ctx, setPrefix+t.d.Name)
	if err != nil {
		return false, err
	}
	var d DataSet
	if err := json.Unmarshal(r.Value, &d); err != nil {
		return false, fault.Wrap(fault.RecordTampered, r.Path, err)
	}
	t.d, t.rev = d, r.Rev
	return bytes.Equal(r.Value, value), nil
}

// Run follows what other servers do, and, at the server that leads, moves data, lowers floors and destroys what is due until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	sets, campaigns := s.known, s.began
	group.Go(func() error { return s.follow(ctx, setPrefix, sets, s.seeSet) })
	group.Go(func() error { return s.follow(ctx, campaignPrefix, campaigns, s.seeCampaign) })
	group.Go(func() error { s.destroyLoop(ctx); return nil })
	group.Go(func() error { s.work(ctx); return nil })
	return group.Wait()
}

// work moves data and lowers floors while this server leads.
func (s *Service) work(ctx context.Context) {
	var wait sync.WaitGroup
	defer wait.Wait()
	look := time.NewTicker(glance)
	defer look.Stop()
	var o office
	defer o.resign()
	for {
		if _, leads := s.leads(); leads {
			in := o.hold(ctx)
			for _, r := range s.unfinished() {
				if r.begin() {
					wait.Go(func() { s.move(in, r) })
				}
			}
		} else {
			o.resign()
		}
		for _, t := range s.toLower() {
			wait.Go(func() { s.lower(ctx, t) })
		}
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		case <-look.C:
		}
	}
}

// office is the time for which a server leads.
type office struct {
	ctx    context.Context
	cancel context.CancelFunc
}

// hold is the context of what a server does while it leads.
func (o *office) hold(ctx context.Context) context.Context {
	if o.ctx == nil {
		o.ctx, o.cancel = context.WithCancel(ctx)
	}
	return o.ctx
}

func (o *office) resign() {
	if o.ctx != nil {
		o.cancel()
		o.ctx = nil
	}
}

// poke tells Run that there is something to begin.
func (s *Service) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
