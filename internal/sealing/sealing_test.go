package sealing_test

import (
	"context"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/seal/local"
	"github.com/rotorkms/rotor/internal/seal/shamir"
	"github.com/rotorkms/rotor/internal/sealing"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/mem"
)

var (
	alice = policy.Caller{Kind: policy.KindAdmin, Name: "admin/alice"}
	bob   = policy.Caller{Kind: policy.KindAdmin, Name: "admin/bob"}
)

type onlyAlice struct{}

func (onlyAlice) Allows(c policy.Caller, _ policy.Action, _ policy.Resource) (string, bool) {
	return "alice", c.Name == alice.Name
}

// away is a root of trust that can be unplugged.
type away struct {
	seal.Sealer
	off *atomic.Bool
}

func (a away) Unwrap(ctx context.Context, blob []byte) (secret.Bytes, error) {
	if a.off.Load() {
		return secret.Bytes{}, seal.ErrUnavailable
	}
	return a.Sealer.Unwrap(ctx, blob)
}

// world is a store with a wrap set, whose clock stands still until a test moves it.
type world struct {
	t      *testing.T
	store  store.Store
	named  map[string]seal.Sealer
	off    atomic.Bool // of the sealers "far" and "near"
	clock  atomic.Int64
	hold   time.Duration
	sealed []sealing.Reason
}

func (w *world) now() time.Time { return time.Unix(w.clock.Load(), 0) }

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, store: mem.New(), named: map[string]seal.Sealer{}}
	w.clock.Store(1_800_000_000)
	for _, name := range []string{"far", "near"} {
		s, err := local.Create(filepath.Join(t.TempDir(), "seal.key"))
		if err != nil {
			t.Fatal(err)
		}
		w.named[name] = away{s, &w.off}
	}
	return w
}

// init makes the cluster, and gives the shares out if there are any.
func (w *world) init(specs ...string) (shares []shamir.Share) {
	w.t.Helper()
	var sealers []seal.Sealer
	for _, spec := range specs {
		s, _, some, err := sealing.New(spec, w.named)
		if err != nil {
			w.t.Fatal(err)
		}
		sealers, shares = append(sealers, s), append(shares, some...)
	}
	if _, err := guard.Init(w.t.Context(), guard.Config{Store: w.store, Sealers: sealers, Now: w.now}); err != nil {
		w.t.Fatal(err)
	}
	return shares
}

// keeper is that of a server that has just started.
func (w *world) keeper() *sealing.Keeper {
	w.t.Helper()
	wraps, err := guard.ReadWraps(w.t.Context(), w.store)
	if err != nil {
		w.t.Fatal(err)
	}
	return sealing.NewKeeper(sealing.Config{
		Named: w.named, Wraps: wraps.Wraps, Hold: w.hold, Now: w.now, Log: slog.New(slog.DiscardHandler),
		Seal: func(why sealing.Reason) { w.sealed = append(w.sealed, why) },
	})
}

// open opens the store with what the keeper has now.
func (w *world) open(k *sealing.Keeper) error {
	w.t.Helper()
	g, err := guard.Open(w.t.Context(), guard.Config{Store: w.store, Sealers: k.Sealers(), Rules: onlyAlice{}, Now: w.now})
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Run(ctx) }() // ends with ctx
	w.t.Cleanup(func() { stop(); <-done })
	k.Opened(g)
	return nil
}

