package rotation_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/rotation"
	"github.com/rotorkms/rotor/internal/suite"
)

const (
	window = time.Hour
	wait   = 2 * time.Hour
)

var start = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func version(n uint32) keyring.Version {
	return keyring.Version{Handle: handle(n), Algorithm: suite.XAES256GCM}
}

func newKey(t *testing.T) keyring.Key {
	k := keyring.Key{
		ID: "k", Namespace: "n", Name: "k", Purpose: suite.Encrypt, Custody: keyring.CustodyFleet, Algorithm: suite.XAES256GCM,
		Rotation: keyring.Rotation{Window: window, Wait: wait, Approvals: 2},
	}
	return must(rotation.First(k, version(1), start))(t)
}

func staged(t *testing.T) keyring.Key {
	return must(rotation.Stage(newKey(t), version(2), start))(t)
}

func distributed(t *testing.T) keyring.Key { return must(rotation.Distribute(staged(t), start))(t) }

// promoted has version 2 as primary since start.
func promoted(t *testing.T) keyring.Key {
	k := distributed(t)
	return must(rotation.Promote(k, all(k.Epoch), start, false))(t)
}

// census is good evidence about version 1.
func censusOf(k keyring.Key, started time.Time) rotation.Census {
	return rotation.Census{Version: 1, Epoch: k.Epoch, Settled: true, Started: started}
}

func retired(t *testing.T) keyring.Key {
	k := promoted(t)
	return must(rotation.Retire(k, 1, censusOf(k, start), all(k.Epoch), start))(t)
}

func approved(t *testing.T) keyring.Key {
	k := must(rotation.Approve(retired(t), 1, "ann"))(t)
	return must(rotation.Approve(k, 1, "bob"))(t)
}

// all are members that have acknowledged an epoch.
func all(e keyring.Epoch) []rotation.Member {
	return []rotation.Member{{Instance: "a", Acked: e}, {Instance: "b", Acked: e}}
}

// one of them has not.
func behind(e keyring.Epoch) []rotation.Member {
	e.Counter--
	return append(all(e.Next()), rotation.Member{Instance: "late", Acked: e})
}

func wantCode(t *testing.T, err error, want fault.Code) {
	t.Helper()
	if fault.CodeOf(err) != want || want == "" && err != nil {
		t.Errorf("got %v (%q), want %q", err, fault.CodeOf(err), want)
	}
}

func TestFirst(t *testing.T) {
	k := newKey(t)
	if k.Primary != 1 || k.Target != 0 || k.Len() != 1 {
		t.Fatalf("%+v", k)
	}
	if v := k.At(0); v.Phase != keyring.PhasePrimary || v.State != keyring.Active || v.Number != 1 {
		t.Errorf("%+v", v)
	}
}

// TestLine walks a key along the whole line and looks at each stop.
func TestLine(t *testing.T) {
	for _, stop := range []struct {
		key     keyring.Key
		primary uint32
		phases  string
		epochs  uint64 // since the first
	}{
		{newKey(t), 1, "primary", 0},
		{staged(t), 1, "primary staged", 0},
		{distributed(t), 1, "primary distributed", 1},
		{promoted(t), 2, "decrypt-only primary", 2},
		{retired(t), 2, "retired primary", 3},
		{approved(t), 2, "retired primary", 3},
	} {
		if got := phases(stop.key); got != stop.phases || stop.key.Primary != stop.primary {
			t.Errorf("got %s with primary %d, want %s with %d", got, stop.key.Primary, stop.phases, stop.primary)
		}
		if got := stop.key.Epoch.Counter - newKey(t).Epoch.Counter; got != stop.epochs {
			t.Errorf("%s: epoch %d, want %d", stop.phases, got, stop.epochs)
		}
	}
}

func phases(k keyring.Key) string {
	var p []string
	for v := range k.All() {
		p = append(p, string(v.Phase))
	}
	return strings.Join(p, " ")
}

func TestStageAndDistributeOnce(t *testing.T) {
	_, err := rotation.Stage(staged(t), version(3), start)
	wantCode(t, err, fault.RotationInFlight)
	_, err = rotation.Distribute(newKey(t), start)
	wantCode(t, err, fault.GateClosed)
	_, err = rotation.Distribute(distributed(t), start)
	wantCode(t, err, fault.GateClosed)
}

