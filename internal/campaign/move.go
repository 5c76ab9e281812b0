package campaign

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/store"
)

const (
	maxPasses   = 5               // over all data sets, until the census says that nothing is left
	saveEvery   = 2 * time.Second // between stored cursors: what a crash repeats, harmlessly
	retryAfter  = 500 * time.Millisecond
	giveUpAfter = 10 * time.Minute // without progress
	maxWarnings = 20               // of ciphertexts that do not open, in the log and per batch
	finished    = "done"
	failed      = "failed"
)

// Campaign moves the data of a key to one version.
type Campaign struct {
	ID        string        `json:"id"`
	Key       keyring.KeyID `json:"key"`
	Target    uint32        `json:"target"`
	PerSecond uint64        `json:"per_second,omitempty"`
	Phase     string        `json:"phase"` // waiting, moving, done, failed
	Pass      int           `json:"pass"`
	Set       string        `json:"set,omitempty"` // where the cursor is
	Shard     string        `json:"shard,omitempty"`
	Cursor    string        `json:"cursor,omitempty"`
	Scanned   uint64        `json:"scanned"`
	Moved     uint64        `json:"moved"`
	Skipped   uint64        `json:"skipped"` // were under the target already
	Lost      uint64        `json:"lost"`    // swaps that an application's write won
	Failed    uint64        `json:"failed"`  // do not open
	Total     uint64        `json:"total"`   // ciphertexts at the start
	Error     string        `json:"error,omitempty"`
	Started   time.Time     `json:"started"`
}

// Done says whether it has ended.
func (c Campaign) Done() bool { return c.Phase == finished || c.Phase == failed }

// running is a campaign in memory.
type running struct {
	mu    sync.Mutex // guards what follows
	c     Campaign
	rev   store.Rev
	saved time.Time
	alive time.Time // last progress
	begun bool      // Run moves it
}

// begin says once that Run should move it.
func (r *running) begin() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	was := r.begun
	r.begun = true
	return !was
}

// end says that this server moves it no more.
func (r *running) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.begun = false
}

func (r *running) progressed(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.alive = now
}

func (r *running) stuck(now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return now.After(r.alive.Add(giveUpAfter))
}

func (r *running) now() Campaign {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.c
}

func (r *running) change(f func(*Campaign)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(&r.c)
}

func (s *Service) loadCampaigns(ctx context.Context) error {
	records, rev, err := s.Guard.List(ctx, campaignPrefix)
	if err != nil {
		return fmt.Errorf("read campaigns: %w", err)
	}
	s.began = rev
	for _, rec := range records {
		r := &running{rev: rec.Rev}
		if err := json.Unmarshal(rec.Value, &r.c); err != nil {
			return fault.Wrap(fault.RecordTampered, rec.Path, err)
		}
		s.campaigns[r.c.ID] = r
	}
	return nil
}

func (s *Service) unfinished() []*running {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*running
	for _, r := range s.campaigns {
		if !r.now().Done() {
			all = append(all, r)
		}
	}
	return all
}

// Start begins to move everything to a version: 0 or the primary, the only one that may protect. perSecond bounds the ciphertexts
// scanned a second, 0: as fast as it goes. fault.WrongState, RotationInFlight when the key has a campaign already.
func (s *Service) Start(ctx context.Context, c policy.Caller, ref kms.Ref, target uint32, perSecond uint64) (Campaign, error) {
	k, err := s.KMS.MayAsk(ctx, c, policy.ActCampaign, ref)
	if err != nil {
		return Campaign{}, err
	}
	p, err := s.Guard.Admit(ctx, c, policy.ActCampaign, kms.Resource(k))
	if err != nil {
		return Campaign{}, err
	}
	if k, _, err = s.KMS.Record(ctx, k.ID); err != nil { // another server may have promoted a moment ago
		return Campaign{}, err
	}
	if target == 0 {
		target = k.Primary
	}
	if target != k.Primary {
		return Campaign{}, fault.New(fault.WrongState, fmt.Sprintf("key %s, version %d", k.Name, target)).WithHint("data moves to the primary version; roll back first")
	}
	s.starting.Lock()
	defer s.starting.Unlock()
	only, err := s.only(ctx, k.ID)
	if err != nil {
		return Campaign{}, err
	}
	var id [8]byte
	rand.Read(id[:])
	r := &running{c: Campaign{ID: hex.EncodeToString(id[:]), Key: k.ID, Target: target, PerSecond: perSecond, Phase: "waiting", Started: s.Now().UTC()}}
	err = s.save(ctx, p, r, []guard.Cond{only}, guard.Write{Path: only.Path, Value: []byte(r.c.ID)})
	if fault.CodeOf(err) == fault.Conflict {
		return Campaign{}, fault.Wrap(fault.RotationInFlight, "campaign of key "+k.Name, err)
	}
	if err != nil {
		return Campaign{}, err
	}
	s.mu.Lock()
	if known := s.campaigns[r.c.ID]; known != nil {
		r = known
	}
	s.campaigns[r.now().ID] = r
	s.mu.Unlock()
	s.poke()
	return r.now(), nil
}

