package holder_test

import (
	"encoding/json"
	"math"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/holder"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/suite"
)

var now = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// snapshot has version 1 decrypt-only and version 2 primary.
func snapshot(epoch uint64) keyring.Snapshot {
	return keyring.Snapshot{
		Key: "k", Namespace: "n", Name: "k", Purpose: suite.Encrypt, Custody: keyring.CustodyFleet, Silence: keyring.Block,
		MaxStale: time.Hour, Epoch: keyring.Epoch{Incarnation: 1, Counter: epoch}, Primary: 2,
		Versions: []keyring.SnapshotVersion{
			{Number: 1, Handle: 101, Algorithm: suite.XAES256GCM, Phase: keyring.PhaseDecryptOnly, State: keyring.Active},
			{Number: 2, Handle: 102, Algorithm: suite.XAES256GCM, Phase: keyring.PhasePrimary, State: keyring.Active},
		},
	}
}

func with(s keyring.Snapshot, change func(*keyring.Snapshot)) keyring.Snapshot {
	s.Versions = append([]keyring.SnapshotVersion(nil), s.Versions...)
	change(&s)
	return s
}

func wantCode(t *testing.T, err error, want fault.Code) {
	t.Helper()
	if fault.CodeOf(err) != want || want == "" && err != nil {
		t.Errorf("got %v (%q), want %q", err, fault.CodeOf(err), want)
	}
}

func TestApply(t *testing.T) {
	old := with(snapshot(5), func(s *keyring.Snapshot) {
		s.Versions = append(s.Versions, keyring.SnapshotVersion{Number: 3, Handle: 103, Phase: keyring.PhaseDestroyed, State: keyring.Destroyed})
	})
	newer := with(old, func(s *keyring.Snapshot) { s.Epoch.Counter = 6 })
	for _, c := range []struct {
		name    string
		change  func(*keyring.Snapshot)
		changed bool
		want    fault.Code
	}{
		{"newer", func(*keyring.Snapshot) {}, true, ""},
		{"much newer", func(s *keyring.Snapshot) { s.Epoch.Counter = math.MaxUint64 }, true, ""},
		{"newer incarnation, lower counter", func(s *keyring.Snapshot) { s.Epoch = keyring.Epoch{Incarnation: 2} }, true, ""},
		{"equal", func(s *keyring.Snapshot) { s.Epoch.Counter = 5 }, false, ""},
		{"older", func(s *keyring.Snapshot) { s.Epoch.Counter = 4 }, false, fault.SnapshotRefused},
		{"older incarnation, higher counter", func(s *keyring.Snapshot) { s.Epoch = keyring.Epoch{Counter: 9} }, false, fault.SnapshotRefused},
		{"another key", func(s *keyring.Snapshot) { s.Key = "other" }, false, fault.SnapshotRefused},
		{"another namespace", func(s *keyring.Snapshot) { s.Namespace = "other" }, false, fault.SnapshotRefused},
		{"another purpose", func(s *keyring.Snapshot) { s.Purpose = suite.MAC }, false, fault.SnapshotRefused},
		{"another custody", func(s *keyring.Snapshot) { s.Custody = keyring.CustodyServer }, false, fault.SnapshotRefused},
		{"another version 1", func(s *keyring.Snapshot) { s.Versions[0].Handle = 9 }, false, fault.SnapshotRefused},
		{"another algorithm", func(s *keyring.Snapshot) { s.Versions[0].Algorithm = suite.HMACSHA256 }, false, fault.SnapshotRefused},
		{"without version 1", func(s *keyring.Snapshot) { s.Versions = s.Versions[1:] }, false, fault.SnapshotRefused},
		{"without any", func(s *keyring.Snapshot) { s.Versions = nil }, false, fault.SnapshotRefused},
		{"without the tombstone", func(s *keyring.Snapshot) { s.Versions = s.Versions[:2] }, false, fault.SnapshotRefused},
		{"back from the dead", func(s *keyring.Snapshot) { s.Versions[2].Phase = keyring.PhaseDecryptOnly }, false, fault.SnapshotRefused},
		{"version 1 destroyed", func(s *keyring.Snapshot) { s.Versions[0].Phase = keyring.PhaseDestroyed }, true, ""},
		{"a live version with a dead one's handle", func(s *keyring.Snapshot) {
			s.Versions = append([]keyring.SnapshotVersion{{Number: 4, Handle: 103, Phase: keyring.PhaseDecryptOnly, State: keyring.Active}}, s.Versions...)
		}, false, fault.SnapshotRefused},
		{"version 1 twice", func(s *keyring.Snapshot) { s.Versions = append(s.Versions, s.Versions[0]) }, false, fault.SnapshotRefused},
		{"renamed", func(s *keyring.Snapshot) { s.Name = "new-name" }, true, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			had := &holder.Key{Snapshot: old}
			s := with(newer, c.change)
			next, changed, err := holder.Apply(had, s)
			wantCode(t, err, c.want)
			if changed != c.changed {
				t.Errorf("changed %v, want %v", changed, c.changed)
			}
			if want := map[bool]keyring.Epoch{true: s.Epoch, false: old.Epoch}[c.changed]; next.Snapshot.Epoch != want {
				t.Errorf("epoch %v, want %v", next.Snapshot.Epoch, want)
			}
			if !changed && next != had {
				t.Error("the key was replaced")
			}
		})
	}
}

