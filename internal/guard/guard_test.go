package guard_test

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/seal/local"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/mem"
)

func newMem() store.Store { return mem.New() }

func TestAdmitDeniesByDefault(t *testing.T) {
	w := newWorld(t, newMem())
	g, _ := w.open()
	if p, err := g.Admit(t.Context(), policy.Caller{}, policy.ActEncrypt, aKey); p != nil || fault.CodeOf(err) != fault.Unauthenticated {
		t.Errorf("nobody: %v", err)
	}
	if p, err := g.Admit(t.Context(), bob, policy.ActEncrypt, aKey); p != nil || fault.CodeOf(err) != fault.Denied {
		t.Errorf("bob: %v", err)
	}
	if g.Allows(policy.Caller{}, policy.ActEncrypt, aKey) || g.Allows(bob, policy.ActEncrypt, aKey) || !g.Allows(alice, policy.ActEncrypt, aKey) {
		t.Error("Allows does not say what Admit does")
	}
	// The rules are swapped for the next question.
	for _, none := range []guard.Decider{nil, (*policy.Rules)(nil)} {
		g.SetRules(none)
		if p, err := g.Admit(t.Context(), alice, policy.ActEncrypt, aKey); p != nil || fault.CodeOf(err) != fault.Denied {
			t.Errorf("no rules (%T): %v", none, err)
		}
	}
	g.SetRules(only{})
	if _, err := g.Admit(t.Context(), alice, policy.ActEncrypt, aKey); err != nil {
		t.Error(err)
	}
	if _, err := g.ReadLog(t.Context(), bob); fault.CodeOf(err) != fault.Denied {
		t.Errorf("bob reads the log: %v", err)
	}
}

func TestNoPermitPermitsNothing(t *testing.T) {
	for _, p := range []*guard.Permit{nil, {}} {
		_, err := p.Commit(t.Context(), nil, []guard.Write{{Path: "x"}}, nil)
		wantCode(t, err, fault.Denied, "no permit")
		wantCode(t, p.Release(t.Context(), nil), fault.Denied, "no permit")
		wantCode(t, p.Use(t.Context(), 1), fault.Denied, "no permit")
	}
}

