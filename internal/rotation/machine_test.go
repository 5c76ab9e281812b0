package rotation_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/rotorkms/rotor/internal/holder"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/rotation"
	"github.com/rotorkms/rotor/internal/suite"
)

// machine drives one key with any steps in any order, those included that the checker leaves out (suspension, compromise,
// emergencies, forged evidence), and looks at what must hold after each.
type machine struct {
	key     keyring.Key
	now     time.Time
	members []rotation.Member
	held    []*holder.Key      // what each member has
	sent    []keyring.Snapshot // everything that holders were ever told
	handles []uint32
	dead    map[uint32]bool
}

func TestMachine(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &machine{now: start, dead: map[uint32]bool{}}
		k := keyring.Key{
			ID: "k", Namespace: "n", Name: "k", Purpose: suite.Encrypt, Custody: keyring.CustodyFleet, Algorithm: suite.XAES256GCM,
			Rotation: keyring.Rotation{
				Silence: rapid.SampledFrom([]keyring.Silence{keyring.Block, keyring.Fence}).Draw(t, "silence"), Window: window, Wait: wait, Approvals: 1,
			},
			Periods: keyring.Periods{Originator: rapid.SampledFrom([]time.Duration{0, 3 * time.Hour}).Draw(t, "period")},
		}
		var err error
		if m.key, err = rotation.First(k, version(1), m.now); err != nil {
			t.Fatal(err)
		}
		m.handles = []uint32{handle(1)}
		m.sent = append(m.sent, m.key.Snapshot())
		t.Repeat(map[string]func(*rapid.T){
			"":           m.check,
			"time":       m.passes,
			"join":       m.join,
			"leave":      m.leave,
			"hear":       m.hear,
			"stage":      m.stage,
			"distribute": func(t *rapid.T) { m.take(t, func() (keyring.Key, error) { return rotation.Distribute(m.key, m.now) }) },
			"promote":    m.promote,
			"back":       m.back,
			"settle": func(t *rapid.T) {
				m.take(t, func() (keyring.Key, error) { k, _ := rotation.Settle(m.key, m.now); return k, nil })
			},
			"retire":  m.retire,
			"destroy": m.destroy,
			"unretire": func(t *rapid.T) {
				m.take(t, func() (keyring.Key, error) { return rotation.Unretire(m.key, m.any(t)) })
			},
			"attempt": func(t *rapid.T) {
				m.take(t, func() (keyring.Key, error) { k, _ := rotation.Attempted(m.key, m.any(t), m.now); return k, nil })
			},
			"approve": func(t *rapid.T) {
				m.take(t, func() (keyring.Key, error) { return rotation.Approve(m.key, m.any(t), "ann") })
			},
			"change": m.change,
		})
	})
}

func (m *machine) any(t *rapid.T) uint32 {
	return rapid.Uint32Range(0, uint32(m.key.Len()+1)).Draw(t, "version")
}

func (m *machine) passes(t *rapid.T) {
	m.now = m.now.Add(time.Duration(rapid.IntRange(1, 90).Draw(t, "minutes")) * time.Minute)
}

func (m *machine) join(t *rapid.T) {
	if len(m.members) < 4 {
		held, _, err := holder.Apply(nil, m.key.Snapshot())
		if err != nil {
			t.Fatal(err)
		}
		m.members = append(m.members, rotation.Member{Instance: string(rune('a' + len(m.members)))})
		m.held = append(m.held, held)
	}
}

func (m *machine) leave(t *rapid.T) {
	if n := len(m.members); n > 0 {
		m.members, m.held = m.members[:n-1], m.held[:n-1]
	}
}

// hear delivers any snapshot that was ever sent to any member; what it then has is acknowledged if it is the present epoch.
func (m *machine) hear(t *rapid.T) {
	if len(m.members) == 0 {
		return
	}
	i := rapid.IntRange(0, len(m.members)-1).Draw(t, "member")
	s := m.sent[len(m.sent)-1-rapid.IntRange(0, min(3, len(m.sent)-1)).Draw(t, "age")]
	next, changed, err := holder.Apply(m.held[i], s)
	if newer := m.held[i].Snapshot.Epoch.Less(s.Epoch); newer != changed || newer && err != nil {
		t.Fatalf("epoch %v over %v: changed %v, %v", s.Epoch, m.held[i].Snapshot.Epoch, changed, err)
	}
	m.held[i] = next
	if next.Snapshot.Epoch == m.key.Epoch {
		m.members[i].Acked = m.key.Epoch
	}
}

