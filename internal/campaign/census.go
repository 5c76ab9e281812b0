package campaign

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/rotation"
)

// Report is what a census found.
type Report struct {
	Epoch       keyring.Epoch
	Started     time.Time
	Counts      map[uint32]uint64 // ciphertexts by version
	Unknown     uint64            // of no version of the key, or unreadable
	Unreachable []string
	Settled     bool
	Sets        int
}

// Census counts the ciphertexts of a key in every registered data set. It is settled when it began after nobody could write under an
// older version any more.
func (s *Service) Census(ctx context.Context, c policy.Caller, ref kms.Ref) (Report, error) {
	k, err := s.KMS.MayAsk(ctx, c, policy.ActCensus, ref)
	if err != nil {
		return Report{}, err
	}
	return s.count(ctx, k.ID)
}

// count takes a census.
func (s *Service) count(ctx context.Context, id keyring.KeyID) (Report, error) {
	if err := s.catchUp(ctx); err != nil {
		return Report{}, err
	}
	k, late, err := s.late(ctx, id)
	if err != nil {
		return Report{}, err
	}
	r := Report{Epoch: k.Epoch, Started: s.Now().UTC(), Counts: map[uint32]uint64{}, Settled: len(late) == 0}
	numbers := map[string]uint32{}
	for v := range k.All() {
		numbers[hexHandle(v.Handle)] = v.Number
	}
	for _, t := range s.of(id) {
		r.Sets++
		r.Settled = r.Settled && s.settled(t.now(), k)
		if err := scan(ctx, t.adapter, numbers, &r); err != nil {
			r.Unreachable = append(r.Unreachable, t.now().Name)
			s.Log.WarnContext(ctx, "data set not counted", "data_set", t.now().Name, "error", err)
		}
	}
	if err := ctx.Err(); err != nil {
		return r, err
	}
	s.mu.Lock()
	s.last[id] = r
	s.mu.Unlock()
	return r, nil
}

// Last is the newest census of a key since the server started, for metrics; nobody may change it.
func (s *Service) Last(id keyring.KeyID) (Report, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.last[id]
	return r, ok
}

// scan adds what a data set says that it holds. Sums stop at their largest value, so that no answer takes away from another's.
func scan(ctx context.Context, a Adapter, numbers map[string]uint32, r *Report) error {
	ctx, cancel := context.WithTimeout(ctx, countTime)
	defer cancel()
	info, err := a.Info(ctx)
	if err != nil {
		return err
	}
	for _, shard := range info.ordered() {
		counts, unreadable, err := a.Census(ctx, shard)
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		r.Unknown = plus(r.Unknown, unreadable)
		for handle, n := range counts {
			if number, ok := numbers[handle]; ok {
				r.Counts[number] = plus(r.Counts[number], n)
			} else {
				r.Unknown = plus(r.Unknown, n)
			}
		}
	}
	return nil
}

func plus(a, b uint64) uint64 {
	if sum, carry := bits.Add64(a, b, 0); carry == 0 {
		return sum
	}
	return math.MaxUint64
}

// late reads a key and names the holders that may still protect with an older version, and the servers that may.
func (s *Service) late(ctx context.Context, id keyring.KeyID) (k keyring.Key, late []string, err error) {
	k, cond, err := s.KMS.Record(ctx, id)
	if err != nil {
		return k, nil, err
	}
	if err := s.Fleet.CatchUp(ctx); err != nil { // after the key was read: who joins later is told of it
		return k, nil, err
	}
	members, _ := s.Fleet.Members(id)
	if v, err := k.Version(k.Primary); err == nil {
		late = rotation.Waiting(members, v.Promoted)
	}
	if s.Behind != nil {
		late = append(late, s.Behind(cond.Rev)...)
	}
	return k, late, nil
}

// settled says whether a data set takes nothing any more that was encrypted before the present primary was everywhere.
func (s *Service) settled(d DataSet, k keyring.Key) bool {
	if d.Raised && slices.Equal(d.Floor.Reject, rejected(k)) {
		return true
	}
	v, err := k.Version(k.Primary)
	return err == nil && d.MaxInFlight > 0 && !d.Calm.Less(v.Promoted) && !s.Now().Before(d.CalmSince.Add(d.MaxInFlight))
}