func TestPromoteGate(t *testing.T) {
	compromised := must(rotation.Change(distributed(t), 2, keyring.Compromise, "lost", start))(t)
	margin := distributed(t)
	margin.Rotation.Margin = time.Minute
	for _, c := range []struct {
		name      string
		key       keyring.Key
		members   []rotation.Member
		now       time.Time
		emergency bool
		want      fault.Code
	}{
		{"nothing in flight", newKey(t), nil, start, false, fault.GateClosed},
		{"only staged", staged(t), nil, start, false, fault.GateClosed},
		{"only staged, in an emergency", staged(t), nil, start, true, fault.GateClosed},
		{"nobody holds it", distributed(t), nil, start, false, ""},
		{"all acknowledged", distributed(t), all(distributed(t).Epoch), start, false, ""},
		{"one has not", distributed(t), behind(distributed(t).Epoch), start, false, fault.GateClosed},
		{"one has not, in an emergency", distributed(t), behind(distributed(t).Epoch), start, true, ""},
		{"strangers' caches run", margin, nil, start.Add(time.Minute - 1), false, fault.GateClosed},
		{"strangers' caches are over", margin, nil, start.Add(time.Minute), false, ""},
		{"strangers' caches run, in an emergency", margin, nil, start, true, ""},
		{"target compromised", compromised, nil, start, true, fault.WrongState},
	} {
		t.Run(c.name, func(t *testing.T) {
			k, err := rotation.Promote(c.key, c.members, c.now, c.emergency)
			wantCode(t, err, c.want)
			if want := map[bool]uint32{true: 2, false: c.key.Primary}[err == nil]; k.Primary != want {
				t.Errorf("primary %d, want %d", k.Primary, want)
			}
		})
	}
	_, err := rotation.Promote(distributed(t), behind(distributed(t).Epoch), start, false)
	if !strings.Contains(err.Error(), "late") {
		t.Errorf("%v does not name who is late", err)
	}
}

func TestBack(t *testing.T) {
	change := func(k keyring.Key, n uint32, e keyring.Event) keyring.Key {
		return must(rotation.Change(k, n, e, "", start))(t)
	}
	settled, _ := rotation.Settle(promoted(t), start.Add(window))
	period := promoted(t)
	period.Periods = keyring.Periods{Originator: time.Minute}
	third := must(rotation.Stage(promoted(t), version(3), start))(t)
	third = must(rotation.Distribute(third, start))(t)
	third = must(rotation.Promote(third, nil, start, false))(t)
	past := must(rotation.Retire(third, 2, rotation.Census{Version: 2, Epoch: third.Epoch, Settled: true}, nil, start))(t)
	for _, c := range []struct {
		name string
		key  keyring.Key
		to   uint32
		now  time.Time
		want fault.Code
	}{
		{"within the window", promoted(t), 1, start.Add(window - 1), ""},
		{"over two versions", third, 1, start, ""},
		{"past a retired version", past, 1, start, fault.WrongState},
		{"window over", promoted(t), 1, start.Add(window), fault.WrongState},
		{"deactivated", settled, 1, start, fault.WrongState},
		{"suspended", change(promoted(t), 1, keyring.Suspend), 1, start, fault.WrongState},
		{"compromised", change(promoted(t), 1, keyring.Compromise), 1, start, fault.WrongState},
		{"past its originator-usage period", period, 1, start.Add(time.Minute), fault.PeriodOver},
		{"retired", retired(t), 1, start, fault.WrongState},
		{"the primary", promoted(t), 2, start, fault.GateClosed},
		{"unknown", promoted(t), 3, start, fault.UnknownVersion},
		{"zero", promoted(t), 0, start, fault.UnknownVersion},
		{"another one while in flight", distributed(t), 2, start, fault.RotationInFlight},
		{"in flight", distributed(t), 1, start, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := rotation.Back(c.key, c.to, c.now)
			wantCode(t, err, c.want)
		})
	}
}

func TestBackKeepsTheNewVersion(t *testing.T) {
	k := must(rotation.Back(promoted(t), 1, start))(t)
	_, err := rotation.Promote(k, behind(k.At(0).Distributed), start, false)
	wantCode(t, err, fault.GateClosed)
	k = must(rotation.Promote(k, all(k.Epoch), start, false))(t)
	if got := phases(k); k.Primary != 1 || got != "primary decrypt-only" {
		t.Errorf("primary %d, %s", k.Primary, got)
	}
}