func TestApplyFirst(t *testing.T) {
	k, changed, err := holder.Apply(nil, snapshot(0))
	if err != nil || !changed || k.Snapshot.Primary != 2 {
		t.Error(k, changed, err)
	}
	twice := with(snapshot(0), func(s *keyring.Snapshot) { s.Versions = append(s.Versions, s.Versions[0]) })
	_, changed, err = holder.Apply(nil, twice)
	wantCode(t, err, fault.SnapshotRefused)
	if changed {
		t.Error("a snapshot with one number twice was taken")
	}
}

func TestProtect(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*keyring.Snapshot)
		want   fault.Code
	}{
		{"primary", func(*keyring.Snapshot) {}, ""},
		{"no primary yet", func(s *keyring.Snapshot) { s.Primary = 0 }, fault.WrongState},
		{"primary not in it", func(s *keyring.Snapshot) { s.Primary = 9 }, fault.WrongState},
		{"suspended", func(s *keyring.Snapshot) { s.Versions[1].State = keyring.Suspended }, fault.WrongState},
		{"compromised", func(s *keyring.Snapshot) { s.Versions[1].State = keyring.Compromised }, fault.WrongState},
		{"named primary, but only distributed", func(s *keyring.Snapshot) { s.Versions[1].Phase = keyring.PhaseDistributed }, fault.WrongState},
		{"period runs", func(s *keyring.Snapshot) { s.Versions[1].NotAfter = now.Add(1) }, ""},
		{"period over", func(s *keyring.Snapshot) { s.Versions[1].NotAfter = now }, fault.PeriodOver},
	} {
		k := &holder.Key{Snapshot: with(snapshot(1), c.change)}
		v, err := k.Protect(now)
		t.Run(c.name, func(t *testing.T) {
			wantCode(t, err, c.want)
			if err == nil && v.Number != 2 {
				t.Errorf("protects with version %d", v.Number)
			}
		})
	}
}