func code(t *testing.T, err error, want fault.Code, what string) {
	t.Helper()
	if fault.CodeOf(err) != want {
		t.Errorf("%s: %v, want %q", what, err, want)
	}
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// bring gives shares to a function until all are there.
func bring(t *testing.T, shares []shamir.Share, give func(text secret.Bytes) error) {
	t.Helper()
	for _, s := range shares {
		if err := give(s.Text()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestUnseal: the store opens when enough shares are there and not before, and then the shares are gone.
func TestUnseal(t *testing.T) {
	w := newWorld(t)
	shares := w.init("shamir:3/5")
	_, _, foreign, err := sealing.New("shamir:3/5", nil)
	w.must(err)
	k := w.keeper()
	code(t, w.open(k), fault.Sealed, "without shares")
	give := func(s shamir.Share) (shamir.Progress, error) { return k.Unseal(t.Context(), "", "", s.Text()) }
	p, err := give(shares[4])
	w.must(err)
	if p.Have != 1 || p.Threshold != 3 || p.Attempt == "" {
		t.Errorf("%+v", p)
	}
	_, err = give(shares[4])
	code(t, err, fault.ShareDuplicate, "the same again")
	_, err = give(foreign[0])
	code(t, err, fault.ShareForeign, "of another set")
	if !strings.Contains(err.Error()+err.(*fault.Error).HintText(), shares[0].Set) { //nolint:errorlint // code has checked it
		t.Errorf("it does not say whose shares are taken: %v", err)
	}
	_, err = k.Unseal(t.Context(), "", "", secret.Copy([]byte("rs1-nonsense")))
	code(t, err, fault.ShareWrong, "nonsense")
	state, err := k.State(t.Context(), policy.Caller{})
	if err != nil || !state.Sealed || len(state.Shares) != 1 || state.Shares[0].Have != 1 || state.Shares[0].Attempt != "" || state.Members != nil {
		t.Errorf("%+v, %v", state, err)
	}
	_, err = give(shares[0])
	w.must(err)
	code(t, w.open(k), fault.Sealed, "with one too few")
	select {
	case <-k.Enough():
		t.Error("two were enough")
	default:
	}
	_, err = give(shares[2])
	w.must(err)
	<-k.Enough()
	w.must(w.open(k))
	for _, p := range k.Sealers() {
		if s, ok := p.(*shamir.Sealer); ok && s.Progress().Have != 0 {
			t.Error("shares stay after the store is open")
		}
	}
	// While it is open shares prove that they would open it, and are forgotten again after a while.
	for _, s := range shares[1:4] {
		p, err = give(s)
		w.must(err)
	}
	if !p.Done() {
		t.Errorf("%+v", p)
	}
	state, err = k.State(t.Context(), alice)
	if err != nil || state.Sealed || len(state.Members) != 1 || !state.Members[0].Opened.Equal(w.now()) || state.Members[0].Automatic {
		t.Errorf("%+v, %v", state, err)
	}
	w.clock.Add(int64((sealing.AttemptLife + time.Second) / time.Second))
	w.must(k.Watch(t.Context()))
	if state, err = k.State(t.Context(), alice); err != nil || len(state.Shares) != 0 {
		t.Errorf("shares stay: %+v, %v", state, err)
	}
	if state, err = k.State(t.Context(), bob); err != nil || state.Members != nil || state.Weakest != "" {
		t.Errorf("somebody without the right sees %+v, %v", state, err)
	}
}

// TestAttempts: a collection can be reset by who knows it, ends by itself, and wrong shares are not taken without end.
func TestAttempts(t *testing.T) {
	w := newWorld(t)
	shares := w.init("shamir:2/3")
	k := w.keeper()
	p, err := k.Unseal(t.Context(), "", "", shares[0].Text())
	w.must(err)
	_, err = k.Reset("guess")
	code(t, err, fault.Conflict, "reset by a guess")
	_, err = k.Reset("")
	code(t, err, fault.Conflict, "reset by nothing")
	p, err = k.Reset(p.Attempt)
	if err != nil || p.Have != 0 {
		t.Errorf("%+v, %v", p, err)
	}
	_, err = k.Unseal(t.Context(), "", "", shares[0].Text())
	w.must(err)
	w.clock.Add(int64((sealing.AttemptLife + time.Second) / time.Second))
	if p, err = k.Unseal(t.Context(), "", "", shares[1].Text()); err != nil || p.Have != 1 {
		t.Errorf("a share that was there for too long counts: %+v, %v", p, err)
	}
	for range 20 {
		_, err = k.Unseal(t.Context(), "10.0.0.1", "", secret.Copy([]byte("rs1-nonsense")))
		code(t, err, fault.ShareWrong, "nonsense")
	}
	_, err = k.Unseal(t.Context(), "10.0.0.1", "", shares[0].Text())
	code(t, err, fault.Unavailable, "after too many wrong ones")
	if p, err = k.Unseal(t.Context(), "10.0.0.2", "", shares[0].Text()); err != nil || !p.Done() {
		t.Errorf("the wrong ones of somebody else keep a custodian out: %+v, %v", p, err)
	}
	w.clock.Add(60)
	_, err = k.Unseal(t.Context(), "10.0.0.1", "", shares[0].Text())
	code(t, err, fault.ShareDuplicate, "a minute later")
}

// TestRekey: new shares need enough of the old ones and count only after enough of them came back. Until then the old ones open, and
// afterwards they do not.
func TestRekey(t *testing.T) {
	for name, spec := range map[string]string{"shares alone": "shamir:2/3", "shares and a file": "shamir:2/3+near"} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			old := w.init(spec)
			opens := func(shares []shamir.Share) error {
				k := w.keeper()
				for _, s := range shares {
					if _, err := k.Unseal(t.Context(), "", "", s.Text()); err != nil {
						return err
					}
				}
				return w.open(k)
			}
			k := w.keeper()
			bring(t, old[:2], func(s secret.Bytes) error { _, err := k.Unseal(t.Context(), "", "", s); return err })
			w.must(w.open(k))
			ctx := t.Context()
			_, err := k.StartRekey(ctx, bob, "3/4", "")
			code(t, err, fault.Denied, "started without the right")
			_, err = k.StartRekey(ctx, alice, "5/4", "")
			code(t, err, fault.Invalid, "sizes")
			_, err = k.Rekey(ctx, alice, "", old[0].Text())
			code(t, err, fault.NotFound, "before it is started")
			r, err := k.StartRekey(ctx, alice, "3/4", "")
			if err != nil || r.Phase != sealing.PhaseAuthorize || r.Shares != nil {
				t.Fatalf("%+v, %v", r, err)
			}
			_, err = k.StartRekey(ctx, alice, "3/4", "")
			code(t, err, fault.InUse, "started twice")
			_, err = k.Rekey(ctx, bob, "", old[0].Text())
			code(t, err, fault.Denied, "a share without the right")
			_, err = k.Rekey(ctx, alice, "another", old[0].Text())
			code(t, err, fault.Conflict, "another attempt")
			r, err = k.AbortRekey(ctx, alice, r.Attempt)
			if err != nil || r.Phase != sealing.PhaseNone {
				t.Errorf("%+v, %v", r, err)
			}
			_, err = k.StartRekey(ctx, alice, "3/4", "")
			w.must(err)
			r, err = k.Rekey(ctx, alice, "", old[2].Text())
			if err != nil || r.Phase != sealing.PhaseAuthorize || r.Progress.Have != 1 || r.Shares != nil {
				t.Errorf("%+v, %v", r, err)
			}
			r, err = k.Rekey(ctx, alice, r.Attempt, old[0].Text())
			if err != nil || r.Phase != sealing.PhaseVerify || len(r.Shares) != 4 {
				t.Fatalf("%+v, %v", r, err)
			}
			fresh := r.Shares
			code(t, opens(fresh), fault.ShareForeign, "new shares before they count")
			w.must(opens(old[:2]))
			_, err = k.Rekey(ctx, alice, "", old[0].Text())
			code(t, err, fault.ShareForeign, "an old share in the place of a new one")
			for i, s := range []shamir.Share{fresh[3], fresh[1], fresh[0]} {
				if r, err = k.Rekey(ctx, alice, "", s.Text()); err != nil || (r.Phase == sealing.PhaseDone) != (i == 2) || r.Shares != nil {
					t.Fatalf("%d: %+v, %v", i, r, err)
				}
			}
			if strings.HasPrefix(r.Sealer, "all(") != strings.Contains(spec, "+") {
				t.Errorf("it became %s", r.Sealer)
			}
			code(t, opens(old), fault.ShareForeign, "old shares")
			code(t, opens(fresh[:2]), fault.Sealed, "two new ones")
			w.must(opens(fresh[1:]))
			state, err := k.State(ctx, alice)
			if err != nil || len(state.Members) != 1 || state.Members[0].ID != r.Sealer || state.Rekey.Phase != sealing.PhaseNone {
				t.Errorf("%+v, %v", state, err)
			}
		})
	}
}

// TestFirstShares: a set that had no shares gets some beside what it has.
func TestFirstShares(t *testing.T) {
	w := newWorld(t)
	w.init("near")
	k := w.keeper()
	w.must(w.open(k))
	r, err := k.StartRekey(t.Context(), alice, "2/2", "")
	if err != nil || r.Phase != sealing.PhaseVerify || len(r.Shares) != 2 {
		t.Fatalf("%+v, %v", r, err)
	}
	bring(t, r.Shares, func(s secret.Bytes) error { _, err := k.Rekey(t.Context(), alice, "", s); return err })
	w.must(k.Change(t.Context(), alice, "add", "far+near"))
	state, err := k.State(t.Context(), alice)
	if err != nil || len(state.Members) != 3 || state.Weakest != w.named["near"].ID() {
		t.Errorf("%+v, %v", state, err)
	}
	w.must(k.Change(t.Context(), alice, "remove", "near"))
	code(t, k.Change(t.Context(), alice, "remove", state.Members[0].ID), fault.Unavailable, "nobody has proven the shares")
	bring(t, r.Shares, func(s secret.Bytes) error { _, err := k.Unseal(t.Context(), "", "", s); return err })
	w.must(k.Change(t.Context(), alice, "remove", state.Members[0].ID))
}

// TestChange: names and IDs, rights, and a removal that would leave what nothing opens now.
func TestChange(t *testing.T) {
	w := newWorld(t)
	shares := w.init("near", "shamir:2/2")
	k := w.keeper()
	w.must(w.open(k))
	ctx := t.Context()
	code(t, k.Change(ctx, bob, "add", "far"), fault.Denied, "without the right")
	code(t, k.Change(ctx, alice, "add", "nobody"), fault.Invalid, "a name that is not there")
	code(t, k.Change(ctx, alice, "add", "shamir:2/3"), fault.Invalid, "shares without a rekey")
	code(t, k.Change(ctx, alice, "destroy", "far"), fault.Invalid, "another change")
	code(t, k.Change(ctx, alice, "rotate", "far"), fault.NotFound, "rotate what is no member")
	w.must(k.Change(ctx, alice, "add", "far"))
	w.must(k.Change(ctx, alice, "rotate", "far"))
	w.must(k.Change(ctx, alice, "remove", w.named["far"].ID()))
	// Shares alone would be left: they have to prove that they open first.
	code(t, k.Change(ctx, alice, "remove", "near"), fault.Unavailable, "nobody has proven the shares")
	_, err := k.Unseal(ctx, "", "", shares[0].Text())
	w.must(err)
	code(t, k.Change(ctx, alice, "remove", "near"), fault.Unavailable, "with one share")
}

// storeless is a store that can be away.
type storeless struct {
	store.Store
	away atomic.Bool
}

func (s *storeless) Get(ctx context.Context, key string) (store.Record, error) {
	if s.away.Load() {
		return store.Record{}, store.ErrUnavailable
	}
	return s.Store.Get(ctx, key)
}

// TestHoldWithoutTheStore: while the store is away the roots are asked with what was read last, and the hold time runs.
func TestHoldWithoutTheStore(t *testing.T) {
	w := newWorld(t)
	w.hold = time.Hour
	w.init("near", "far")
	db := &storeless{Store: w.store}
	w.store = db
	k := w.keeper()
	w.must(w.open(k))
	w.must(k.Watch(t.Context()))
	db.away.Store(true)
	w.clock.Add(3601)
	if err := k.Watch(t.Context()); err == nil {
		t.Error("nobody said that the store is away")
	}
	if members, left := k.Health(); left != -1 || len(members) != 2 || !members[0].Up || len(w.sealed) != 0 {
		t.Errorf("with the roots there: %v, %s, %v", members, left, w.sealed)
	}
	w.off.Store(true)
	w.clock.Add(3600)
	if err := k.Watch(t.Context()); err == nil || !slices.Equal(w.sealed, []sealing.Reason{sealing.Held}) {
		t.Errorf("with neither: %v, %v", w.sealed, err)
	}
}

// TestHold: with all roots away the server goes on until the hold time, warns at once, and names what is wrong.
func TestHold(t *testing.T) {
	for name, c := range map[string]struct {
		hold  time.Duration
		seals bool
	}{"for ever": {0, false}, "an hour": {time.Hour, true}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.hold = c.hold
			w.init("near", "far", "shamir:2/2")
			k := w.keeper()
			w.must(w.open(k))
			warning := func() string {
				t.Helper()
				s, err := k.State(t.Context(), alice)
				w.must(err)
				return s.Warning
			}
			w.must(k.Watch(t.Context()))
			if got := warning(); got != "" {
				t.Errorf("%q while all is well", got)
			}
			w.clock.Add(3600 * 24) // a look long ago, and all is well
			w.must(k.Watch(t.Context()))
			w.off.Store(true)
			w.clock.Add(3599)
			w.must(k.Watch(t.Context()))
			members, left := k.Health()
			if want := map[bool]time.Duration{true: time.Second, false: -1}[c.seals]; left != want {
				t.Errorf("it goes on for %s, want %s", left, want)
			}
			for _, m := range members {
				if m.Up || w.now().Sub(m.Opened) != 3599*time.Second || m.Kind != "local" {
					t.Errorf("%+v", m)
				}
			}
			if len(members) != 2 || !strings.Contains(warning(), "no root of trust") || len(w.sealed) != 0 || k.Why() != "" {
				t.Errorf("%v, %q, %v", members, warning(), w.sealed)
			}
			w.off.Store(false)
			w.must(k.Watch(t.Context()))
			if members, left := k.Health(); left != -1 || !members[0].Up || !members[0].Opened.Equal(w.now()) {
				t.Errorf("back: %v, %s", members, left)
			}
			w.off.Store(true)
			w.clock.Add(3599)
			w.must(k.Watch(t.Context()))
			if len(w.sealed) != 0 {
				t.Error("the time counts from when a root was last there")
			}
			w.clock.Add(1)
			w.must(k.Watch(t.Context()))
			w.must(k.Watch(t.Context()))
			if want := map[bool][]sealing.Reason{true: {sealing.Held}}[c.seals]; !slices.Equal(w.sealed, want) || k.Sealed() != c.seals {
				t.Errorf("sealed: %v", w.sealed)
			}
		})
	}
}