func TestGiveUp(t *testing.T) {
	lost := must(rotation.Change(distributed(t), 2, keyring.Compromise, "lost", start))(t)
	for _, k := range []keyring.Key{staged(t), distributed(t), lost} {
		k = must(rotation.Back(k, 1, start))(t)
		if got := phases(k); got != "primary destroyed" || k.Target != 0 || k.At(1).State != keyring.Destroyed {
			t.Errorf("%s, %+v", got, k.At(1))
		}
		k = must(rotation.Stage(k, version(3), start))(t)
		if k.Target != 3 {
			t.Errorf("target %d: the number was used again", k.Target)
		}
	}
	k := must(rotation.Back(promoted(t), 1, start))(t)
	k = must(rotation.Back(k, 2, start))(t)
	if got := phases(k); got != "decrypt-only primary" || k.Target != 0 {
		t.Errorf("a rollback given up leaves %s", got)
	}
}

func TestSettle(t *testing.T) {
	if _, changed := rotation.Settle(promoted(t), start.Add(window-1)); changed {
		t.Error("deactivated within its window")
	}
	k, changed := rotation.Settle(promoted(t), start.Add(window))
	if !changed || k.At(0).State != keyring.Deactivated || !promoted(t).Epoch.Less(k.Epoch) {
		t.Errorf("%v, %+v", changed, k.At(0))
	}
	if _, changed = rotation.Settle(k, start.Add(2*window)); changed {
		t.Error("deactivated twice")
	}
	back := must(rotation.Back(promoted(t), 1, start))(t)
	if _, changed = rotation.Settle(back, start.Add(window)); changed {
		t.Error("the target of a rollback was deactivated")
	}
}

func TestRetireGate(t *testing.T) {
	k := promoted(t)
	for _, c := range []struct {
		name    string
		n       uint32
		spoil   func(*rotation.Census)
		members []rotation.Member
		want    fault.Code
	}{
		{"counted", 1, func(*rotation.Census) {}, all(k.Epoch), ""},
		{"the primary", 2, func(*rotation.Census) {}, all(k.Epoch), fault.InUse},
		{"unknown", 3, func(*rotation.Census) {}, all(k.Epoch), fault.UnknownVersion},
		{"no census", 1, func(c *rotation.Census) { *c = rotation.Census{} }, all(k.Epoch), fault.GateClosed},
		{"of another version", 1, func(c *rotation.Census) { c.Version = 2 }, all(k.Epoch), fault.GateClosed},
		{"before it was settled", 1, func(c *rotation.Census) { c.Settled = false }, all(k.Epoch), fault.GateClosed},
		{"before the promotion", 1, func(c *rotation.Census) { c.Epoch.Counter-- }, all(k.Epoch), fault.GateClosed},
		{"of another incarnation", 1, func(c *rotation.Census) { c.Epoch.Incarnation-- }, all(k.Epoch), fault.GateClosed},
		{"not everything counted", 1, func(c *rotation.Census) { c.Unreachable = []string{"lake"} }, all(k.Epoch), fault.GateClosed},
		{"something left", 1, func(c *rotation.Census) { c.Remaining = 1 }, all(k.Epoch), fault.InUse},
		{"a member behind", 1, func(*rotation.Census) {}, behind(k.Epoch), fault.GateClosed},
	} {
		t.Run(c.name, func(t *testing.T) {
			evidence := censusOf(k, start)
			c.spoil(&evidence)
			next, err := rotation.Retire(k, c.n, evidence, c.members, start)
			wantCode(t, err, c.want)
			if err == nil && (phases(next) != "retired primary" || next.At(0).State != keyring.Deactivated) {
				t.Errorf("%+v", next.At(0))
			}
		})
	}
	_, err := rotation.Retire(retired(t), 1, censusOf(k, start), nil, start)
	wantCode(t, err, fault.WrongState)
	back := must(rotation.Back(k, 1, start))(t)
	_, err = rotation.Retire(back, 1, censusOf(back, start), nil, start)
	wantCode(t, err, fault.InUse)
}

func TestUnretire(t *testing.T) {
	k := must(rotation.Unretire(approved(t), 1))(t)
	v := k.At(0)
	if v.Phase != keyring.PhaseDecryptOnly || len(v.Approved) != 0 || v.Distributed != k.Epoch || v.State != keyring.Deactivated {
		t.Errorf("%+v", v)
	}
	_, err := rotation.Retire(k, 1, censusOf(promoted(t), start), all(k.Epoch), start)
	wantCode(t, err, fault.GateClosed) // a census of before it was retired says nothing
	_, err = rotation.Unretire(k, 1)
	wantCode(t, err, fault.WrongState)
	_, err = rotation.Unretire(k, 9)
	wantCode(t, err, fault.UnknownVersion)
}