// calm makes a census possible: every holder has acknowledged the promotion, and every floor is up or its time of flight has begun.
// fault.GateClosed names who is late.
func (s *Service) calm(ctx context.Context, k keyring.Key) error {
	if err := s.catchUp(ctx); err != nil {
		return err
	}
	_, late, err := s.late(ctx, k.ID)
	if err != nil {
		return err
	}
	if len(late) > 0 {
		return fault.New(fault.GateClosed, "key "+k.Name+" waits for "+strings.Join(late, ", "))
	}
	for _, t := range s.of(k.ID) {
		info, err := t.adapter.Info(ctx)
		if err != nil {
			return unreachable(t, err)
		}
		if !info.Floor {
			if err := s.quiet(ctx, t, k); err != nil {
				return err
			}
			continue
		}
		if err := s.raise(ctx, t); fault.CodeOf(err) == fault.Unavailable {
			return unreachable(t, err)
		} else if err != nil {
			return err
		}
	}
	return nil
}

// errUnreachable is in the chain of what fails because a data set could not be asked.
var errUnreachable = errors.New("a data set cannot be reached")

func unreachable(t *set, err error) error {
	return fault.Wrap(fault.GateClosed, "data set "+t.now().Name+" cannot be reached", errors.Join(errUnreachable, err))
}

// quiet notes since when nobody begins a write under an older version of a data set without a floor.
func (s *Service) quiet(ctx context.Context, t *set, k keyring.Key) error {
	v, err := k.Version(k.Primary)
	if err != nil {
		return err
	}
	if d := t.now(); !d.Calm.Less(v.Promoted) {
		return nil
	}
	_, err = s.edit(ctx, t, nil, func(d DataSet) DataSet {
		d.Calm, d.CalmSince = v.Promoted, s.Now().UTC()
		return d
	})
	return err
}

// evidence takes the census of one version that retirement or destruction rests on.
func (s *Service) evidence(ctx context.Context, k keyring.Key, n uint32) (rotation.Census, error) {
	if err := s.calm(ctx, k); err != nil {
		return rotation.Census{}, err
	}
	r, err := s.count(ctx, k.ID)
	if err != nil {
		return rotation.Census{}, err
	}
	c := rotation.Census{Version: n, Epoch: r.Epoch, Settled: r.Settled, Started: r.Started, Remaining: r.Counts[n], Unreachable: r.Unreachable}
	if r.Unknown > 0 {
		c.Unreachable = append(c.Unreachable, "ciphertexts of unknown versions")
	}
	return c, nil
}

// Retire withdraws a version whose census is 0, or brings it back. fault.InUse with the count, GateClosed, WrongState, Denied.
func (s *Service) Retire(ctx context.Context, c policy.Caller, ref kms.Ref, n uint32, undo bool) (keyring.Key, error) {
	if undo {
		return s.KMS.Unretire(ctx, c, ref, n)
	}
	k, err := s.KMS.MayAsk(ctx, c, policy.ActRetire, ref)
	if err != nil {
		return k, err
	}
	if v, err := k.Version(n); err != nil {
		return k, err
	} else if v.Phase != keyring.PhaseDecryptOnly || n == k.Target { // refused without a census, with the reason
		return rotation.Retire(k, n, rotation.Census{}, nil, s.Now())
	}
	census, err := s.evidence(ctx, k, n)
	if err != nil {
		return k, err
	}
	members, cond := s.Fleet.Members(k.ID)
	return s.KMS.Retire(ctx, c, ref, n, census, members, cond)
}

// Destroy notes the caller's approval and destroys the version if everything else holds already: the wait is over, enough have
// approved, the retirement is acknowledged and a second census, begun after the wait, is 0. Otherwise waiting says what is missing, and
// Run does it when it is due.
func (s *Service) Destroy(ctx context.Context, c policy.Caller, ref kms.Ref, n uint32) (k keyring.Key, destroyed bool, waiting string, err error) {
	if k, err = s.KMS.Approve(ctx, c, ref, n); err != nil {
		return k, false, "", err
	}
	next, err := s.destroy(ctx, k, n)
	switch fault.CodeOf(err) {
	case "":
		return next, true, "", nil
	case fault.GateClosed, fault.InUse:
		return k, false, reason(err), nil
	}
	return k, false, "", err
}

// reason is the resource of a fault, which names what is waited for.
func reason(err error) string {
	var f *fault.Error
	if !errors.As(err, &f) {
		return ""
	}
	return f.Resource
}

