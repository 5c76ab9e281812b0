package kms

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keybackup"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/replica"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/suite"
)

// Restore is what comes back, and as what.
type Restore struct {
	Namespace keyring.Namespace
	Blob      []byte
	Name      string // the key gets this name; empty: its own
	Foreign   bool   // it is of another cluster, or nothing shows that it is of this one: an import as well
}

// Restored is what a restore did.
type Restored struct {
	Key       keyring.Key
	Versions  []uint32 // that it brought back
	Destroyed []uint32 // versions that came back as destroyed
}

// versionsAtOnce bounds what one commit of a restore adds, in conditions and writes: a commit of the store takes store.MaxItems of both, and
// the key, its pages, its name, the wrapping key and the entry take some.
const versionsAtOnce = store.MaxItems - 24 - 3*keyring.PagesAtOnce

// restoring is a restore on its way.
type restoring struct {
	Restore
	service *Service
	permit  *guard.Permit
	facts   keybackup.Facts
	content keybackup.Content
	path    string    // of the wrapping key; empty: the backup is under the root
	rev     store.Rev // of the wrapping key

	lost []keyring.Version // that are still to come, as of the commit last
	last store.Rev
}

// Restore brings back what this server does not have of a backed-up key: all of it where there is none of its ID, else the versions that a recovery
// of the store lost. It changes nothing that is there: a version that was destroyed stays so, and no number and no handle is given again.
// It may be called again after a crash. fault.Exists when nothing is missing, Conflict, DecryptFailed, SealWrong, WrongNamespace, Denied.
func (s *Service) Restore(ctx context.Context, c policy.Caller, in Restore) (out Restored, err error) {
	f, malformed := keybackup.Read(in.Blob)
	in.Name = cmp.Or(in.Name, f.Name)
	r := &restoring{Restore: in, service: s, facts: f}
	if r.permit, err = r.admit(ctx, c); err != nil {
		return out, err
	}
	if malformed != nil {
		return out, malformed
	}
	if err := s.agreed(replica.FormatBackups, "restore of a key"); err != nil {
		return out, err
	}
	if err := s.CatchUp(ctx); err != nil {
		return out, err
	}
	if f.Namespace != in.Namespace {
		return out, fault.New(fault.WrongNamespace, "key backup").WithHint("it is of namespace %s; ciphertexts of the key open in no other", f.Namespace)
	}
	if err := r.open(ctx, c); err != nil {
		return out, err
	}
	defer r.content.Destroy()
	if err := r.suits(); err != nil {
		return out, err
	}
	for {
		more, err := r.step(ctx, &out)
		if err != nil || !more {
			return out, err
		}
	}
}