// ofPrefix is where the last campaign of each key stands, so that a key has one at a time whichever server begins it.
const ofPrefix = "campaign-of/"

// only is the condition that a key has no campaign that runs. fault.RotationInFlight.
func (s *Service) only(ctx context.Context, id keyring.KeyID) (guard.Cond, error) {
	cond := guard.Cond{Path: ofPrefix + string(id)}
	rec, err := s.Guard.Get(ctx, cond.Path)
	if fault.CodeOf(err) != fault.NotFound && err != nil {
		return cond, err
	}
	cond.Rev = rec.Rev
	running := string(rec.Value)
	for _, r := range s.unfinished() { // one that an older build began stands nowhere else
		if r.now().Key == id {
			running = r.now().ID
		}
	}
	if running == "" {
		return cond, nil
	}
	last, err := s.stored(ctx, running)
	if err == nil && !last.Done() {
		return cond, fault.New(fault.RotationInFlight, "campaign "+running).WithHint("the key has a campaign already; watch it with rotor campaign watch")
	}
	return cond, err
}

// stored reads a campaign as it was last stored.
func (s *Service) stored(ctx context.Context, id string) (c Campaign, err error) {
	r, err := s.Guard.Get(ctx, campaignPrefix+id)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(r.Value, &c); err != nil {
		return c, fault.Wrap(fault.RecordTampered, r.Path, err)
	}
	return c, nil
}

// Get shows a campaign to whoever may start one on its key.
func (s *Service) Get(ctx context.Context, c policy.Caller, id string) (Campaign, error) {
	s.mu.Lock()
	r := s.campaigns[id]
	s.mu.Unlock()
	var found Campaign
	if r != nil {
		found = r.now()
	} else if c, err := s.stored(ctx, id); err == nil { // another server began it a moment ago
		r, found = &running{c: c}, c
	}
	k, _ := s.KMS.Key(found.Key)
	if _, err := s.Guard.Admit(ctx, c, policy.ActCampaign, kms.Resource(k)); err != nil {
		return Campaign{}, err
	}
	if r == nil {
		return Campaign{}, fault.New(fault.NotFound, "campaign "+id)
	}
	return found, nil
}

// save stores a campaign. After a commit whose outcome it cannot know it reads the record again; if another server has stored it meanwhile,
// what that one stored counts.
func (s *Service) save(ctx context.Context, p *guard.Permit, r *running, conds []guard.Cond, also ...guard.Write) error {
	ctx = context.WithoutCancel(ctx) // a commit that was given up may have been made
	r.mu.Lock()
	defer r.mu.Unlock()
	value, err := json.Marshal(r.c)
	if err != nil {
		return fmt.Errorf("encode campaign: %w", err)
	}
	path := campaignPrefix + r.c.ID
	writes := append(also, guard.Write{Path: path, Value: value})
	rev, err := p.Commit(ctx, append(conds, guard.Cond{Path: path, Rev: r.rev}), writes, map[string]string{"campaign": r.c.ID, "phase": r.c.Phase})
	if err == nil {
		r.rev, r.saved = rev, s.Now()
		return nil
	}
	there, lost := s.Guard.Get(ctx, path)
	if lost != nil {
		return err
	}
	if bytes.Equal(there.Value, value) {
		r.rev, r.saved = there.Rev, s.Now()
		return nil
	}
	var c Campaign
	if there.Rev != r.rev && json.Unmarshal(there.Value, &c) == nil {
		r.c, r.rev = c, there.Rev
	}
	return err
}