func TestAttempted(t *testing.T) {
	k, changed := rotation.Attempted(approved(t), 1, start.Add(wait))
	if !changed || k.Epoch != approved(t).Epoch {
		t.Fatal("the wait was not restarted, or holders were told")
	}
	_, err := rotation.Destroy(k, 1, censusOf(k, start.Add(wait)), all(k.Epoch), start.Add(wait))
	wantCode(t, err, fault.GateClosed)
	if _, changed = rotation.Attempted(promoted(t), 1, start.Add(wait)); changed {
		t.Error("a version that is not retired has no wait")
	}
	if _, changed = rotation.Attempted(approved(t), 1, start); changed {
		t.Error("a time that is not later changes nothing")
	}
}

func TestApprove(t *testing.T) {
	k := must(rotation.Approve(retired(t), 1, "ann"))(t)
	k = must(rotation.Approve(k, 1, "ann"))(t)
	if got := k.At(0).Approved; !slices.Equal(got, []string{"ann"}) {
		t.Errorf("%v", got)
	}
	for n, want := range map[uint32]fault.Code{1: fault.InUse, 2: fault.InUse, 3: fault.UnknownVersion} {
		_, err := rotation.Approve(promoted(t), n, "ann")
		wantCode(t, err, want)
	}
	_, err := rotation.Approve(destroyed(t), 1, "ann")
	wantCode(t, err, fault.VersionDestroyed)
}

func destroyed(t *testing.T) keyring.Key {
	k := approved(t)
	return must(rotation.Destroy(k, 1, censusOf(k, start.Add(wait)), all(k.Epoch), start.Add(wait)))(t)
}

func TestDestroyGate(t *testing.T) {
	k := approved(t)
	end := start.Add(wait)
	one := must(rotation.Approve(retired(t), 1, "ann"))(t)
	for _, c := range []struct {
		name    string
		key     keyring.Key
		spoil   func(*rotation.Census)
		members []rotation.Member
		now     time.Time
		want    fault.Code
	}{
		{"all as it should be", k, func(*rotation.Census) {}, all(k.Epoch), end, ""},
		{"in the wait", k, func(*rotation.Census) {}, all(k.Epoch), end.Add(-1), fault.GateClosed},
		{"census from the wait", k, func(c *rotation.Census) { c.Started = end.Add(-1) }, all(k.Epoch), end, fault.GateClosed},
		{"census from before the retirement", k, func(c *rotation.Census) { c.Epoch.Counter-- }, all(k.Epoch), end, fault.GateClosed},
		{"one approval", one, func(*rotation.Census) {}, all(k.Epoch), end, fault.GateClosed},
		{"retirement not acknowledged", k, func(*rotation.Census) {}, behind(k.Epoch), end, fault.GateClosed},
		{"something came back", k, func(c *rotation.Census) { c.Remaining = 1 }, all(k.Epoch), end, fault.InUse},
		{"not everything counted", k, func(c *rotation.Census) { c.Unreachable = []string{"lake"} }, all(k.Epoch), end, fault.GateClosed},
		{"not retired", promoted(t), func(*rotation.Census) {}, nil, end, fault.InUse},
		{"twice", destroyed(t), func(*rotation.Census) {}, nil, end, fault.VersionDestroyed},
	} {
		t.Run(c.name, func(t *testing.T) {
			evidence := censusOf(c.key, end)
			c.spoil(&evidence)
			next, err := rotation.Destroy(c.key, 1, evidence, c.members, c.now)
			wantCode(t, err, c.want)
			if err == nil && (phases(next) != "destroyed primary" || next.At(0).State != keyring.Destroyed) {
				t.Errorf("%+v", next.At(0))
			}
		})
	}
}