// admit asks for every right that the restore needs.
func (r *restoring) admit(ctx context.Context, c policy.Caller) (*guard.Permit, error) {
	g := r.service.guard
	res := policy.Resource{Namespace: string(r.Namespace), Key: r.Name, Labels: r.facts.Labels}
	p, err := g.Admit(ctx, c, policy.ActKeyRestore, res)
	if err != nil || !r.Foreign {
		return p, err
	}
	for _, a := range []policy.Action{policy.ActImport, policy.ActCreate} {
		if _, err := g.Admit(ctx, c, a, res); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// open opens the backup. One that is not proven to be of this cluster is refused unless it is imported.
func (r *restoring) open(ctx context.Context, c policy.Caller) (err error) {
	s, own := r.service, false
	if r.facts.Cluster != s.guard.ClusterID() && !r.Foreign {
		return r.foreign()
	}
	_, r.content, err = keybackup.Open(r.Blob, func(f keybackup.Facts, wrapped, bound []byte) (dek secret.Bytes, err error) {
		if f.WrappingKey == "" {
			dek, own, err = s.guard.OpenKeyBackup(ctx, f.ID, f.Generation, f.Root, r.Blob, wrapped, bound)
			return dek, err
		}
		if !r.Foreign {
			return dek, r.foreign()
		}
		private, w, err := s.wrapping(ctx, c, r.Namespace, r.Name, f.WrappingKey)
		if err != nil {
			return dek, err
		}
		defer private.Destroy()
		r.path, r.rev = w.path, w.rev
		return suite.OpenKey(w.Transport, private, backupLabel(f.WrappingKey), wrapped)
	})
	if err != nil {
		return err
	}
	if !own && !r.Foreign {
		r.content.Destroy()
		return r.foreign()
	}
	r.Foreign = !own
	if err := r.renames(ctx, c); err != nil {
		r.content.Destroy()
		return err
	}
	return nil
}

// renames asks for the right to this cluster's key under its own name too, when it gets another: or whoever may restore keys of some names could have any
// key under one of them, and use it. fault.Denied.
func (r *restoring) renames(ctx context.Context, c policy.Caller) error {
	if r.Foreign || r.Name == r.facts.Name {
		return nil
	}
	_, err := r.service.guard.Admit(ctx, c, policy.ActKeyRestore, policy.Resource{Namespace: string(r.Namespace), Key: r.facts.Name, Labels: r.facts.Labels})
	return err
}

func (r *restoring) foreign() error {
	return fault.New(fault.BackupForeign, "backup "+clipText([]byte(r.facts.ID)))
}

// suits refuses a key that this server could not go on with: its next version's algorithm and its primary's have to be allowed here.
func (r *restoring) suits() error {
	k := r.content.Key
	if err := portable(k); err != nil {
		return err
	}
	if err := r.service.suites.Allows(k.Algorithm, k.Purpose); err != nil {
		return err
	}
	if v, err := k.Version(k.Primary); err == nil {
		if err := r.service.suites.Allows(v.Algorithm, k.Purpose); err != nil {
			return err
		}
	}
	for n, m := range r.content.Materials {
		v, err := k.Version(n)
		if err != nil {
			return err
		}
		if v.PublicOnly {
			continue
		}
		public, err := publicOf(k, v, m)
		if err != nil || !bytes.Equal(public, v.Public) {
			return fault.New(fault.MalformedFile, "key backup").WithHint("the halves of version %d do not belong together", n)
		}
	}
	return nil
}

// step adds versions in one commit. more: there are others.
func (r *restoring) step(ctx context.Context, out *Restored) (more bool, err error) {
	s := r.service
	k, key, rev, err := r.present(ctx)
	if err != nil {
		return false, err
	}
	lost, err := r.missing(k, rev)
	if err != nil {
		return false, err
	}
	if err := r.mayAdd(k, rev, len(lost), len(out.Versions)+len(out.Destroyed) > 0); err != nil || len(lost) == 0 {
		return false, err
	}
	next, w := k, change{}
	if rev == 0 {
		if next, w, err = r.found(ctx); err != nil {
			return false, err
		}
	} else {
		next.Epoch = k.Epoch.Next()
	}
	added, err := r.add(ctx, &next, &w, lost)
	if err != nil {
		return false, err
	}
	next.Restoring = ""
	if more = len(added) < len(lost); more {
		next.Restoring = r.facts.ID
	} else if r.path != "" {
		w = w.and(change{conds: []guard.Cond{{Path: r.path, Rev: r.rev}}, writes: []guard.Write{{Path: r.path, Delete: true}}})
	}
	records, err := s.records(next)
	if err != nil {
		return false, err
	}
	if len(records[0].Value) > maxRecord {
		return false, fault.New(fault.TooLarge, "key "+next.Name)
	}
	w = w.and(change{conds: []guard.Cond{{Path: key, Rev: rev}}, writes: records})
	at, err := s.settle(ctx, records)(r.permit.Commit(ctx, w.conds, w.writes, r.detail(next, added)))
	if fault.CodeOf(err) == fault.Conflict {
		return r.retry(ctx, key, rev, err)
	}
	if err != nil {
		return false, err
	}
	out.note(next, added)
	r.lost, r.last = lost[len(added):], at
	return more, s.await(ctx, at)
}

// missing are the versions that the key lacks. What this restore left of them is what it lacks while nobody else has changed it.
func (r *restoring) missing(k keyring.Key, rev store.Rev) ([]keyring.Version, error) {
	if rev != 0 && rev == r.last {
		return r.lost, nil
	}
	return k.Lost(r.content.Key)
}

// retry says whether a step that met another one can be taken again: the key's record changed meanwhile, or the name was taken.
func (r *restoring) retry(ctx context.Context, key string, rev store.Rev, cause error) (bool, error) {
	rec, err := r.service.guard.Get(ctx, key)
	if err == nil && rec.Rev != rev {
		return true, r.service.CatchUp(ctx)
	}
	if _, err := r.service.guard.Get(ctx, r.namePath()); err == nil && rev == 0 {
		return false, r.nameTaken()
	}
	return false, cause
}

// present reads the key as it is now; rev 0: there is none of its ID.
func (r *restoring) present(ctx context.Context) (k keyring.Key, path string, rev store.Rev, err error) {
	path = keyPath(r.content.Key)
	rec, err := r.service.guard.Get(ctx, path)
	if fault.CodeOf(err) == fault.NotFound {
		return k, path, 0, nil
	}
	if err != nil {
		return k, path, 0, err
	}
	if err := r.service.await(ctx, rec.Rev); err != nil {
		return k, path, 0, err
	}
	st := r.service.ring.Load().get(r.content.Key.ID)
	return st.key, path, st.rev, nil
}

// mayAdd refuses when nothing is missing, and what somebody else's backup would add to a key that is there.
func (r *restoring) mayAdd(k keyring.Key, rev store.Rev, lost int, begun bool) error {
	switch {
	case rev == 0:
		return r.service.roomForKey(r.Namespace)
	case k.Name != r.Name:
		return fault.New(fault.Exists, "key "+k.Name).WithHint("the backup is of this key, which is there under that name")
	case lost == 0 && !begun:
		return fault.New(fault.Exists, "key "+k.Name).WithHint("it has every version of the backup; what was destroyed since stays destroyed")
	case lost > 0 && r.Foreign && k.Restoring != r.facts.ID:
		return fault.New(fault.Exists, "key "+k.Name).WithHint("a backup of another cluster adds nothing to a key that is there")
	}
	return nil
}

// found begins a key that is not there at all.
func (r *restoring) found(ctx context.Context) (keyring.Key, change, error) {
	g, b := r.service.guard, r.content.Key
	more := uint32(0)
	if r.Foreign || r.facts.Incarnation != g.Incarnation() { // more versions may have been made than the backup knows
		more = unknownVersions
	}
	k := b.Founded(g.Incarnation(), more)
	k.Epoch, k.Name = k.Epoch.Next(), r.Name
	if err := k.Validate(); err != nil {
		return k, change{}, err
	}
	if _, err := g.Get(ctx, r.namePath()); fault.CodeOf(err) != fault.NotFound {
		return k, change{}, cmp.Or(err, r.nameTaken())
	}
	return k, change{conds: []guard.Cond{{Path: r.namePath()}}, writes: []guard.Write{{Path: r.namePath(), Value: []byte(k.ID)}}}, nil
}

func (r *restoring) namePath() string { return namePath(r.Namespace, r.Name) }

func (r *restoring) nameTaken() error {
	return fault.New(fault.Exists, "key "+r.Name).WithHint("another key has this name; give the restored one another with --as")
}

// add puts as many lost versions into a key as one commit takes.
func (r *restoring) add(ctx context.Context, k *keyring.Key, w *change, lost []keyring.Version) (added []keyring.Version, err error) {
	room := versionsAtOnce
	for _, v := range lost {
		one, err := r.version(ctx, k, v)
		if err != nil {
			return nil, err
		}
		if room -= 2*len(one.conds) + len(one.writes); room < 0 && len(added) > 0 { // a path that is absent has a second condition, on its mark
			*k = k.Without(v.Number)
			break
		}
		*w = w.and(one)
		back, _ := k.Version(v.Number) // it was added
		added = append(added, back)
	}
	return added, nil
}

// version adds one version to a key and returns the writes that keep it.
func (r *restoring) version(ctx context.Context, k *keyring.Key, v keyring.Version) (change, error) {
	s, material := r.service, r.content.Materials[v.Number]
	if r.Foreign && v.Origin == "" {
		v.Origin, v.Originated = keyring.OriginImported, v.Activated
	}
	dead := s.guard.Deleted(materialPath(*k, v.Number))
	*k = k.Restored(v, v.Number == r.content.Key.Primary, dead, s.now().UTC())
	back, err := k.Version(v.Number)
	if err != nil {
		return change{}, err
	}
	w, err := r.handle(ctx, *k, back)
	if err != nil {
		return w, err
	}
	if k.KeepsMaterial(back) {
		kept, err := s.place(ctx, *k, back, material)
		if err != nil {
			return w, err
		}
		rec, err := s.guard.Get(ctx, kept.conds[0].Path)
		if err != nil && fault.CodeOf(err) != fault.NotFound {
			return w, err
		}
		kept.conds[0].Rev = rec.Rev // it is there when the page of the version alone was lost
		w = w.and(kept)
	}
	if k.Primary == v.Number {
		spent, err := s.spent(*k, back)
		if err != nil {
			return w, err
		}
		w = w.and(spent)
	}
	return w, nil
}

// handle takes a version's handle, unless it has it: then another restore came first. fault.Conflict when it names another version here.
func (r *restoring) handle(ctx context.Context, k keyring.Key, v keyring.Version) (change, error) {
	if !namesByHandle(k) {
		return change{}, nil
	}
	rec, err := r.service.guard.Get(ctx, handlePath(k.Namespace, v.Handle))
	switch {
	case fault.CodeOf(err) == fault.NotFound:
		return takeHandle(k, v), nil
	case err != nil:
		return change{}, err
	case string(rec.Value) == handleOwner(k, v.Number):
		return change{conds: []guard.Cond{{Path: rec.Path, Rev: rec.Rev}}}, nil
	}
	return change{}, fault.New(fault.Conflict, fmt.Sprintf("key %s, version %d", k.Name, v.Number)).WithHint("its handle %08x names %s here", v.Handle, clipText(rec.Value))
}

func clipText(b []byte) string { return string(b[:min(len(b), 64)]) }

// spent says of a primary with a volume limit that all its uses are taken: how many were since the backup, nobody knows.
func (s *Service) spent(k keyring.Key, v keyring.Version) (change, error) {
	spec, err := suite.Lookup(v.Algorithm)
	if err != nil || spec.MaxUses == 0 {
		return change{}, err
	}
	value, err := json.Marshal(taken{spec.MaxUses})
	path := volumePath(k, v.Number)
	return change{conds: []guard.Cond{{Path: path}}, writes: []guard.Write{{Path: path, Value: value}}}, err
}

// detail is what the entry says.
func (r *restoring) detail(k keyring.Key, added []keyring.Version) map[string]string {
	d := map[string]string{"backup": r.facts.ID, "above": fmt.Sprint(k.Above)}
	if r.Foreign {
		d["cluster"], d["origin"] = r.facts.Cluster, keyring.OriginImported
	}
	if r.Name != r.content.Key.Name {
		d["was"] = r.content.Key.Name
	}
	var done Restored
	done.note(k, added)
	d["versions"], d["destroyed"] = listed(done.Versions), listed(done.Destroyed)
	return d
}

func (o *Restored) note(k keyring.Key, added []keyring.Version) {
	o.Key = k
	for _, v := range added {
		if v.State == keyring.Destroyed {
			o.Destroyed = append(o.Destroyed, v.Number)
		} else {
			o.Versions = append(o.Versions, v.Number)
		}
	}
	slices.Sort(o.Versions)
	slices.Sort(o.Destroyed)
}
