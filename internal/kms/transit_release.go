package kms

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/replica"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/transit"
)

// Which versions an export is of, beside one by its number.
const (
	AllVersions   uint32 = 0
	LatestVersion uint32 = math.MaxUint32
)

// TransitExport returns an export of versions in clear, by number. One that tells secrets takes a key that is exportable and is in the log, with the
// versions, before the answer. fault.NotExportable with ErrNotExportable, Invalid, BelowFloor, NotFound.
func (s *Service) TransitExport(ctx context.Context, c policy.Caller, ref Ref, what transit.Export, which uint32) (map[uint32]secret.Bytes, error) {
	action := policy.ActShow
	if what.Releases() {
		action = policy.ActExport
	}
	b, err := s.begin(ctx, c, action, ref, 1)
	if err != nil {
		return nil, err
	}
	if what.Releases() && !b.key.Transit.Exportable {
		return nil, fault.Wrap(fault.NotExportable, "key "+b.key.Name, ErrNotExportable)
	}
	if err := what.Check(b.key.Algorithm); err != nil {
		return nil, err
	}
	out := map[uint32]secret.Bytes{}
	err = b.each(ctx, which, func(v keyring.Version, k *transit.Key) (err error) {
		if what == transit.ExportChain {
			text, err := transit.ChainText(v.Chain)
			out[v.Number] = secret.Copy([]byte(text))
			return err
		}
		out[v.Number], err = k.Export(what)
		return err
	})
	if err == nil && what.Releases() {
		err = b.released(ctx, slices.Collect(maps.Keys(out)), map[string]string{"export": string(what)})
	}
	if err != nil {
		wipe(out)
		return nil, err
	}
	return out, nil
}

func wipe(m map[uint32]secret.Bytes) {
	for _, b := range m {
		b.Destroy()
	}
}

// each opens the versions of an export that clients see. fault.BelowFloor, UnknownVersion, and what MayProcess returns.
func (b *batch) each(ctx context.Context, which uint32, do func(keyring.Version, *transit.Key) error) error {
	if which == LatestVersion {
		which = b.key.Primary
	}
	numbers := []uint32{which}
	if which == AllVersions {
		numbers = nil
		for v := range b.key.All() {
			if b.key.Seen(v) && b.key.AboveFloor(v.Number) == nil && b.key.MayProcess(v, time.Time{}, b.s.now(), false) == nil {
				numbers = append(numbers, v.Number)
			}
		}
	}
	words := wording{"version does not exist or cannot be found", "version for export is below minimum decryption version"}
	for _, n := range numbers {
		v, err := b.processing(ctx, n, 1)
		if err != nil {
			return words.say(err)
		}
		o, err := b.s.open(ctx, b.key, n)
		if err != nil {
			return err
		}
		if err := do(v, o.transit); err != nil {
			return err
		}
	}
	return nil
}

// released says in the log that versions left.
func (b *batch) released(ctx context.Context, numbers []uint32, detail map[string]string) error {
	detail["versions"] = listed(numbers)
	return b.permit.Release(ctx, detail)
}

// TransitBYOK returns versions of an exportable key wrapped, as an importer wraps them, to the primary version of another key, which is of RSA. The log
// names both before the answer. fault.NotExportable, Invalid, NotFound.
func (s *Service) TransitBYOK(ctx context.Context, c policy.Caller, source, destination Ref, which uint32, h transit.Hash) (map[uint32]string, error) {
	b, err := s.begin(ctx, c, policy.ActExport, source, 1)
	if err != nil {
		return nil, err
	}
	to, err := s.begin(ctx, c, policy.ActShow, destination, 1)
	if err != nil {
		return nil, err
	}
	if !b.key.Transit.Exportable {
		return nil, fault.Wrap(fault.NotExportable, "key "+b.key.Name, transit.Refusal("key is not exportable"))
	}
	v, err := to.protecting(ctx, 0, 0)
	if err != nil {
		return nil, err
	}
	out := map[uint32]string{}
	err = b.each(ctx, which, func(from keyring.Version, k *transit.Key) error {
		m, err := k.Portable()
		if err != nil {
			return err
		}
		defer m.Destroy()
		out[from.Number], err = transit.Wrap(v.Public, m, h)
		return err
	})
	if err != nil {
		return nil, err
	}
	detail := map[string]string{"export": "byok", "destination": to.key.Name, "destination_id": string(to.key.ID), "destination_version": fmt.Sprint(v.Number)}
	return out, b.released(ctx, slices.Collect(maps.Keys(out)), detail)
}