// TestPeopleAlone: nobody is asked every minute, so a server that people opened stays open.
func TestPeopleAlone(t *testing.T) {
	w := newWorld(t)
	w.hold = time.Hour
	shares := w.init("shamir:2/2")
	k := w.keeper()
	bring(t, shares, func(s secret.Bytes) error { _, err := k.Unseal(t.Context(), "", "", s); return err })
	w.must(w.open(k))
	w.clock.Add(3600 * 24 * 365)
	w.must(k.Watch(t.Context()))
	if len(w.sealed) != 0 {
		t.Error("it was sealed")
	}
	code(t, k.Close(t.Context(), bob), fault.Denied, "sealed without the right")
	w.must(k.Close(t.Context(), alice))
	if !slices.Equal(w.sealed, []sealing.Reason{sealing.Told}) {
		t.Errorf("%v", w.sealed)
	}
}

func TestWeakest(t *testing.T) {
	for _, c := range []struct {
		ids  []string
		want string
	}{
		{nil, ""},
		{[]string{"transit:a", "local:b"}, "local:b"},
		{[]string{"shamir:3/5:x", "pkcs11:y"}, "pkcs11:y"},
		{[]string{"all(local:b & shamir:2/3:x)", "transit:a"}, "transit:a"},
		{[]string{"all(local:b & transit:x)", "shamir:2/3:x"}, "all(local:b & transit:x)"},
	} {
		wraps := map[string][]byte{}
		for _, id := range c.ids {
			wraps[id] = nil
		}
		if got := sealing.Weakest(wraps); got != c.want {
			t.Errorf("%v: %s", c.ids, got)
		}
	}
}

