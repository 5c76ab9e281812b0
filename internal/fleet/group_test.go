package fleet_test

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rotorkms/rotor/internal/delivery"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/fleet"
	"github.com/rotorkms/rotor/internal/holder"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/store"
)

// counting counts the commits that change the members record, and holds them up while gate is set. After die it is a server that was killed: at
// the commit that it counts down to, made or not, and from then on nothing is written.
type counting struct {
	store.Store
	commits atomic.Int32
	gate    atomic.Pointer[chan struct{}]

	die  atomic.Int32 // at which commit of members, counted down; 0: never
	made bool         // the last one still reached the store
	dead atomic.Bool
}

func (c *counting) Commit(ctx context.Context, conds []store.Cond, ops []store.Op) (store.Rev, error) {
	if c.dead.Load() {
		return 0, store.ErrUnknown
	}
	if strings.HasPrefix(ops[0].Key, "fleet/member") {
		c.commits.Add(1)
		if g := c.gate.Load(); g != nil {
			<-*g
		}
		if c.die.Load() > 0 && c.die.Add(-1) == 0 {
			c.dead.Store(true)
			if c.made {
				_, _ = c.Store.Commit(ctx, conds, ops) // nobody hears of it
			}
			return 0, store.ErrUnknown
		}
	}
	return c.Store.Commit(ctx, conds, ops)
}

// counted starts the server again on a store that counts.
func (w *world) counted() *counting {
	c := &counting{Store: w.store.Store}
	w.startOn(c)
	return c
}

func (w *world) startOn(s store.Store) {
	w.stop()
	synctest.Wait() // nobody uses the store any more
	w.store.Store = s
	w.start()
}

// log reads the details of the audit log's entries.
func (w *world) log() (all []map[string]string) {
	w.t.Helper()
	log, err := w.guard.ReadLog(w.t.Context(), w.admin)
	if err == nil {
		err = log.Settled(w.t.Context())
	}
	if err == nil {
		err = log.Tail(w.t.Context(), 0, false, func(_ int64, b []byte) error {
			var e struct {
				Detail map[string]string `json:"detail"`
			}
			err := json.Unmarshal(b, &e)
			all = append(all, e.Detail)
			return err
		})
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return all
}

// crowd is processes that do everything at once.
func (w *world) crowd(n int) []*process {
	var all []*process
	for i := range n {
		all = append(all, w.process(fmt.Sprintf("p%03d", i)))
	}
	return all
}

// everybody calls f for all at once and returns their errors.
func everybody(all []*process, f func(*process) error) map[string]error {
	var wait sync.WaitGroup
	var mu sync.Mutex
	failed := map[string]error{}
	for _, p := range all {
		wait.Go(func() {
			if err := f(p); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failed[p.address.Instance] = err
			}
		})
	}
	wait.Wait()
	return failed
}

func (p *process) joins(ctx context.Context, keys ...string) error {
	if err := p.connect(); err != nil {
		return err
	}
	return p.session.Hold(ctx, keys)
}

// TestJoinsAreFewCommits: processes that start together are thirty to a commit, and each of them is named in the log.
func TestJoinsAreFewCommits(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		const n = 200
		k := w.create("records", keyring.Block)
		c := w.counted()
		all := w.crowd(n)
		gate := make(chan struct{})
		c.gate.Store(&gate)
		steps := func(f func(*process) error) int32 {
			c.commits.Store(0)
			done := make(chan map[string]error)
			go func() { done <- everybody(all, f) }()
			synctest.Wait() // all wait: one in the store, the others for it
			for {
				select {
				case gate <- struct{}{}:
					synctest.Wait()
					continue
				case failed := <-done:
					if len(failed) > 0 {
						t.Fatal(failed)
					}
				}
				return c.commits.Load()
			}
		}
		if got := steps((*process).connect); got > n/30+2 {
			t.Errorf("%d processes joined in %d commits", n, got)
		}
		if got := steps(func(p *process) error { return p.session.Hold(t.Context(), []string{"records"}) }); got > n/30+2 {
			t.Errorf("%d processes hold a key after %d commits", n, got)
		}
		members, _ := w.fleet.Members(k.ID)
		w.want("holders", len(members), n)
		for _, p := range all {
			p.catchUp("records")
		}
		w.want("waits for", w.waiting(k), []string(nil))
		c.gate.Store(nil)
		time.Sleep(time.Second)
		synctest.Wait() // what the fleet does each second is done: it would wait at a lock, and Wait for it
		c.gate.Store(&gate)
		if got := steps(func(p *process) error { p.session.Close(t.Context(), true); return nil }); got > n/30+2 {
			t.Errorf("%d processes left in %d commits", n, got)
		}
		c.gate.Store(nil)
		if count, _ := w.fleet.Count(); count != 0 {
			t.Errorf("%d members when all have left", count)
		}
		w.named("join", all)
		w.named("hold", all)
		w.named("leave", all)
	})
}