// destroy takes the step if its gate holds. The census is the expensive part, so everything that needs none is looked at first. Its count
// is checked by opening every ciphertext, as what a data set says of itself may be wrong. While a data set cannot be reached the wait
// begins anew. The step itself is the leader's, under the lead that it had before it counted: a server that slept since destroys nothing.
func (s *Service) destroy(ctx context.Context, k keyring.Key, n uint32) (keyring.Key, error) {
	now := s.Now().UTC()
	lead, leads := s.leads()
	v, err := k.Version(n)
	if err != nil {
		return k, err
	}
	r := s.KMS.Floored(k).Rotation
	if free := v.Retired.Add(r.Wait); now.Before(free) || len(v.Approved) < r.Approvals {
		return rotation.Destroy(s.KMS.Floored(k), n, rotation.Census{Started: now}, nil, now)
	}
	census, err := s.evidence(ctx, k, n)
	if err == nil && census.Remaining == 0 {
		err = s.inspectAll(ctx, k, &census)
	}
	if err == nil && census.Remaining > 0 {
		return k, fault.New(fault.InUse, fmt.Sprintf("key %s, version %d: %d ciphertexts are under it", k.Name, n, census.Remaining))
	}
	if (errors.Is(err, errUnreachable) || err == nil && len(census.Unreachable) > 0) && ctx.Err() == nil {
		err = errors.Join(err, s.restartWait(ctx, k.ID, n))
	}
	if err != nil {
		return k, err
	}
	members, cond := s.Fleet.Members(k.ID)
	if !leads {
		if _, err := rotation.Destroy(s.KMS.Floored(k), n, census, members, now); err != nil {
			return k, err
		}
		return s.destroyedByLeader(ctx, k, n)
	}
	next, err := s.KMS.Destroyed(ctx, k.ID, n, s.grounds(census, k.ID), cond, func(k keyring.Key, now time.Time) (keyring.Key, error) {
		next, err := rotation.Destroy(s.KMS.Floored(k), n, census, members, now)
		next.Rotation = k.Rotation // the floors are the server's, not the key's
		return next, err
	}, lead...)
	if err == nil {
		s.Log.InfoContext(ctx, "destroyed", "key", k.Name, "version", n)
	}
	return next, err
}

// grounds are what the log keeps of a census that a destruction rests on.
func (s *Service) grounds(c rotation.Census, id keyring.KeyID) map[string]string {
	var sets []string
	for _, t := range s.of(id) {
		sets = append(sets, t.now().Name)
	}
	slices.Sort(sets)
	return map[string]string{"census": strconv.FormatUint(c.Remaining, 10), "census_started": c.Started.Format(time.RFC3339), "data_sets": strings.Join(sets, ", ")}
}

// leaderTime is how long a server that does not lead waits for the one that does to destroy what is due; it looks every second.
const leaderTime = 10 * time.Second

// destroyedByLeader waits until the server that leads has destroyed a version. fault.GateClosed when it has not in time.
func (s *Service) destroyedByLeader(ctx context.Context, k keyring.Key, n uint32) (keyring.Key, error) {
	limited, cancel := context.WithTimeout(ctx, leaderTime)
	defer cancel()
	for limited.Err() == nil {
		now, _, err := s.KMS.Record(ctx, k.ID)
		if err != nil {
			return k, err
		}
		if v, err := now.Version(n); err != nil || v.Phase == keyring.PhaseDestroyed {
			return now, err
		}
		pause(limited, glance)
	}
	return k, fault.New(fault.GateClosed, fmt.Sprintf("key %s, version %d: the server that leads counts what is left under it", k.Name, n))
}

// destroyLoop destroys what was approved and has waited long enough.
func (s *Service) destroyLoop(ctx context.Context) {
	clock := time.NewTicker(time.Second)
	defer clock.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-clock.C:
			if _, leads := s.leads(); leads {
				s.destroyDue(ctx)
			}
		}
	}
}

func (s *Service) destroyDue(ctx context.Context) {
	for k := range s.KMS.All() {
		if k.Retirements() == 0 {
			continue
		}
		r := s.KMS.Floored(k).Rotation
		for v := range k.Retired() {
			if len(v.Approved) < r.Approvals || s.Now().Before(v.Retired.Add(r.Wait)) {
				continue
			}
			if _, err := s.destroy(ctx, k, v.Number); err != nil && ctx.Err() == nil {
				s.Log.InfoContext(ctx, "destruction waits", "key", k.Name, "version", v.Number, "error", err)
			}
		}
	}
}