// TestRefusalIsDurableBeforeTheAnswer: when the log cannot take it, the caller is not told "denied"; when it recovers, the refusal is
// written, and not taken for one that was.
func TestRefusalIsDurableBeforeTheAnswer(t *testing.T) {
	f := &failing{Store: newMem()}
	w := newWorld(t, f)
	g, _ := w.open()
	w.entries(g) // the sequencer has nothing to do, whose failure would end the guard
	f.fail(errBroken)
	for range 3 {
		if _, err := g.Admit(t.Context(), bob, policy.ActEncrypt, aKey); err == nil || fault.CodeOf(err) == fault.Denied {
			t.Fatalf("answered without an entry: %v", err)
		}
	}
	f.heal()
	for range 5 {
		if _, err := g.Admit(t.Context(), bob, policy.ActEncrypt, aKey); fault.CodeOf(err) != fault.Denied {
			t.Fatal(err)
		}
	}
	if err := g.CloseWindows(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	var repeated []string
	for _, e := range w.entries(g) {
		if e.Outcome == "refused" {
			if e.Caller != bob.Name || e.Key != "k" || e.Action != string(policy.ActEncrypt) {
				t.Errorf("%+v", e)
			}
			repeated = append(repeated, e.Detail["repeated"])
		}
	}
	if fmt.Sprint(repeated) != "[ 4]" {
		t.Errorf("entries of refusals, with repetitions: %q", repeated)
	}
}

// TestRefusalsAreBounded: whatever names a caller makes up, the log takes them, and a flood takes a bounded number of entries.
func TestRefusalsAreBounded(t *testing.T) {
	w := newWorld(t, newMem())
	g, _ := w.open()
	for _, name := range []string{strings.Repeat("x", 1<<20), "\xff\xfe", "a\u2028b", "\x00"} {
		if _, err := g.Admit(t.Context(), bob, policy.ActEncrypt, policy.Resource{Namespace: name, Key: name}); fault.CodeOf(err) != fault.Denied || len(err.Error()) > 1000 {
			t.Errorf("%.10q: %v", name, err)
		}
	}
	for i := range 10_500 {
		if _, err := g.Admit(t.Context(), bob, policy.ActEncrypt, policy.Resource{Key: fmt.Sprint(i)}); fault.CodeOf(err) != fault.Denied {
			t.Fatal(err)
		}
	}
	if err := g.CloseWindows(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	all := w.entries(g)
	if n := count(all, "refused"); n != 1002 { // 1000 told apart, the rest, and how many more those were
		t.Errorf("%d entries", n)
	}
	if last := all[len(all)-1]; last.Caller != bob.Name || last.Detail["repeated"] != "9503" {
		t.Errorf("%+v", last)
	}
	if _, err := guard.Open(t.Context(), w.config()); err != nil {
		t.Errorf("the log is not readable again: %v", err)
	}
}

func TestCommitCarriesItsEntry(t *testing.T) {
	onEngines(t, func(t *testing.T, w *world) {
		g, _ := w.open()
		p := w.permit(g)
		if _, err := p.Commit(t.Context(), nil, []guard.Write{{Path: "x/a", Value: []byte("1")}, {Path: "x/b", Value: nil}}, map[string]string{"why": "\xff"}); err != nil {
			t.Fatal(err)
		}
		if err := p.Release(t.Context(), map[string]string{"n": "1"}); err != nil {
			t.Fatal(err)
		}
		all := w.entries(g)
		change, release := all[len(all)-2], all[len(all)-1]
		if change.Class != audit.ClassChange || change.Rule != "alice" || change.Caller != alice.Name || len(change.Writes) != 2 || change.Writes[0].Path != "x/a" || change.Writes[0].Counter != 1 {
			t.Errorf("%+v", change)
		}
		if release.Class != audit.ClassRelease || release.Outcome != "done" || release.Detail["n"] != "1" {
			t.Errorf("%+v", release)
		}
	})
}

// TestCommitFailsWhole: without its entry nothing is written.
func TestCommitFailsWhole(t *testing.T) {
	w := newWorld(t, newMem())
	g, _ := w.open()
	writes := []guard.Write{{Path: "x/big", Value: make([]byte, store.MaxBytes)}}
	_, err := w.permit(g).Commit(t.Context(), nil, writes, nil)
	wantCode(t, err, fault.TooLarge, "")
	if _, err := g.Get(t.Context(), "x/big"); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("%v", err)
	}
	n := count(w.entries(g), "done")
	if n != 1 { // of init
		t.Errorf("%d entries", n)
	}
}

func TestConditions(t *testing.T) {
	onEngines(t, func(t *testing.T, w *world) {
		g, _ := w.open()
		p := w.permit(g)
		one := []guard.Write{{Path: "x/a", Value: []byte("1")}}
		rev, err := p.Commit(t.Context(), []guard.Cond{{Path: "x/a"}}, one, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = p.Commit(t.Context(), []guard.Cond{{Path: "x/a"}}, one, nil)
		wantCode(t, err, fault.Conflict, "")
		if _, err := p.Commit(t.Context(), []guard.Cond{{Path: "x/a", Rev: rev}}, one, nil); err != nil {
			t.Fatal(err)
		}
		_, err = p.Commit(t.Context(), []guard.Cond{{Path: "x/a", Rev: rev}}, one, nil)
		wantCode(t, err, fault.Conflict, "")
	})
}

// TestCountersUnderRaces: many writers put and delete the same records, with and without conditions, at once. Every counter follows the
// last, or the log would be refused when it is read again.
func TestCountersUnderRaces(t *testing.T) {
	w := newWorld(t, newMem())
	g, stop := w.open()
	var wait sync.WaitGroup
	for i := range 4 {
		wait.Go(func() {
			p := w.permit(g)
			for n := range 150 {
				path := fmt.Sprintf("x/%d", (i+n)%3)
				var conds []guard.Cond
				write := guard.Write{Path: path, Value: []byte("v"), Delete: n%2 == 1}
				if n%4 == 0 {
					conds = []guard.Cond{{Path: path}}
				}
				_, err := p.Commit(t.Context(), conds, []guard.Write{write}, nil)
				if c := fault.CodeOf(err); c != "" && c != fault.Conflict {
					t.Errorf("%v", err)
				}
			}
		})
	}
	wait.Wait()
	w.entries(g)
	stop()
	if _, err := guard.Open(t.Context(), w.config()); err != nil {
		t.Errorf("after the races: %v", err)
	}
}

// TestWindowsOutlastTheStore: a disk without room and an engine that is away end neither the guard nor a count. One whose commit has no known outcome
// ends the count, as a crash would, and not the guard.
func TestWindowsOutlastTheStore(t *testing.T) {
	for broken, want := range map[error]string{store.ErrFull: "[3]", store.ErrUnavailable: "[3]", store.ErrUnknown: "[]"} {
		t.Run(broken.Error(), func(t *testing.T) { windowsOutlast(t, broken, want) })
	}
}

func windowsOutlast(t *testing.T, broken error, want string) {
	synctest.Test(t, func(t *testing.T) {
		f := &failing{Store: newMem()}
		w := newWorld(t, f)
		g, stop := w.open()
		p := w.permit(g)
		for range 3 {
			if err := p.Use(t.Context(), 7); err != nil {
				t.Fatal(err)
			}
		}
		w.entries(g)
		w.clock.Add(60)
		f.fail(broken)
		time.Sleep(5 * time.Minute) // of synctest's clock: the guard tries to close the window each minute
		f.heal()
		time.Sleep(time.Minute)
		synctest.Wait()
		var counts []string
		for _, e := range w.entries(g) {
			if e.Outcome == "closed" {
				counts = append(counts, e.Detail["count"])
			}
		}
		if fmt.Sprint(counts) != want {
			t.Errorf("counts after the store took nothing: %q; want %s", counts, want)
		}
		stop()
	})
}

// TestUseWindows: durable before the first use, one entry a minute, the count when it closes, and an open one after a crash.
func TestUseWindows(t *testing.T) {
	w := newWorld(t, newMem())
	g, stop := w.open()
	p := w.permit(g)
	use := func(n int) {
		for range n {
			if err := p.Use(t.Context(), 7); err != nil {
				t.Fatal(err)
			}
		}
	}
	use(3)
	w.clock.Add(60)
	use(2)
	if err := g.CloseWindows(t.Context(), false); err != nil { // of the present minute: stays open
		t.Fatal(err)
	}
	if all := w.entries(g); count(all, "open") != 2 || count(all, "closed") != 1 {
		t.Errorf("%d open, %d closed", count(all, "open"), count(all, "closed"))
	}
	w.clock.Add(60)
	if err := g.CloseWindows(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	use(1)
	stop() // a crash
	g, _ = w.open()
	opened, counts := map[string]bool{}, []string{}
	for _, e := range w.entries(g) {
		switch e.Outcome {
		case "open":
			opened[e.Detail["window"]] = true
		case "closed":
			if !opened[e.Detail["window"]] || e.Detail["version"] != "7" {
				t.Errorf("closed before it was opened: %+v", e)
			}
			delete(opened, e.Detail["window"])
			counts = append(counts, e.Detail["count"])
		}
	}
	if len(opened) != 1 || fmt.Sprint(counts) != "[3 2]" {
		t.Errorf("%d left open, counts %v", len(opened), counts)
	}
}

// TestWindowsKeepNoRequest: what a caller asked for, the plaintext of its first use above all, goes with the request and does not stay as long as the
// version is used.
func TestWindowsKeepNoRequest(t *testing.T) {
	w := newWorld(t, newMem())
	g, _ := w.open()
	asked := func() weak.Pointer[policy.Request] {
		c := alice
		c.Request = &policy.Request{Parameters: map[string]any{"plaintext": "c2VjcmV0"}}
		p, err := g.Admit(t.Context(), c, policy.ActEncrypt, aKey)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Use(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		return weak.Make(c.Request)
	}()
	runtime.GC()
	if asked.Value() != nil {
		t.Error("the request of a use is still there")
	}
	runtime.KeepAlive(g)
}

func TestUseNeedsADurableWindow(t *testing.T) {
	f := &failing{Store: newMem()}
	w := newWorld(t, f)
	g, _ := w.open()
	p := w.permit(g)
	f.fail(errBroken)
	if err := p.Use(t.Context(), 1); err == nil {
		t.Error("used without an entry")
	}
	f.heal()
	if err := p.Use(t.Context(), 1); err != nil {
		t.Error(err)
	}
}

// TestNoUseIsLost: uses count while windows are closed and minutes go by at the same time.
func TestNoUseIsLost(t *testing.T) {
	w := newWorld(t, newMem())
	g, _ := w.open()
	p := w.permit(g)
	const users, uses = 4, 2000
	var using, closing sync.WaitGroup
	end := make(chan struct{})
	closing.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-end:
				return
			default:
			}
			w.clock.Add(int64(n % 2 * 60))
			if err := g.CloseWindows(t.Context(), n%3 == 0); err != nil {
				t.Error(err)
			}
		}
	})
	for range users {
		using.Go(func() {
			for range uses {
				if err := p.Use(t.Context(), 1); err != nil {
					t.Error(err)
				}
			}
		})
	}
	using.Wait()
	close(end)
	closing.Wait()
	if err := g.CloseWindows(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	sum, open := 0, 0
	for _, e := range w.entries(g) {
		switch e.Outcome {
		case "open":
			open++
		case "closed":
			open--
			n := 0
			if _, err := fmt.Sscan(e.Detail["count"], &n); err != nil {
				t.Fatal(err)
			}
			sum += n
		}
	}
	if sum != users*uses || open != 0 {
		t.Errorf("%d uses were counted of %d; %d windows are open", sum, users*uses, open)
	}
}

func TestInit(t *testing.T) {
	w := newWorld(t, newMem())
	if _, err := guard.Init(t.Context(), w.config()); fault.CodeOf(err) != fault.Exists {
		t.Errorf("again: %v", err)
	}
	// A root that was lost does not make the store an empty one: a second Init would overwrite the namespace's key.
	w.tamper(store.Op{Key: "seal/root", Delete: true})
	if _, err := guard.Init(t.Context(), w.config()); fault.CodeOf(err) != fault.Exists {
		t.Errorf("over a lost root: %v", err)
	}
	var ops []store.Op
	for _, k := range w.keys("log/") {
		ops = append(ops, store.Op{Key: k, Delete: true})
	}
	w.tamper(ops...)
	if _, err := guard.Init(t.Context(), w.config()); fault.CodeOf(err) != fault.Exists {
		t.Errorf("over a lost root and log: %v", err)
	}

	empty := &world{t: t, store: newMem(), sealer: w.sealer}
	if _, err := guard.Open(t.Context(), empty.config()); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("open before init: %v", err)
	}
	c := empty.config()
	c.Sealers = nil
	if _, err := guard.Init(t.Context(), c); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("without a sealer: %v", err)
	}
	// A commit that failed has made nothing, and Init can be repeated.
	f := &failing{Store: empty.store}
	empty.store = f
	f.fail(errBroken)
	if _, err := guard.Init(t.Context(), empty.config()); err == nil {
		t.Error("init on a broken store")
	}
	f.heal()
	if _, err := guard.Init(t.Context(), empty.config()); err != nil {
		t.Error(err)
	}
	// One whose outcome is unknown has made it all.
	unknown := &failing{Store: newMem()}
	empty.store = unknown
	unknown.after.Store(true)
	unknown.fail(store.ErrUnknown)
	if _, err := guard.Init(t.Context(), empty.config()); fault.CodeOf(err) != fault.OutcomeUnknown {
		t.Errorf("%v", err)
	}
	unknown.heal()
	if _, err := guard.Open(t.Context(), empty.config()); err != nil {
		t.Error(err)
	}
}

