package guard_test

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/identity"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/mem"
)

// inRecovery opens the world's store with statements, as a server does that comes up whatever it finds.
func (w *world) inRecovery(statements ...[]byte) (g *guard.Guard, stop func()) {
	w.t.Helper()
	c := w.config()
	c.Statements, c.Recovery = statements, true
	g, err := guard.Open(w.t.Context(), c)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Run(ctx) }() // ends with ctx
	stop = func() { cancel(); <-done }
	w.t.Cleanup(stop)
	return g, stop
}

func (w *world) statement(g *guard.Guard) []byte {
	w.t.Helper()
	w.entries(g)
	s, err := g.Statement()
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// setBack puts an older copy of the store in the place of a newer one, and returns a statement of the newer.
func (w *world) setBack() (ahead []byte) {
	w.t.Helper()
	g, stop := w.open()
	w.put(g, "x/a", "1")
	w.entries(g)
	older := copyOf(w.t, w.store)
	w.put(g, "x/a", "2")
	ahead = w.statement(g)
	stop()
	w.store = older
	return ahead
}

func kinds(g *guard.Guard) (all []string) {
	for _, d := range g.Detected() {
		all = append(all, d.Kind)
	}
	return all
}

// TestEachWayIsDetectedByName: an older copy, a replayed record, a deleted tombstone, a changed record, two servers on copies of one store, a
// restored backup.
func TestEachWayIsDetectedByName(t *testing.T) {
	for name, c := range map[string]struct {
		kind  string
		about string
		do    func(w *world) (statements [][]byte)
	}{
		"nothing": {"", "", func(w *world) [][]byte {
			g, stop := w.open()
			defer stop()
			return [][]byte{w.statement(g)}
		}},
		"an older copy": {"rolled back", "fewer", func(w *world) [][]byte {
			g, stop := w.open()
			defer stop()
			w.put(g, "x/a", "1")
			w.entries(g)
			old := copyOf(w.t, w.store)
			w.put(g, "x/a", "2")
			s := w.statement(g)
			w.store = old
			return [][]byte{s}
		}},
		"two servers": {"forked", "copies", func(w *world) [][]byte {
			g, stop := w.open()
			defer stop()
			w.put(g, "x/a", "1")
			w.entries(g)
			other := copyOf(w.t, w.store)
			w.put(g, "x/a", "2")
			s := w.statement(g)
			w.store = other
			h, end := w.open()
			defer end()
			for range 5 {
				w.put(h, "x/a", "3")
			}
			w.entries(h)
			return [][]byte{s}
		}},
		"a replayed record": {"replayed", "x/a", func(w *world) [][]byte {
			g, stop := w.open()
			defer stop()
			w.put(g, "x/a", "1")
			old := w.raw("x/a").Value
			w.put(g, "x/a", "2")
			w.entries(g)
			w.tamper(store.Op{Key: "x/a", Value: old})
			return nil
		}},
		"a replayed root record": {"replayed", "seal/root", func(w *world) [][]byte {
			g, stop := w.open()
			defer stop()
			old := w.raw("seal/root").Value
			p, err := g.Admit(w.t.Context(), alice, policy.ActSeal, policy.Resource{})
			if err == nil {
				err = g.RotateSealer(w.t.Context(), p, w.sealer)
			}
			if err != nil {
				w.t.Fatal(err)
			}
			w.entries(g)
			w.tamper(store.Op{Key: "seal/root", Value: old})
			return nil
		}},
		"a deleted tombstone": {"lost", "handle/default/1", func(w *world) [][]byte {
			g, stop := w.open()
			defer stop()
			w.put(g, "handle/default/1", "k/1")
			w.entries(g)
			w.tamper(store.Op{Key: "handle/default/1", Delete: true})
			return nil
		}},
		"a changed record": {"tampered", "x/a", func(w *world) [][]byte {
			g, stop := w.open()
			defer stop()
			w.put(g, "x/a", "1")
			w.entries(g)
			w.tamper(store.Op{Key: "x/a", Value: []byte("something else, long enough for a blob, as it has to have 48 bytes")})
			return nil
		}},
		"a restored backup": {"restored", "backup", func(w *world) [][]byte {
			w.tamper(store.Op{Key: guard.RestoredPath, Value: []byte("x")})
			return nil
		}},
		"somebody else's statement": {"foreign", "not signed", func(w *world) [][]byte {
			other := newWorld(w.t, mem.New())
			g, stop := other.open()
			defer stop()
			return [][]byte{other.statement(g)}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, mem.New())
			statements := c.do(w)
			g, stop := w.inRecovery(statements...)
			if c.kind == "" {
				if got := kinds(g); len(got) != 0 {
					t.Errorf("detected %v", g.Detected())
				}
				return
			}
			if got := g.Detected(); len(got) != 1 || got[0].Kind != c.kind || !strings.Contains(got[0].About, c.about) {
				t.Fatalf("detected %v", got)
			}
			w.refusesAll(g, c.kind)
			stop()
			plain := w.config()
			plain.Statements = statements
			if _, err := guard.Open(t.Context(), plain); err == nil {
				t.Error("a guard that does not know of recovery opened it")
			}
			w.recovers(statements)
		})
	}
}