func TestProcess(t *testing.T) {
	for _, c := range []struct {
		name   string
		handle uint32
		change func(*keyring.SnapshotVersion)
		want   fault.Code
	}{
		{"primary", 102, func(*keyring.SnapshotVersion) {}, ""},
		{"decrypt-only", 101, func(*keyring.SnapshotVersion) {}, ""},
		{"deactivated", 101, func(v *keyring.SnapshotVersion) { v.State = keyring.Deactivated }, ""},
		{"distributed", 101, func(v *keyring.SnapshotVersion) {
			v.Phase, v.State = keyring.PhaseDistributed, keyring.PreActivation
		}, ""},
		{"unknown", 7, func(*keyring.SnapshotVersion) {}, fault.UnknownVersion},
		{"suspended", 101, func(v *keyring.SnapshotVersion) { v.State = keyring.Suspended }, fault.WrongState},
		{"compromised", 101, func(v *keyring.SnapshotVersion) { v.State = keyring.Compromised }, fault.WrongState},
		{"retired", 101, func(v *keyring.SnapshotVersion) { v.Phase = keyring.PhaseRetired }, fault.VersionRetired},
		{"destroyed", 101, func(v *keyring.SnapshotVersion) { v.Phase = keyring.PhaseDestroyed }, fault.VersionDestroyed},
		{"destroyed by its state", 101, func(v *keyring.SnapshotVersion) { v.State = keyring.Destroyed }, fault.VersionDestroyed},
		{"a phase of a newer server", 101, func(v *keyring.SnapshotVersion) { v.Phase = "frozen" }, fault.WrongState},
		{"a state of a newer server", 101, func(v *keyring.SnapshotVersion) { v.State = "odd" }, fault.WrongState},
		{"staged, which is never sent", 101, func(v *keyring.SnapshotVersion) { v.Phase = keyring.PhaseStaged }, fault.WrongState},
		{"no phase", 101, func(v *keyring.SnapshotVersion) { v.Phase = "" }, fault.WrongState},
		{"period runs", 101, func(v *keyring.SnapshotVersion) { v.Expires = now.Add(1) }, ""},
		{"period over", 101, func(v *keyring.SnapshotVersion) { v.Expires = now }, fault.PeriodOver},
		{"may not protect any more", 102, func(v *keyring.SnapshotVersion) { v.NotAfter = now }, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := &holder.Key{Snapshot: with(snapshot(1), func(s *keyring.Snapshot) {
				for i := range s.Versions {
					if s.Versions[i].Handle == c.handle {
						c.change(&s.Versions[i])
					}
				}
			})}
			_, err := k.Process(c.handle, now)
			wantCode(t, err, c.want)
		})
	}
}

const (
	ttl    = 10 * time.Second
	margin = time.Second
)

var sent = holder.Instant{Boot: 1 << 40, Real: 1 << 60}

func TestUsable(t *testing.T) {
	c := holder.Granted(holder.Contact{}, sent, ttl, margin)
	for _, u := range []struct {
		name    string
		silence keyring.Silence
		contact holder.Contact
		now     holder.Instant
		want    fault.Code
	}{
		{"fence, never heard", keyring.Fence, holder.Contact{}, sent, fault.LeaseOver},
		{"fence, in the lease", keyring.Fence, c, sent.Add(ttl - margin - 1), ""},
		{"fence, end of the lease", keyring.Fence, c, sent.Add(ttl - margin), fault.LeaseOver},
		{"fence, suspended: only one clock went on", keyring.Fence, c, holder.Instant{Boot: sent.Boot + int64(ttl), Real: sent.Real}, fault.LeaseOver},
		{"fence, the other clock went on", keyring.Fence, c, holder.Instant{Boot: sent.Boot, Real: sent.Real + int64(ttl)}, fault.LeaseOver},
		{"fence, one clock set back", keyring.Fence, c, holder.Instant{Boot: sent.Boot + int64(ttl), Real: 0}, fault.LeaseOver},
		{"block, never heard", keyring.Block, holder.Contact{}, sent, fault.Stale},
		{"block, lease over", keyring.Block, c, sent.Add(ttl), ""},
		{"block, before max_stale", keyring.Block, c, sent.Add(time.Hour - 1), ""},
		{"block, at max_stale", keyring.Block, c, sent.Add(time.Hour), fault.Stale},
		{"unknown mode, within max_stale", "both", c, sent.Add(time.Hour), fault.Stale},
	} {
		t.Run(u.name, func(t *testing.T) {
			k := &holder.Key{Snapshot: with(snapshot(1), func(s *keyring.Snapshot) { s.Silence = u.silence })}
			wantCode(t, k.Usable(u.contact, u.now), u.want)
		})
	}
}