// keep is save for who moves the campaign, as long as this server leads.
func (s *Service) keep(ctx context.Context, p *guard.Permit, r *running) error {
	conds, leads := s.leads()
	if !leads {
		return fault.New(fault.Conflict, "campaign "+r.now().ID)
	}
	return s.save(ctx, p, r, conds)
}

// move runs a campaign to its end, trying again what fails for reasons outside until nothing has moved for giveUpAfter.
func (s *Service) move(ctx context.Context, r *running) {
	k, _ := s.KMS.Key(r.now().Key)
	p := s.Guard.System("campaign", policy.ActCampaign, kms.Resource(k))
	r.progressed(s.Now())
	for ctx.Err() == nil {
		err := s.advance(ctx, p, r)
		if err == nil || ctx.Err() != nil {
			break
		}
		r.change(func(c *Campaign) { c.Error = err.Error() })
		if r.stuck(s.Now()) || fault.CodeOf(err) == fault.WrongState {
			r.change(func(c *Campaign) { c.Phase = failed })
			break
		}
		pause(ctx, retryAfter)
	}
	if ctx.Err() != nil {
		r.end() // who leads next goes on from the last stored cursor
		return
	}
	if err := s.keep(ctx, p, r); err != nil {
		r.end() // who leads looks at the end again
		s.Log.WarnContext(ctx, "campaign not saved", "campaign", r.now().ID, "error", err)
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// advance goes on from where the campaign is: nobody writes older versions any more, then pass after pass until the census shows
// nothing but the target.
func (s *Service) advance(ctx context.Context, p *guard.Permit, r *running) error {
	k, _, err := s.KMS.Record(ctx, r.now().Key)
	if err != nil {
		return err
	}
	if k.Primary != r.now().Target {
		return fault.New(fault.WrongState, fmt.Sprintf("key %s, version %d is no longer primary", k.Name, r.now().Target))
	}
	if err := s.calm(ctx, k); err != nil {
		return err
	}
	for {
		report, err := s.count(ctx, k.ID)
		if err != nil {
			return err
		}
		left := remaining(report, r.now().Target)
		r.change(func(c *Campaign) {
			c.Phase, c.Error, c.Total = "moving", "", max(c.Total, plus(left, report.Counts[c.Target]))
		})
		switch {
		case len(report.Unreachable) > 0:
			return fault.New(fault.GateClosed, "not counted: "+strings.Join(report.Unreachable, ", "))
		case left == 0 && !report.Settled:
			r.change(func(c *Campaign) { c.Phase = "waiting" })
			r.progressed(s.Now()) // writes that are on their way have a bound of their own
			return fault.New(fault.GateClosed, "key "+k.Name+" waits for writes that may be on their way")
		case left == 0:
			if err := s.verify(ctx, r); err != nil {
				return err
			}
			r.change(func(c *Campaign) { c.Phase = finished })
			return nil
		case r.now().Pass >= maxPasses:
			return fault.New(fault.WrongState, fmt.Sprintf("%d passes have not moved everything", maxPasses))
		}
		if r.now().Set == "" {
			r.change(func(c *Campaign) { c.Failed = 0 }) // they are met again in each pass
		}
		if err := s.pass(ctx, p, r, plus(left, report.Counts[r.now().Target])); err != nil {
			return err
		}
		r.change(func(c *Campaign) { c.Pass, c.Set, c.Shard, c.Cursor = c.Pass+1, "", "", "" })
	}
}

func remaining(r Report, target uint32) (n uint64) {
	for version, count := range r.Counts {
		if version != target {
			n += count
		}
	}
	return n
}

// pass goes once over every shard of every data set, from the cursor on. counted is what the census found.
func (s *Service) pass(ctx context.Context, p *guard.Permit, r *running, counted uint64) error {
	for _, t := range s.of(r.now().Key) {
		name := t.now().Name
		if name < r.now().Set {
			continue
		}
		info, err := t.adapter.Info(ctx)
		if err != nil {
			return err
		}
		for _, shard := range info.ordered() {
			at := r.now()
			if at.Set == name && shard < at.Shard {
				continue
			}
			if at.Set != name || at.Shard != shard {
				r.change(func(c *Campaign) { c.Set, c.Shard, c.Cursor = name, shard, "" })
			}
			if err := s.shard(ctx, p, r, t, shard, counted); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Service) shard(ctx context.Context, p *guard.Permit, r *running, t *set, shard string, counted uint64) error {
	limit := pageLimit(counted)
	for {
		began, rate := time.Now(), r.now().PerSecond
		n := batchSize
		if rate > 0 {
			n = int(min(rate, batchSize)) // a pause is never longer than a second
		}
		items, next, err := t.adapter.Scan(ctx, shard, r.now().Cursor, n)
		if err != nil {
			return err
		}
		if err := limit.page(t, len(items)); err != nil {
			return err
		}
		if err := s.batch(ctx, r, t, items); err != nil {
			return err
		}
		r.change(func(c *Campaign) { c.Cursor = next; c.Scanned += uint64(len(items)) })
		r.progressed(s.Now())
		if s.Now().Sub(r.lastSaved()) > saveEvery {
			if err := s.keep(ctx, p, r); err != nil {
				return err
			}
		}
		if next == "" {
			return nil
		}
		if rate > 0 {
			pause(ctx, time.Duration(len(items))*time.Second/time.Duration(min(rate, math.MaxInt64))-time.Since(began))
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// pages bounds the scan of one shard, which a data set could make endless.
type pages struct{ left uint64 }

// pageLimit allows ten times what was counted, as writers may be at work, and a million more.
func pageLimit(counted uint64) pages {
	const spare, times = 1_000_000, 10
	if counted > (math.MaxUint64-spare)/times {
		return pages{math.MaxUint64}
	}
	return pages{counted*times + spare}
}

// page takes a page off; one without items counts as much as a full one.
func (l *pages) page(t *set, items int) error {
	cost := uint64(items)
	if items == 0 {
		cost = batchSize
	}
	if cost > l.left {
		return fault.New(fault.WrongState, "data set "+t.now().Name).WithHint("a scan of it has no end")
	}
	l.left -= cost
	return nil
}

// batch re-encrypts what is not under the target yet and swaps it. A value that somebody changed meanwhile is left to the next pass:
// who changed it wrote under the primary.
func (s *Service) batch(ctx context.Context, r *running, t *set, items []Item) error {
	at := r.now()
	var swaps []Swap
	var skipped, bad uint64
	for _, it := range items {
		fresh, moved, err := s.KMS.Reencrypt(ctx, at.Key, at.Target, it.Value, it.Parts)
		switch {
		case err == nil && moved:
			swaps = append(swaps, Swap{it.ID, it.Value, fresh})
		case err == nil:
			skipped++
		case ofItem(err) && s.protects(at):
			if bad++; bad <= maxWarnings {
				s.Log.WarnContext(ctx, "ciphertext does not open", "data_set", t.now().Name, "id", it.ID, "error", err)
			}
		default:
			return err
		}
	}
	won, lost, err := swapAll(ctx, t, swaps)
	r.change(func(c *Campaign) { c.Moved += won; c.Lost += lost })
	if err == nil {
		r.change(func(c *Campaign) { c.Skipped += skipped; c.Failed += bad })
	}
	return err
}

// ofItem says whether an error is one ciphertext's, so that the others can be moved.
func ofItem(err error) bool {
	switch fault.CodeOf(err) {
	case fault.DecryptFailed, fault.UnknownVersion, fault.Invalid, fault.VersionRetired, fault.VersionDestroyed, fault.PeriodOver, fault.WrongState:
		return true
	}
	return false
}

// protects says whether the target can still protect: what is refused otherwise is no fault of the ciphertexts.
func (s *Service) protects(c Campaign) bool {
	k, ok := s.KMS.Key(c.Key)
	if !ok {
		return false
	}
	v, err := k.Version(c.Target)
	return err == nil && k.MayProtect(v, s.Now()) == nil
}

// swapAll swaps in requests of bounded size.
func swapAll(ctx context.Context, t *set, swaps []Swap) (won, lost uint64, err error) {
	for len(swaps) > 0 {
		n, size := 0, 0
		for n < len(swaps) && (n == 0 || size+len(swaps[n].Old)+len(swaps[n].New) <= maxSwap) {
			size += len(swaps[n].Old) + len(swaps[n].New)
			n++
		}
		outcomes, err := t.adapter.Swap(ctx, swaps[:n])
		if err != nil {
			return won, lost, err
		}
		for _, o := range outcomes {
			if o == Swapped {
				won++
			} else {
				lost++
			}
		}
		swaps = swaps[n:]
	}
	return won, lost, nil
}

func (r *running) lastSaved() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.saved
}