// TransitBackup returns a key with the versions that clients see, in clear, in the form that TransitRestore and other servers read. Key and caller have to
// be allowed both to export and to back up; the log says so before the answer. fault.NotExportable.
func (s *Service) TransitBackup(ctx context.Context, c policy.Caller, ref Ref) (secret.Bytes, error) {
	b, err := s.begin(ctx, c, policy.ActKeyBackup, ref, 1)
	if err != nil {
		return secret.Bytes{}, err
	}
	if _, err := s.guard.Admit(ctx, c, policy.ActExport, Resource(b.key)); err != nil {
		return secret.Bytes{}, err
	}
	switch t := b.key.Transit; {
	case !t.Exportable:
		return secret.Bytes{}, fault.Wrap(fault.NotExportable, "key "+b.key.Name, transit.Refusal("exporting is disallowed on the policy"))
	case !t.PlaintextBackup:
		return secret.Bytes{}, fault.Wrap(fault.NotExportable, "key "+b.key.Name, ErrNoPlaintextBackup)
	}
	content, err := s.inClear(ctx, b.key.ID)
	if err != nil {
		return secret.Bytes{}, err
	}
	defer destroy(content)
	now := s.now().UTC()
	text, err := content.Text(now)
	if err != nil {
		return secret.Bytes{}, err
	}
	numbers := make([]uint32, len(content.Versions))
	for i, v := range content.Versions {
		numbers[i] = v.Number
	}
	_, err = s.update(ctx, b.permit, b.key.ID, map[string]string{"export": "backup"}, func(k keyring.Key) (keyring.Key, change, error) {
		k = k.Clone()
		k.Transit.BackedUp = &keyring.Passage{At: now, Version: content.Latest}
		return k, change{}, nil
	})
	if err == nil {
		err = b.released(ctx, numbers, map[string]string{"export": "backup"})
	}
	if err != nil {
		text.Destroy()
		return secret.Bytes{}, err
	}
	return text, nil
}

func destroy(b transit.Backup) {
	for _, v := range b.Versions {
		v.Bundle.Destroy()
	}
}

// inClear reads a key and the material of the versions that clients see, at one moment.
func (s *Service) inClear(ctx context.Context, id keyring.KeyID) (transit.Backup, error) {
	for {
		k, rev, err := s.read(ctx, id)
		if err != nil {
			return transit.Backup{}, err
		}
		_, name, _ := keyring.CutMount(k.Name)
		t := k.Transit
		b := transit.Backup{
			Name: name, Algorithm: k.Algorithm, KeyBytes: t.KeyBytes, Settings: constructions(k, keyring.Version{}), MinDecryption: t.MinDecryption,
			MinEncryption: t.MinEncryption, MinAvailable: t.MinAvailable, Latest: k.Primary, Exportable: t.Exportable, DeletionAllowed: t.DeletionAllowed,
			PlaintextBackup: t.PlaintextBackup, Imported: t.Imported, RotationAllowed: t.RotationAllowed, AutoRotate: k.Schedule.Every,
		}
		for v := range k.All() {
			if v.Number > k.Primary || !k.Seen(v) || v.State == keyring.Compromised {
				continue
			}
			m, uerr := s.unseal(ctx, k, v)
			if uerr != nil {
				err = uerr
				break
			}
			b.Versions = append(b.Versions, transit.BackupVersion{
				Number: v.Number, Bundle: m, Public: v.Public, Convergent: constructions(k, v).Convergent, Created: v.Created, Chain: v.Chain,
			})
		}
		if err == nil {
			return b, nil
		}
		destroy(b)
		if _, now, rerr := s.read(ctx, id); fault.CodeOf(err) != fault.NotFound || rerr != nil || now == rev { // else a version was destroyed meanwhile
			return transit.Backup{}, err
		}
	}
}

// TransitRestoring is a backup in clear that comes in.
type TransitRestoring struct {
	Namespace keyring.Namespace
	Mount     string
	Name      string // empty: that of the backup
	Backup    secret.Bytes
	// Force lets the key take the place of one that has its name and may be deleted, which is deleted as TransitDelete does. Nothing is ever
	// overwritten.
	Force bool
}

// TransitRestore makes a key of a backup in clear: a new one, with handles of its own, whose versions have the numbers and the material that they had. It
// appears whole or not at all. fault.Exists, Invalid, Denied.
func (s *Service) TransitRestore(ctx context.Context, c policy.Caller, in TransitRestoring) (keyring.Key, error) {
	if in.Name == "" {
		in.Name = transit.BackupName(in.Backup) // of a malformed one empty; what is wrong with it is told to who has the right
	}
	ref := Ref{in.Namespace, in.Mount + "/" + in.Name}
	p, err := s.mayRestore(ctx, c, ref, in.Force)
	if err != nil {
		return keyring.Key{}, err
	}
	b, err := transit.ParseBackup(in.Backup) // which costs more than its length says
	defer destroy(b)
	if err != nil {
		return keyring.Key{}, err
	}
	if strings.Contains(in.Name, "/") {
		return keyring.Key{}, invalid("name", "key names cannot be paths")
	}
	k, err := s.restored(ref, b, c.Name)
	if err != nil {
		return keyring.Key{}, err
	}
	if err := s.placeable(ctx, ref, in.Force); err != nil {
		return keyring.Key{}, err
	}
	r := arrival{s, p, b, ref.Name, in.Force}
	for rest := b.Versions; ; {
		n := min(len(rest), transitAtOnce)
		if k, err = r.add(ctx, k, rest[:n], n == len(rest)); err != nil {
			return keyring.Key{}, err
		}
		if rest = rest[n:]; len(rest) == 0 {
			return k, s.dropped(ctx, ref.Namespace, ref.Name)
		}
	}
}