// named checks that the log says of everybody that he did what.
func (w *world) named(what string, all []*process) {
	w.t.Helper()
	told := map[string]int{}
	for _, detail := range w.log() {
		rest, ok := strings.CutPrefix(detail["change"], what+" ")
		if !ok {
			continue
		}
		for _, name := range strings.Fields(rest) {
			told[name]++
		}
	}
	for _, p := range all {
		if told[p.address.Instance] != 1 {
			w.t.Errorf("%s of %s is %d times in the log", what, p.address.Instance, told[p.address.Instance])
		}
	}
}

// TestJoinsSurviveKill: wherever a server is killed while many processes join, whether its last commit reached the store or not, they come back to
// the next server and hold what they asked for, each once and as the same process.
func TestJoinsSurviveKill(t *testing.T) {
	for _, made := range []bool{false, true} {
		for at := int32(1); ; at++ {
			met := false
			t.Run(fmt.Sprintf("commit %d made %v", at, made), func(t *testing.T) {
				bubble(t, func(t *testing.T, w *world) { met = killedAt(t, w, at, made) })
			})
			if t.Failed() {
				return
			}
			if !met {
				if at < 3 {
					t.Fatalf("only %d commits were cut", at-1)
				}
				break
			}
		}
	}
}

func killedAt(t *testing.T, w *world, at int32, made bool) (met bool) {
	k := w.create("records", keyring.Block)
	plain := w.store.Store
	c := w.counted()
	c.made = made
	c.die.Store(at)
	all := w.crowd(40)
	failed := everybody(all, func(p *process) error { return p.joins(t.Context(), "records") })
	if met = c.dead.Load(); met == (len(failed) == 0) {
		t.Fatalf("killed %v, and %d processes heard of it", met, len(failed))
	}
	w.startOn(plain)
	for _, p := range all {
		if m := failed[p.address.Instance]; m == nil { // it was told that it holds the key, so it does
			w.isHolder(k, p)
		}
	}
	if failed := everybody(all, func(p *process) error { return p.joins(t.Context(), "records") }); len(failed) > 0 {
		t.Fatal(failed)
	}
	members, _ := w.fleet.Members(k.ID)
	w.want("holders", len(members), len(all))
	count, connected := w.fleet.Count()
	w.want("members", []int{count, connected}, []int{len(all), len(all)})
	for _, p := range all {
		p.catchUp("records")
	}
	w.want("waits for", w.waiting(k), []string(nil))
	return met
}

func (w *world) isHolder(k keyring.Key, p *process) {
	w.t.Helper()
	members, _ := w.fleet.Members(k.ID)
	for _, m := range members {
		if m.Instance == p.address.Instance {
			return
		}
	}
	w.t.Errorf("%s was told that it holds %s, and does not after the kill", p.address.Instance, k.Name)
}

// TestOneOfAGroup: a change that nobody waits for any more, or that cannot be, is not made; those that wait with it are.
func TestOneOfAGroup(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		k := w.create("records", keyring.Block)
		c := w.counted()
		all := w.crowd(20)
		if failed := everybody(all, (*process).connect); len(failed) > 0 {
			t.Fatal(failed)
		}
		gate := make(chan struct{})
		c.gate.Store(&gate)
		go func() { _ = w.process("first").connect() }()
		synctest.Wait()
		gone, cancel := context.WithCancel(t.Context())
		done := make(chan map[string]error)
		go func() {
			done <- everybody(all, func(p *process) error {
				if p == all[3] {
					return p.session.Hold(gone, []string{"records"})
				}
				return p.session.Hold(t.Context(), []string{"records"})
			})
		}()
		synctest.Wait() // they wait for the first
		cancel()
		all[5].session.Close(t.Context(), false)
		c.gate.Store(nil)
		close(gate)
		failed := <-done
		if len(failed) != 2 || fault.CodeOf(failed["p003"]) != fault.Canceled || fault.CodeOf(failed["p005"]) != fault.LeaseOver {
			t.Errorf("%v", failed)
		}
		members, _ := w.fleet.Members(k.ID)
		w.want("holders", len(members), len(all)-2)
	})
}