// TestMembers: what a server cannot ask is named, and damaged wraps take nothing else with them.
func TestMembers(t *testing.T) {
	w := newWorld(t)
	w.init("near", "shamir:2/2", "far+shamir:2/3", "near+far")
	wraps, err := guard.ReadWraps(t.Context(), w.store)
	w.must(err)
	set := sealing.Members(wraps.Wraps, w.named)
	if len(set.Automatic) != 2 || len(set.People) != 2 || len(set.Composed) != 1 || len(set.Missing) != 0 {
		t.Errorf("%+v", set)
	}
	set = sealing.Members(wraps.Wraps, map[string]seal.Sealer{"near": w.named["near"]})
	if len(set.Automatic) != 1 || len(set.People) != 1 || len(set.Composed) != 0 || len(set.Missing) != 2 {
		t.Errorf("without the other file: %+v", set)
	}
	for id := range wraps.Wraps {
		damaged := map[string][]byte{}
		for other, blob := range wraps.Wraps {
			damaged[other] = blob
		}
		damaged[id] = []byte{1, 2, 3}
		set := sealing.Members(damaged, w.named)
		ids := []string{}
		for _, s := range set.Sealers() {
			ids = append(ids, s.ID())
		}
		if strings.Contains(id, "shamir") && slices.Contains(ids, id) || len(ids) < 3 {
			t.Errorf("%s damaged: %v", id, ids)
		}
	}
}
