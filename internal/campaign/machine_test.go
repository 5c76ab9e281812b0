package campaign_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
)

// machine drives one key and one data set at random, with writers that freeze between encryption and write, and crashes. What has to hold
// (docs/explain/rotation.md, S2): whatever the data set took opens for ever to what was written.
type machine struct {
	w      *world
	p      *shelf
	frozen []write
	wrote  map[string]string // what the data set took last, by ID
	serial int
}

type write struct {
	id, text string
	message  []byte
}

func (m *machine) encrypt(id string) write {
	m.serial++
	w := write{id: id, text: fmt.Sprint(m.serial)}
	w.message = m.w.seals(id, w.text)
	return w
}

func (m *machine) put(t *rapid.T, w write) {
	err := m.p.put(m.w, w.id, w.message)
	switch {
	case err == nil:
		m.wrote[w.id] = w.text
	case !errors.Is(err, errBelow): // below the floor the writer encrypts again
		t.Fatal(err)
	}
}

// tolerate lets what the machine refuses with a reason be.
func tolerate(t *rapid.T, err error) {
	switch fault.CodeOf(err) {
	case "", fault.InUse, fault.GateClosed, fault.WrongState, fault.RotationInFlight, fault.VersionDestroyed:
	default:
		t.Fatal(err)
	}
}

func TestMachine(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		p := newShelf()
		w := newWorld(t, at(p))
		defer w.stop()
		w.register("board", 0)
		m := &machine{w: w, p: p, wrote: map[string]string{}}
		id := rapid.SampledFrom([]string{"a", "b", "y", "z"})
		version := func(t *rapid.T) uint32 { return rapid.Uint32Range(1, uint32(w.key().Len())).Draw(t, "version") }
		rt.Repeat(map[string]func(*rapid.T){
			"write":  func(t *rapid.T) { m.put(t, m.encrypt(id.Draw(t, "id"))) },
			"freeze": func(t *rapid.T) { m.frozen = append(m.frozen, m.encrypt(id.Draw(t, "id"))) },
			"thaw": func(t *rapid.T) {
				for _, f := range m.frozen {
					m.put(t, f)
				}
				m.frozen = nil
			},
			"rotate": func(*rapid.T) {
				if w.key().Target == 0 {
					w.rotate()
				}
			},
			"roll back": func(t *rapid.T) {
				k, err := w.kms.Back(t.Context(), admin, ref, version(t), 0)
				tolerate(t, err)
				if err == nil && k.Target != 0 {
					w.lowered(k)
					w.promote()
				}
			},
			"campaign": func(t *rapid.T) {
				c := w.ended(w.start().ID)
				if c.Phase != "done" || c.Failed > 0 {
					t.Fatalf("%+v", c)
				}
			},
			"retire":  func(t *rapid.T) { tolerate(t, w.retire(version(t))) },
			"destroy": func(t *rapid.T) { m.destroy(t, version(t)) },
			"unretire": func(t *rapid.T) {
				_, err := w.campaigns.Retire(t.Context(), admin, ref, version(t), true)
				tolerate(t, err)
			},
			"time passes": func(*rapid.T) { w.pass(61 * time.Minute) },
			"crash":       func(*rapid.T) { w.restart() },
			"": func(t *rapid.T) {
				for id, message := range p.all(w) {
					m.mustOpen(t, id, message)
				}
			},
		})
	})
}

func (m *machine) destroy(t *rapid.T, n uint32) {
	_, _, _, err := m.w.campaigns.Destroy(t.Context(), admin, ref, n)
	tolerate(t, err)
	_, _, _, err = m.w.campaigns.Destroy(t.Context(), second, ref, n)
	tolerate(t, err)
}

// mustOpen opens what the data set holds. Under a retired version it is refused, which an operator can take back.
func (m *machine) mustOpen(t *rapid.T, id string, message []byte) {
	k := m.w.key()
	h, err := envelope.MessageHandle(message)
	if err != nil {
		t.Fatal(err)
	}
	if v, err := k.ByHandle(h); err == nil && v.Phase == keyring.PhaseRetired {
		t.Fatalf("record %s is under version %d, which is retired", id, v.Number)
	}
	text, _, err := m.w.kms.Decrypt(t.Context(), admin, ref, message, []envelope.Part{part(id)})
	if err != nil || string(text) != m.wrote[id] {
		t.Fatalf("record %s: %q, %v; want %q", id, text, err, m.wrote[id])
	}
}