// TestManyKeysAtOnce: a process asks for as many keys as it may hold in one message.
func TestManyKeysAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		var names []string
		for i := range fleet.MaxKeys {
			names = append(names, fmt.Sprintf("key-%03d", i))
			w.create(names[i], keyring.Block)
		}
		p := w.join("a", names...)
		got, err := p.drain()
		if err != nil || len(got) != len(names) {
			t.Fatalf("%d of %d keys came: %v", len(got), len(names), err)
		}
	})
}

// TestReconnectKeepsTheProcess: a stream that breaks and comes back is the same process with another session: its member is not written again, what
// it acknowledged counts, and the material comes sealed for the new session alone.
func TestReconnectKeepsTheProcess(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		k := w.create("records", keyring.Block)
		c := w.counted()
		all := w.crowd(20)
		if failed := everybody(all, func(p *process) error { return p.joins(t.Context(), "records") }); len(failed) > 0 {
			t.Fatal(failed)
		}
		before := map[string]delivery.Address{}
		for _, p := range all {
			p.catchUp("records")
			before[p.address.Instance] = p.address
		}
		time.Sleep(time.Second)
		for _, p := range all {
			p.session.Close(t.Context(), false)
		}
		_, cond := w.fleet.Members(k.ID)
		c.commits.Store(0)
		if failed := everybody(all, func(p *process) error { return p.joins(t.Context(), "records") }); len(failed) > 0 {
			t.Fatal(failed)
		}
		if n := c.commits.Load(); n != 0 {
			t.Errorf("%d commits for processes that were members already", n)
		}
		_, now := w.fleet.Members(k.ID)
		w.want("condition of gates", now, cond)
		w.want("waits for", w.waiting(k), []string(nil))
		for _, p := range all {
			was := before[p.address.Instance]
			if string(was.Incarnation) != string(p.address.Incarnation) || string(was.Session) == string(p.address.Session) {
				t.Errorf("%s: %+v, before %+v", p.address.Instance, p.address, was)
			}
			p.keys, p.have = map[string]*holder.Key{}, map[keyring.KeyID]delivery.Materials{}
			got, err := p.drain()
			if err != nil || len(got) != 1 || got[0].Parcel == nil || len(got[0].Parcel.Sealed) == 0 {
				t.Errorf("%s got %+v, %v", p.address.Instance, got, err)
			}
		}
	})
}

// TestMemoryOfASession bounds what the server keeps of each quiet process in this room: it has ten thousand.
func TestMemoryOfASession(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		const n, bound = 300, 4 << 10
		names := []string{"a", "b", "c", "d", "e", "f"}
		for _, name := range names {
			w.create(name, keyring.Block)
		}
		all := w.crowd(n)
		heap := func() uint64 {
			var m runtime.MemStats
			for range 2 { // the second takes what the first has found in pools
				runtime.GC()
			}
			runtime.ReadMemStats(&m)
			return m.HeapAlloc
		}
		if failed := everybody(all, func(p *process) error { return p.joins(t.Context(), names...) }); len(failed) > 0 {
			t.Fatal(failed)
		}
		for _, p := range all {
			for range names {
				if _, ok, err := p.session.Poll(t.Context()); !ok || err != nil {
					t.Fatal(ok, err)
				}
			}
		}
		with := heap()
		for _, p := range all {
			p.session.Close(t.Context(), false)
			p.session = nil
		}
		if each := (int(with) - int(heap())) / n; each > bound {
			t.Errorf("%d bytes for each session, at most %d", each, bound)
		} else {
			t.Logf("%d bytes for each session", each)
		}
		runtime.KeepAlive(all)
	})
}