func TestAnotherSealDoesNotOpen(t *testing.T) {
	w := newWorld(t, newMem())
	other, err := local.Create(filepath.Join(t.TempDir(), "other.key"))
	if err != nil {
		t.Fatal(err)
	}
	c := w.config()
	c.Sealers = []seal.Sealer{other}
	if _, err := guard.Open(t.Context(), c); fault.CodeOf(err) != fault.SealWrong {
		t.Errorf("%v", err)
	}
}

// TestCrashAtAnyCommit: a server that dies before or after any of its commits starts again, with a log that is whole.
func TestCrashAtAnyCommit(t *testing.T) {
	for _, after := range []bool{false, true} {
		f := &failing{Store: newMem()}
		w := newWorld(t, f)
		for i := range 12 {
			g, stop := w.open()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			p := w.permit(g)
			for range i {
				if _, err := p.Commit(ctx, nil, []guard.Write{{Path: "x/a", Value: []byte("v")}}, nil); err != nil {
					t.Fatal(err)
				}
			}
			w.entries(g)
			f.after.Store(after)
			f.fail(store.ErrUnknown) // of this commit, and of the sequencer's that follows one that is durable
			_, err := p.Commit(ctx, nil, []guard.Write{{Path: "x/a", Value: []byte("w")}}, nil)
			if c := fault.CodeOf(err); c != fault.OutcomeUnknown && c != fault.Conflict {
				t.Errorf("%v", err)
			}
			stop()
			f.heal()
			cancel()
		}
		g, _ := w.open()
		if _, err := g.Get(t.Context(), "x/a"); err != nil {
			t.Errorf("after %v: %v", after, err)
		}
	}
}