// refusesAll: nobody but who asks for the status gets in, and nothing is committed, not even by the server itself.
func (w *world) refusesAll(g *guard.Guard, kind string) {
	w.t.Helper()
	for _, a := range policy.Actions() {
		_, err := g.Admit(w.t.Context(), alice, a, policy.Resource{})
		if (a == policy.ActStatus || a == policy.ActRecover) && err != nil || a != policy.ActStatus && a != policy.ActRecover && (fault.CodeOf(err) != fault.Recovery || !strings.Contains(err.Error(), kind)) {
			w.t.Errorf("%s: %v", a, err)
		}
	}
	p := g.System("test", policy.ActRotate, policy.Resource{})
	_, err := p.Commit(w.t.Context(), nil, []guard.Write{{Path: "x/new", Value: []byte("1")}}, nil)
	for _, err := range []error{err, p.Release(w.t.Context(), nil), p.Use(w.t.Context(), 1), g.Tend(w.t.Context())} {
		if fault.CodeOf(err) != fault.Recovery {
			w.t.Errorf("%v", err)
		}
	}
}

// recovers goes through a recovery and comes out with a store that is believed, also beside the statements of before.
func (w *world) recovers(statements [][]byte) {
	w.t.Helper()
	t := w.t
	g, stop := w.inRecovery(statements...)
	defer stop()
	asked, err := g.AskRecovery(t.Context(), "admin/alice", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.AskRecovery(t.Context(), "admin/bob", 0); fault.CodeOf(err) != fault.Exists {
		t.Errorf("asked twice: %v", err)
	}
	if _, _, err := g.BeginRecovery(t.Context(), nil); fault.CodeOf(err) != fault.GateClosed {
		t.Fatalf("before its time: %v", err)
	}
	if err := g.CancelRecovery(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Recovering(t.Context()); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("canceled: %v", err)
	}
	if _, err := g.AskRecovery(t.Context(), "admin/alice", time.Hour); err != nil {
		t.Fatal(err)
	}
	w.clock.Add(int64(time.Hour / time.Second))
	if asked.NotUntil.After(w.now()) {
		t.Error("the delay is longer than what was asked")
	}
	_, target, err := g.BeginRecovery(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.EndRecovery(t.Context(), target); err != nil {
		t.Fatal(err)
	}
	if target != 2 || g.Incarnation() != 2 || len(g.Detected()) != 0 {
		t.Errorf("incarnation %d, %v", g.Incarnation(), g.Detected())
	}
	w.put(g, "x/after", "recovery")
	entries := w.entries(g)
	wantEntry(t, entries, "server.recover", map[string]string{"step": "ask"})
	wantEntry(t, entries, "server.recover", map[string]string{"step": "cancel"})
	wantEntry(t, entries, "server.incarnation", map[string]string{"incarnation": "2"})
	after := w.statement(g)
	stop()
	c := w.config()
	c.Statements = append(statements, after)
	for _, s := range statements {
		if len(kindsOf(t, w, s)) > 0 { // of another cluster: that stays wrong
			return
		}
	}
	if _, err := guard.Open(t.Context(), c); err != nil {
		t.Errorf("after the recovery: %v", err)
	}
}

func kindsOf(t *testing.T, w *world, s []byte) []string {
	g, stop := w.inRecovery(s)
	defer stop()
	var foreign []string
	for _, k := range kinds(g) {
		if k == "foreign" {
			foreign = append(foreign, k)
		}
	}
	return foreign
}

// TestAStatementThatContradictsSuspends: what an instance brings is checked while the server runs, and what a liar brings harms nobody.
func TestAStatementThatContradictsSuspends(t *testing.T) {
	w := newWorld(t, mem.New())
	ahead := w.setBack()
	g, _ := w.open()
	own := w.statement(g)
	if d, err := g.Witness(t.Context(), own); err != nil || d.Kind != "" {
		t.Fatalf("its own: %v, %v", d, err)
	}
	for _, lie := range [][]byte{nil, []byte("{}"), []byte(strings.Replace(string(ahead), "signature\":\"", "signature\":\"AAAA", 1)), make([]byte, 1<<20)} {
		if d, err := g.Witness(t.Context(), lie); fault.CodeOf(err) != fault.Invalid || d.Kind != "" {
			t.Errorf("a lie: %v, %v", d, err)
		}
	}
	if len(g.Detected()) != 0 {
		t.Fatal("a lie suspended the guard")
	}
	if d, err := g.Witness(t.Context(), ahead); err != nil || d.Kind != "rolled back" {
		t.Fatalf("%v, %v", d, err)
	}
	w.refusesAll(g, "rolled back")
}

// TestARecoveryAppliesTheNewerLog: what a newer log says was deleted is deleted; versions that it knows are counted.
func TestARecoveryAppliesTheNewerLog(t *testing.T) {
	w := newWorld(t, mem.New())
	g, stop := w.open()
	w.material(g, "material/default/k/1", "doomed")
	w.material(g, "material/default/k/2", "alive")
	w.entries(g)
	old := copyOf(t, w.store)
	if _, err := w.permit(g).Commit(t.Context(), nil, []guard.Write{{Path: "material/default/k/1", Delete: true}}, nil); err != nil {
		t.Fatal(err)
	}
	w.material(g, "material/default/k/7", "lost with the copy")
	past := guard.NewPast()
	for _, e := range w.entries(g) {
		if err := past.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	s := w.statement(g)
	stop()
	w.store = old
	g, _ = w.inRecovery(s)
	if _, err := g.AskRecovery(t.Context(), "admin/alice", -1); err != nil {
		t.Fatal(err)
	}
	w.clock.Add(1 << 30)
	if _, _, err := g.BeginRecovery(t.Context(), past); fault.CodeOf(err) != fault.GateClosed {
		t.Errorf("without custodians: %v", err)
	}
	if err := g.ApproveRecovery(t.Context(), "shamir:1"); err != nil {
		t.Fatal(err)
	}
	_, target, err := g.BeginRecovery(t.Context(), past)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.EndRecovery(t.Context(), target); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Get(t.Context(), "material/default/k/1"); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("the destroyed material: %v", err)
	}
	if m, err := w.openMaterial(g, "material/default/k/2"); err != nil || m != "alive" {
		t.Errorf("%q, %v", m, err)
	}
	if past.Highest["default/k"] != 7 {
		t.Errorf("%+v", past.Highest)
	}
}

// TestAnOldAnnouncementIsNone: a store that was copied while a recovery was announced, and is put back when that one is long over, has neither its wait
// behind it nor an approval; and the recovery of it leads beyond what the cluster was since.
func TestAnOldAnnouncementIsNone(t *testing.T) {
	w := newWorld(t, mem.New())
	s := w.setBack()
	w.clock.Add(10)
	ordered := func() *mem.Store { // a copy, once the log is in order
		for len(w.keys("log/new/")) > 0 {
			runtime.Gosched()
		}
		return copyOf(t, w.store)
	}
	g, stop := w.inRecovery(s)
	if _, err := g.AskRecovery(t.Context(), "admin/alice", time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := g.ApproveRecovery(t.Context(), "shamir:1"); err != nil {
		t.Fatal(err)
	}
	kept := ordered()
	_, target, err := g.BeginRecovery(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	begun := ordered()
	if err := g.EndRecovery(t.Context(), target); err != nil {
		t.Fatal(err)
	}
	w.clock.Add(1 << 20)
	w.put(g, "x/a", "3")
	s = w.statement(g)
	stop()
	for name, copied := range map[string]store.Store{"approved": kept, "begun": begun} {
		w.store = copied
		g, stop = w.inRecovery(s)
		for what, try := range map[string]func() error{
			"read":    func() error { _, err := g.Recovering(t.Context()); return err },
			"approve": func() error { return g.ApproveRecovery(t.Context(), "shamir:1") },
			"begin":   func() error { _, _, err := g.BeginRecovery(t.Context(), nil); return err },
		} {
			if err := try(); fault.CodeOf(err) != fault.NotFound {
				t.Errorf("%s, %s: %v", name, what, err)
			}
		}
		if _, err := g.AskRecovery(t.Context(), "admin/alice", time.Hour); err != nil {
			t.Fatal(err)
		}
		if _, _, err := g.BeginRecovery(t.Context(), nil); fault.CodeOf(err) != fault.GateClosed {
			t.Errorf("%s, before its time: %v", name, err)
		}
		w.clock.Add(int64(time.Hour / time.Second))
		if _, again, err := g.BeginRecovery(t.Context(), nil); err != nil || again <= target {
			t.Errorf("%s: to incarnation %d, the cluster was at %d: %v", name, again, target, err)
		}
		stop()
	}
}

// TestRecoverySurvivesACrashAnywhere: the process dies at each commit in turn; the next one finds the recovery unfinished and finishes it.
func TestRecoverySurvivesACrashAnywhere(t *testing.T) {
	for _, after := range []bool{false, true} {
		for n, finished := int64(0), false; !finished; n++ {
			if n > 50 {
				t.Fatal("it never finishes")
			}
			t.Run(fmt.Sprintf("after=%v/%d", after, n), func(t *testing.T) { finished = recoveryDiesAt(t, n, after) })
		}
	}
}

func recoveryDiesAt(t *testing.T, n int64, after bool) (finished bool) {
	w := newWorld(t, mem.New())
	g, stop := w.open()
	var old []store.Op
	for i := range 70 {
		path := fmt.Sprintf("x/%02d", i)
		w.put(g, path, "1")
		old = append(old, store.Op{Key: path, Value: w.raw(path).Value})
		w.put(g, path, "2")
	}
	w.entries(g)
	stop()
	w.tamper(old...)
	alive := w.store
	life, die := context.WithCancel(t.Context())
	defer die()
	d := &dying{Store: alive, after: after, died: die}
	d.left.Store(n)
	w.store = d
	g, stop = w.inRecovery()
	recover := func(ctx context.Context, g *guard.Guard) error {
		if _, err := g.AskRecovery(ctx, "admin/alice", 0); err != nil && fault.CodeOf(err) != fault.Exists {
			return err
		}
		_, target, err := g.BeginRecovery(ctx, nil)
		if err != nil {
			return err
		}
		return g.EndRecovery(ctx, target)
	}
	finished = recover(life, g) == nil
	stop()
	w.store = alive
	g, stop = w.inRecovery()
	if len(g.Detected()) > 0 {
		if err := recover(t.Context(), g); err != nil {
			t.Fatal(err)
		}
	}
	if g.Incarnation() != 2 {
		t.Errorf("incarnation %d", g.Incarnation())
	}
	stop()
	g, _ = w.open()
	for i := range 70 {
		if r, err := g.Get(t.Context(), fmt.Sprintf("x/%02d", i)); err != nil || string(r.Value) != "1" {
			t.Fatalf("%q, %v", r.Value, err)
		}
	}
	return finished
}

// FuzzStatement: foreign bytes never pass for a statement of the cluster.
func FuzzStatement(f *testing.F) {
	f.Add([]byte(`{"body":"e30=","signature":"AA=="}`))
	f.Add([]byte(`{}`))
	public, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := identity.OpenStatement(b, public); err == nil {
			t.Errorf("%+v", s)
		}
		_ = guard.NewPast().Add(audit.Entry{Writes: []audit.Write{{Path: string(b)}}})
	})
}