// transitAtOnce is how many versions one commit of a restore adds. Each takes two records, with two conditions each.
const transitAtOnce = versionsAtOnce / 6

// mayRestore asks for every right that a restore needs.
func (s *Service) mayRestore(ctx context.Context, c policy.Caller, ref Ref, force bool) (*guard.Permit, error) {
	res := policy.Resource{Namespace: string(ref.Namespace), Key: ref.Name}
	if k, ok := s.Lookup(ref.Namespace, ref.Name); ok {
		res = Resource(k)
	}
	p, err := s.guard.Admit(ctx, c, policy.ActKeyRestore, res)
	if err != nil {
		return nil, err
	}
	also := []policy.Action{policy.ActImport, policy.ActCreate}
	if force {
		also = append(also, policy.ActDelete)
	}
	for _, a := range also {
		if _, err := s.guard.Admit(ctx, c, a, res); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// restored is the key that a backup becomes, without versions, and deleted so far: nobody sees it before it is whole.
func (s *Service) restored(ref Ref, b transit.Backup, owner string) (keyring.Key, error) {
	now := s.now().UTC()
	spec := TransitSpec{Ref: ref, Algorithm: b.Algorithm, Transit: keyring.Transit{
		KeyBytes: b.KeyBytes, Derived: b.Settings.Derived, Counter: b.Settings.Counter, Convergent: b.Settings.Convergent,
		MinDecryption: max(b.MinDecryption, 1), MinEncryption: b.MinEncryption, MinAvailable: b.MinAvailable,
		DeletionAllowed: b.DeletionAllowed, PlaintextBackup: b.PlaintextBackup, Exportable: b.Exportable, Imported: b.Imported, RotationAllowed: b.RotationAllowed,
		Restored: &keyring.Passage{At: now, Version: b.Latest},
	}}
	k := spec.key()
	k.ID, k.Owner, k.Created = newKeyID(), owner, now
	k.Epoch, k.Primary, k.Above = keyring.Epoch{Incarnation: max(s.guard.Incarnation(), 1)}, b.Latest, b.Latest
	k.Schedule = k.Schedule.WithEvery(b.AutoRotate)
	if err := k.Validate(); err != nil {
		return k, err
	}
	if len(b.Versions) == 0 || b.Versions[len(b.Versions)-1].Number != b.Latest {
		return k, invalid("backup", "backup lacks version %d", b.Latest)
	}
	if err := s.suites.Allows(k.Algorithm, k.Purpose); err != nil {
		return k, err
	}
	if err := s.agreed(replica.FormatPages, "purpose transit"); err != nil {
		return k, err
	}
	return k.Delete(now), s.roomForKey(k.Namespace)
}

// placeable says whether a restored key can have its name. fault.Exists.
func (s *Service) placeable(ctx context.Context, ref Ref, force bool) error {
	if err := s.CatchUp(ctx); err != nil {
		return err
	}
	if k, ok := s.Lookup(ref.Namespace, ref.Name); ok {
		return givesWay(k, force)
	}
	return nil
}

// givesWay refuses to delete a key for one that is restored. fault.Exists.
func givesWay(k keyring.Key, force bool) error {
	switch _, short, _ := keyring.CutMount(k.Name); {
	case !force:
		return fault.Wrap(fault.Exists, "key "+k.Name, transit.Refusal(fmt.Sprintf("key %q already exists", short)))
	case k.Transit == nil || !k.Transit.DeletionAllowed:
		return fault.Wrap(fault.Exists, "key "+k.Name, ErrDeletionNotAllowed).WithHint("it would have to be deleted first, and does not allow that")
	}
	return nil
}

// arrival is a restore on its way.
type arrival struct {
	s      *Service
	permit *guard.Permit
	backup transit.Backup
	name   string // that the key shall have
	force  bool
}

// add adds versions to the key. The commit of the last ones gives it its name.
func (r arrival) add(ctx context.Context, k keyring.Key, versions []transit.BackupVersion, last bool) (keyring.Key, error) {
	detail := map[string]string{"origin": keyring.OriginImported, "key_id": string(k.ID), "versions": fmt.Sprintf("%d to %d", versions[0].Number, versions[len(versions)-1].Number)}
	if k.Len() == 0 {
		return r.begin(ctx, k, versions, last, detail)
	}
	return r.s.update(ctx, r.permit, k.ID, detail, func(now keyring.Key) (keyring.Key, change, error) {
		if now.Epoch != k.Epoch || now.Name != k.Name {
			return now, change{}, fault.New(fault.Conflict, "key "+k.Name)
		}
		next, w, err := r.next(ctx, now, versions)
		if err != nil || !last {
			return next, w, err
		}
		next = next.Undelete(r.name)
		from, err := r.s.guard.Get(ctx, namePath(now.Namespace, now.Name))
		if err != nil {
			return now, change{}, err
		}
		w = w.and(change{conds: []guard.Cond{{Path: from.Path, Rev: from.Rev}}, writes: []guard.Write{{Path: from.Path, Delete: true}}})
		named, err := r.take(ctx, next)
		return next, w.and(named), err
	})
}

// begin makes the key's record, with the first versions.
func (r arrival) begin(ctx context.Context, k keyring.Key, versions []transit.BackupVersion, last bool, detail map[string]string) (keyring.Key, error) {
	next, w, err := r.next(ctx, k, versions)
	if err != nil {
		return k, err
	}
	if last {
		next = next.Undelete(r.name)
	}
	named, err := r.take(ctx, next)
	if err != nil {
		return k, err
	}
	records, err := r.s.records(next)
	if err != nil {
		return k, err
	}
	w = w.and(named).and(change{conds: []guard.Cond{{Path: keyPath(next)}}})
	rev, err := r.s.settle(ctx, records)(r.permit.Commit(ctx, w.conds, append(records, w.writes...), detail))
	if fault.CodeOf(err) == fault.Conflict {
		err = r.s.placeable(ctx, Ref{next.Namespace, next.Name}, r.force)
		return k, cmp.Or(err, error(fault.New(fault.Conflict, "key "+next.Name)))
	}
	if err != nil {
		return k, err
	}
	return next, r.s.await(ctx, rev)
}

// take gives the key its name. One that has it already is deleted in the same commit, if it gives way.
func (r arrival) take(ctx context.Context, k keyring.Key) (change, error) {
	path := namePath(k.Namespace, k.Name)
	own := guard.Write{Path: path, Value: []byte(k.ID)}
	rec, err := r.s.guard.Get(ctx, path)
	if fault.CodeOf(err) == fault.NotFound {
		return change{conds: []guard.Cond{{Path: path}}, writes: []guard.Write{own}}, nil
	}
	if err != nil {
		return change{}, err
	}
	old, rev, err := r.s.read(ctx, keyring.KeyID(rec.Value))
	if err != nil {
		return change{}, err
	}
	if err := givesWay(old, r.force); err != nil {
		return change{}, err
	}
	gone := old.Delete(r.s.now().UTC())
	records, err := r.s.records(gone)
	if err != nil {
		return change{}, err
	}
	away := namePath(gone.Namespace, gone.Name)
	return change{
		conds:  []guard.Cond{{Path: path, Rev: rec.Rev}, {Path: keyPath(old), Rev: rev}, {Path: away}},
		writes: append(records, own, guard.Write{Path: away, Value: []byte(old.ID)}),
	}, nil
}

// next is the key with versions of the backup. None of them protects again but the latest, as nobody knows what took their place since.
func (r arrival) next(ctx context.Context, k keyring.Key, versions []transit.BackupVersion) (next keyring.Key, w change, err error) {
	s := r.s
	next = k.Clone()
	next.Epoch = next.Epoch.Next()
	next.Transit.DeletedAt = next.Epoch
	now := s.now().UTC()
	for _, from := range versions {
		v := keyring.Version{
			Number: from.Number, Algorithm: k.Algorithm, Origin: keyring.OriginImported, Originated: from.Created, Created: now, Published: now, Activated: now,
			Public: from.Public, Chain: from.Chain, Distributed: next.Epoch, Promoted: next.Epoch,
			State: keyring.Deactivated, Phase: keyring.PhaseDecryptOnly, Demoted: now, Deactivated: now,
		}
		if from.Number == r.backup.Latest {
			v.State, v.Phase, v.Demoted, v.Deactivated = keyring.Active, keyring.PhasePrimary, time.Time{}, time.Time{}
		}
		if from.Convergent != k.Transit.Convergent {
			v.Convergent = from.Convergent
		}
		v, handle, err := s.newHandle(ctx, next, v)
		if err != nil {
			return k, w, err
		}
		made, err := s.place(ctx, k, v, from.Bundle)
		if err != nil {
			return k, w, err
		}
		w, next = w.and(made).and(handle), next.Append(v)
	}
	return next, w, nil
}
