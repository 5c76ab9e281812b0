// Package campaign knows where ciphertext lives: it registers data sets, counts what is under which key version, keeps the floors below
// which data sets take nothing, and moves data to another version while it is being written. A census is the evidence that retirement
// and destruction rest on.
package campaign

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

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
	callTime       = time.Minute // bound of one call to a data set
)

// Members tells who holds a key.
type Members interface {
	// Members returns the holders and the condition under which a gate over them may be passed.
	Members(id keyring.KeyID) ([]rotation.Member, guard.Cond)
}

// Config is what a Service needs.
type Config struct {
	Guard *guard.Guard
	KMS   *kms.Service
	Fleet Members
	TLS   func(instance string) (*tls.Config, error) // to the instance that serves a data set
	Now   func() time.Time
	Log   *slog.Logger
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

	mu        sync.Mutex // guards what follows
	sets      map[string]*set
	campaigns map[string]*running
	lowering  map[string]bool // data sets whose floor is being lowered for a rollback
	start     chan *running
}

// New reads the registered data sets and the campaigns that have not ended.
func New(ctx context.Context, c Config) (*Service, error) {
	s := &Service{Config: c, sets: map[string]*set{}, campaigns: map[string]*running{}, lowering: map[string]bool{}, start: make(chan *running, 16)}
	records, _, err := c.Guard.List(ctx, setPrefix)
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
	return s, s.loadCampaigns(ctx)
}

func (s *Service) connect(d DataSet) (Adapter, error) {
	config, err := s.TLS(d.Name)
	if err != nil {
		return nil, err
	}
	return httpSet{&http.Client{Transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}, Timeout: callTime}, strings.TrimSuffix(d.URL, "/")}, nil
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
	u, err := url.Parse(d.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" || !keyring.ValidName(d.Name) || d.MaxInFlight < 0 {
		return d, fault.New(fault.Invalid, "data set").WithHint("it needs the name of the instance that serves it and an https URL")
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
	value, err := json.Marshal(d)
	if err != nil {
		return d, fmt.Errorf("encode data set: %w", err)
	}
	path := setPrefix + d.Name
	if t.rev, err = p.Commit(ctx, []guard.Cond{{Path: path}}, []guard.Write{{Path: path, Value: value}}, map[string]string{"data_set": d.Name}); err != nil {
		if fault.CodeOf(err) == fault.Conflict {
			return d, fault.New(fault.Exists, "data set "+d.Name)
		}
		return d, err
	}
	s.mu.Lock()
	s.sets[d.Name] = t
	s.mu.Unlock()
	return d, nil
}

// DataSets lists the registered data sets, by name.
func (s *Service) DataSets(ctx context.Context, c policy.Caller) ([]DataSet, error) {
	if _, err := s.Guard.Admit(ctx, c, policy.ActDataset, policy.Resource{}); err != nil {
		return nil, err
	}
	var all []DataSet
	for _, t := range s.of("") {
		all = append(all, t.now())
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

// edit changes a data set's record under conditions.
func (s *Service) edit(ctx context.Context, t *set, conds []guard.Cond, change func(DataSet) DataSet) (DataSet, error) {
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
		return t.d, err
	}
	t.d, t.rev = next, rev
	return next, nil
}

// Run moves data and destroys what is due until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	var wait sync.WaitGroup
	defer wait.Wait()
	clock := time.NewTicker(time.Second)
	defer clock.Stop()
	for _, r := range s.unfinished() {
		wait.Go(func() { s.move(ctx, r) })
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case r := <-s.start:
			wait.Go(func() { s.move(ctx, r) })
		case <-clock.C:
			s.destroyDue(ctx)
		}
	}
}
