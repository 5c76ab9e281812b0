package fleet

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
)

// Publish pushes a changed key to its holders. A holder that has lost the right to hold it is refused instead.
func (f *Fleet) Publish(ctx context.Context, k keyring.Key) {
	f.publish(ctx, k, f.allowed(ctx, k), false)
}

// allowed returns the sessions that may go on holding a key, and refuses the others.
func (f *Fleet) allowed(ctx context.Context, k keyring.Key) []*Session {
	var may []*Session
	for _, s := range f.holders(k.ID) {
		if f.Guard.Allows(s.caller, holdAction(k), resource(k)) {
			may = append(may, s)
			continue
		}
		if err := s.refuse(k, k.Name, fault.New(fault.Denied, "key "+k.Name)); err != nil {
			f.Log.WarnContext(ctx, "holder not refused", "instance", s.address.Instance, "key", k.Name, "error", err)
		}
	}
	return may
}

// holders are the sessions of the members that hold a key.
func (f *Fleet) holders(id keyring.KeyID) []*Session {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []*Session
	for name, s := range f.sessions {
		if m := f.members[name]; m != nil && m.Keys[id] != nil {
			all = append(all, s)
		}
	}
	return all
}

// publish audits the release of material that is new to the sessions, in entries of many instances each, and then puts the snapshot into their boxes.
// What could not be audited is not sent, and tried again.
func (f *Fleet) publish(ctx context.Context, k keyring.Key, to []*Session, asked bool) {
	if len(to) == 0 {
		return
	}
	n, err := newsOf(k)
	if err != nil {
		f.Log.ErrorContext(ctx, "key not sent", "key", k.Name, "error", err)
		return
	}
	var release []string
	live := n.live()
	fresh := map[*Session][]uint32{}
	for _, s := range to {
		if lacks := s.missing(k.ID, live); len(lacks) > 0 {
			fresh[s] = lacks
			release = append(release, s.address.Instance)
		}
	}
	if len(release) > 0 {
		if _, err := f.releases.do(released{k.Namespace, k.Name, k.Epoch.Counter}, release...); err != nil {
			f.Log.ErrorContext(ctx, "delivery not audited, so not made", "key", k.Name, "error", err)
			f.mu.Lock()
			f.unsent[k.ID] = true
			f.mu.Unlock()
			return
		}
	}
	if len(release) > 0 { // once and here, and not by all who send it at the same moment
		f.warm(ctx, k, live)
	}
	for _, s := range to {
		s.post(n, fresh[s], asked)
	}
}

// warm opens material, which is then at hand. What does not open is found again by who needs it.
func (f *Fleet) warm(ctx context.Context, k keyring.Key, versions []uint32) {
	for _, n := range versions {
		if _, err := f.Keys.Material(ctx, k, n); err != nil {
			f.Log.WarnContext(ctx, "material not opened", "key", k.Name, "version", n, "error", err)
		}
	}
}

const (
	// releaseBatch bounds the instances that one text of an entry names: a longer one would be cut in the log (guard: 2 KiB), and a name has up to
	// 64 bytes.
	releaseBatch = 30
	// releaseTexts bounds the texts of an entry, which has up to 65,535 bytes.
	releaseTexts = 20
)

// released is what an entry says that instances got.
type released struct {
	namespace keyring.Namespace
	name      string
	epoch     uint64
}

// release records who gets material. An entry more than what is then sent is no harm; one less would be.
func (f *Fleet) release(ctx context.Context, what released, to []string) error {
	to = slices.Clone(to)
	slices.Sort(to)
	p := f.Guard.System("fleet", policy.ActDeliver, policy.Resource{Namespace: string(what.namespace), Key: what.name})
	for some := range slices.Chunk(to, releaseBatch*releaseTexts) {
		detail, text := map[string]string{"epoch": fmt.Sprint(what.epoch)}, "instances"
		for names := range slices.Chunk(some, releaseBatch) {
			detail[text] = strings.Join(names, " ")
			text = fmt.Sprintf("instances_%02d", len(detail))
		}
		if err := p.Release(ctx, detail); err != nil {
			return err
		}
	}
	return nil
}

// resend publishes again what could not be published.
func (f *Fleet) resend(ctx context.Context) {
	f.mu.Lock()
	again := f.unsent
	f.unsent = map[keyring.KeyID]bool{}
	f.mu.Unlock()
	for id := range again {
		if k, ok := f.Keys.Key(id); ok {
			f.Publish(ctx, k)
		}
	}
}

// missing returns those of some versions whose material the session has not got.
func (s *Session) missing(id keyring.KeyID, live []uint32) []uint32 {
	if len(live) == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	has := s.line(id).delivered
	if len(has) == 0 {
		return live
	}
	return slices.DeleteFunc(slices.Clone(live), func(n uint32) bool { return slices.Contains(has, n) })
}

// post puts a key into the box, over an older one. What was sent already is sent again only if the process asked.
func (s *Session) post(n *news, released []uint32, asked bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, k := s.line(n.key.ID), n.key
	if l.told && l.out == nil && (k.Epoch.Less(l.sent) || !asked && k.Epoch == l.sent) {
		return
	}
	if l.out == nil {
		l.out = &outgoing{n, released}
	} else {
		if !k.Epoch.Less(l.out.key.Epoch) {
			l.out.news = n
		}
		l.out.released = append(slices.Clip(l.out.released), released...) // they may be of all sessions
	}
	s.poke()
}