func TestGranted(t *testing.T) {
	first := holder.Granted(holder.Contact{}, sent, ttl, margin)
	if want := (holder.Contact{Lease: sent.Add(ttl - margin), Heard: sent}); first != want {
		t.Errorf("got %+v, want %+v", first, want)
	}
	if late := holder.Granted(first, sent.Add(-time.Second), ttl, margin); late != first {
		t.Errorf("a late answer made %+v of %+v", late, first)
	}
	next := holder.Granted(first, sent.Add(time.Second), ttl, margin)
	if want := (holder.Contact{Lease: first.Lease.Add(time.Second), Heard: sent.Add(time.Second)}); next != want {
		t.Errorf("got %+v, want %+v", next, want)
	}
}

// FuzzApply: whatever a snapshot says, a holder does not panic, never goes back, and never revives or loses a version.
func FuzzApply(f *testing.F) {
	for _, s := range []keyring.Snapshot{snapshot(0), snapshot(4), snapshot(5), snapshot(6), {}} {
		b, err := json.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"key":"k","namespace":"n","purpose":"encrypt","custody":"fleet","epoch":{"i":9,"c":9},"versions":[{"number":1},{"number":1}]}`))
	f.Add([]byte(`{"max_stale":9223372036854775807,"epoch":{"c":18446744073709551615}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var s keyring.Snapshot
		if json.Unmarshal(b, &s) != nil {
			return
		}
		old := with(snapshot(5), func(s *keyring.Snapshot) { s.Versions[0].Phase = keyring.PhaseDestroyed })
		for _, had := range []*holder.Key{nil, {Snapshot: old}} {
			next, changed, err := holder.Apply(had, s)
			if err != nil && (changed || next != had) {
				t.Fatalf("refused and taken: %v", err)
			}
			if next == nil {
				continue
			}
			if had != nil {
				forward(t, old, next.Snapshot, changed)
			}
			use(t, next)
		}
	})
}

func forward(t *testing.T, was, is keyring.Snapshot, changed bool) {
	if is.Epoch.Less(was.Epoch) || changed != was.Epoch.Less(is.Epoch) {
		t.Fatalf("epoch %v after %v, changed %v", is.Epoch, was.Epoch, changed)
	}
	k := &holder.Key{Snapshot: is}
	_, err := k.Process(101, now)
	if is.Epoch.Incarnation > was.Epoch.Incarnation { // a recovery may have lost versions, and what was destroyed stays so
		if code := fault.CodeOf(err); code != fault.VersionDestroyed && code != fault.UnknownVersion {
			t.Fatalf("a destroyed version processes after a recovery: %v", err)
		}
		return
	}
	if fault.CodeOf(err) != fault.VersionDestroyed {
		t.Fatalf("a destroyed version processes, or is gone: %v", err)
	}
	if v, err := k.Process(102, now); fault.CodeOf(err) == fault.UnknownVersion || v.Number != 2 {
		t.Fatalf("version 2 is gone: %v", err)
	}
}

func use(t *testing.T, k *holder.Key) {
	if v, err := k.Protect(now); err == nil {
		if v.Number != k.Snapshot.Primary || v.State != keyring.Active {
			t.Fatalf("protects with %+v", v)
		}
	}
	for _, v := range k.Snapshot.Versions {
		_, _ = k.Process(v.Handle, now)
	}
	if k.Usable(holder.Contact{}, sent) == nil {
		t.Fatal("usable without a contact")
	}
	_ = k.Usable(holder.Contact{Lease: sent, Heard: sent}, sent)
}