// take takes a step and checks what is true of every step.
func (m *machine) take(t *rapid.T, step func() (keyring.Key, error)) {
	before, text := m.key, fingerprint(m.key)
	next, err := step()
	if fingerprint(before) != text {
		t.Fatal("a step changed the record that it was given")
	}
	if err != nil {
		return
	}
	if broken := s3(before, next); broken != "" {
		t.Fatalf("%s: %s, then %s", broken, text, fingerprint(next))
	}
	m.key = next
	if before.Epoch.Less(next.Epoch) {
		m.sent = append(m.sent, next.Snapshot())
	}
}

func (m *machine) stage(t *rapid.T) {
	n := uint32(m.key.Len() + 1)
	m.take(t, func() (keyring.Key, error) {
		k, err := rotation.Stage(m.key, version(n), m.now)
		if err == nil {
			m.handles = append(m.handles, handle(n))
		}
		return k, err
	})
}

func (m *machine) promote(t *rapid.T) {
	was := m.key
	m.take(t, func() (keyring.Key, error) {
		return rotation.Promote(m.key, m.members, m.now, rapid.IntRange(0, 9).Draw(t, "emergency") == 0)
	})
	if m.key.Primary == was.Primary {
		return
	}
	if v := m.key.At(int(m.key.Primary) - 1); v.State != keyring.Active || m.key.Primary != was.Target {
		t.Fatalf("promoted %+v", v)
	}
}

func (m *machine) back(t *rapid.T) {
	n, was := m.any(t), m.key
	m.take(t, func() (keyring.Key, error) { return rotation.Back(m.key, n, m.now) })
	if was.Target != 0 || m.key.Target == 0 {
		return
	}
	if v := was.At(int(n) - 1); v.State != keyring.Active || v.Phase != keyring.PhaseDecryptOnly || !rotation.WindowOpen(was, v, m.now) {
		t.Fatalf("rolls back to %+v", v)
	}
}

// evidence is any census, good or not.
func (m *machine) evidence(t *rapid.T, n uint32) rotation.Census {
	c := rotation.Census{Version: n, Epoch: m.key.Epoch, Settled: true, Started: m.now}
	switch rapid.IntRange(0, 6).Draw(t, "spoiled") {
	case 1:
		c.Settled = false
	case 2:
		c.Remaining = 1
	case 3:
		c.Epoch = m.sent[0].Epoch
	}
	return c
}

func (m *machine) retire(t *rapid.T) {
	n, was := m.any(t), m.key
	c := m.evidence(t, n)
	m.take(t, func() (keyring.Key, error) { return rotation.Retire(m.key, n, c, m.members, m.now) })
	if was.Epoch.Less(m.key.Epoch) {
		m.believed(t, was, c)
	}
}

func (m *machine) destroy(t *rapid.T) {
	n, was := m.any(t), m.key
	c := m.evidence(t, n)
	m.take(t, func() (keyring.Key, error) { return rotation.Destroy(m.key, n, c, m.members, m.now) })
	if !was.Epoch.Less(m.key.Epoch) {
		return
	}
	m.believed(t, was, c)
	if v := was.At(int(n) - 1); v.Phase != keyring.PhaseRetired || m.now.Before(v.Retired.Add(wait)) || len(v.Approved) == 0 {
		t.Fatalf("destroyed %+v", v)
	}
}

// believed: a version only goes with good evidence and when every member knows that another one protects.
func (m *machine) believed(t *rapid.T, was keyring.Key, c rotation.Census) {
	if !c.Settled || c.Remaining > 0 || c.Epoch.Less(was.At(int(was.Primary)-1).Promoted) {
		t.Fatalf("believed %+v", c)
	}
	for _, h := range m.members {
		if h.Acked.Less(was.At(int(was.Primary) - 1).Promoted) {
			t.Fatalf("%s has not heard of the primary", h.Instance)
		}
	}
}

func (m *machine) change(t *rapid.T) {
	e := rapid.SampledFrom([]keyring.Event{keyring.Suspend, keyring.Resume, keyring.Compromise}).Draw(t, "event")
	m.take(t, func() (keyring.Key, error) { return rotation.Change(m.key, m.any(t), e, "", m.now) })
}

// check is what holds at any time.
func (m *machine) check(t *rapid.T) {
	i := 0
	for v := range m.key.All() {
		if v.Number != uint32(i+1) || v.Handle != m.handles[i] {
			t.Fatalf("version %d is now %d with handle %d", i+1, v.Number, v.Handle)
		}
		i++
		gone := v.Phase == keyring.PhaseDestroyed
		if gone != (v.State == keyring.Destroyed) || m.dead[v.Number] && !gone {
			t.Fatalf("version %d is %s and %s", v.Number, v.Phase, v.State)
		}
		m.dead[v.Number] = gone
		if (v.Phase == keyring.PhasePrimary) != (v.Number == m.key.Primary) {
			t.Fatalf("version %d is %s, the primary is %d", v.Number, v.Phase, m.key.Primary)
		}
	}
	if len(m.handles) != m.key.Len() {
		t.Fatal("a version is missing")
	}
}