func TestNext(t *testing.T) {
	margin := distributed(t)
	margin.Rotation.Margin = time.Minute
	for _, c := range []struct {
		name    string
		key     keyring.Key
		members []rotation.Member
		now     time.Time
		want    rotation.Step
		waits   []string
	}{
		{"idle", newKey(t), nil, start, rotation.StepNone, nil},
		{"staged", staged(t), nil, start, rotation.StepDistribute, nil},
		{"a member behind", distributed(t), behind(distributed(t).Epoch), start, rotation.StepWait, []string{"late"}},
		{"margin", margin, nil, start, rotation.StepWait, []string{rotation.MarginName}},
		{"all acknowledged", distributed(t), all(distributed(t).Epoch), start, rotation.StepPromote, nil},
		{"in the window", promoted(t), nil, start, rotation.StepNone, nil},
		{"window over", promoted(t), nil, start.Add(window), rotation.StepSettle, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			step, waits := rotation.Next(c.key, c.members, c.now)
			if step != c.want || !slices.Equal(waits, c.waits) {
				t.Errorf("got %q %v, want %q %v", step, waits, c.want, c.waits)
			}
		})
	}
}

// TestInputUntouched: a step gives a new record and leaves the old one as it was.
func TestInputUntouched(t *testing.T) {
	k := approved(t)
	before := fingerprint(k)
	_, _ = rotation.Attempted(k, 1, start.Add(wait))
	_, _ = rotation.Approve(k, 1, "cid")
	_, _ = rotation.Unretire(k, 1)
	_, _ = rotation.Stage(k, version(3), start)
	_, _ = rotation.Change(k, 2, keyring.Suspend, "", start)
	_, _ = rotation.Destroy(k, 1, censusOf(k, start.Add(wait)), nil, start.Add(wait))
	if fingerprint(k) != before {
		t.Error("the record that was given was changed")
	}
}

func TestLeases(t *testing.T) {
	l := rotation.Leases{TTL: 10 * time.Second, MaxSkew: 2 * time.Second, Session: start}
	for _, c := range []struct {
		name string
		last time.Time
		now  time.Time
		want bool
	}{
		{"just asked", start.Add(time.Minute), start.Add(time.Minute), false},
		{"before ttl and skew", start.Add(time.Minute), start.Add(time.Minute + 12*time.Second - 1), false},
		{"after ttl and skew", start.Add(time.Minute), start.Add(time.Minute + 12*time.Second), true},
		{"unknown, server just started", time.Time{}, start.Add(12*time.Second - 1), false},
		{"unknown, server started long ago", time.Time{}, start.Add(12 * time.Second), true},
		{"asked the server before", start.Add(-time.Hour), start.Add(11 * time.Second), false},
	} {
		if got := l.Over(c.last, c.now); got != c.want {
			t.Errorf("%s: over %v, want %v", c.name, got, c.want)
		}
	}
}

func TestRenewable(t *testing.T) {
	fence := func(k keyring.Key) keyring.Key {
		k.Rotation.Silence = keyring.Fence
		return k
	}
	old := newKey(t).Epoch
	for _, c := range []struct {
		name  string
		key   keyring.Key
		acked keyring.Epoch
		want  bool
	}{
		{"block", distributed(t), old, true},
		{"fence, nothing in flight", fence(newKey(t)), keyring.Epoch{}, true},
		{"fence, staged", fence(staged(t)), old, true},
		{"fence, behind", fence(distributed(t)), old, false},
		{"fence, acknowledged", fence(distributed(t)), distributed(t).Epoch, true},
		{"fence, promoted", fence(promoted(t)), old, true},
	} {
		if got := rotation.Renewable(c.key, c.acked); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// TestGaps: numbers jump where a recovery lost some, and the machine finds versions by their numbers all the same.
func TestGaps(t *testing.T) {
	k := promoted(t)
	k = k.Recovered(2, 100, func(uint32) bool { return true }, start)
	k = must(rotation.Stage(k, version(3), start))(t)
	if k.Target != 101 {
		t.Fatalf("target %d", k.Target)
	}
	k = must(rotation.Distribute(k, start))(t)
	given := must(rotation.Back(k, 2, start))(t)
	if v := must(given.Version(101))(t); v.Phase != keyring.PhaseDestroyed || given.Target != 0 {
		t.Errorf("given up: %+v", v)
	}
	k = must(rotation.Promote(k, all(k.Epoch), start, false))(t)
	if v := must(k.Version(101))(t); k.Primary != 101 || v.State != keyring.Active {
		t.Errorf("promoted: primary %d, %+v", k.Primary, v)
	}
	k = must(rotation.Back(k, 2, start))(t)
	k = must(rotation.Promote(k, all(k.Epoch), start, false))(t)
	if k.Primary != 2 {
		t.Errorf("back: primary %d", k.Primary)
	}
}
