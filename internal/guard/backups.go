package guard

import (
	"context"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/suite"
)

// This file is what a backup needs of the root keys: the data key of its file is wrapped under the root, and its header carries the root
// record. So the sealers of the cluster open it, and when they have forgotten the generation nothing does.

// Bounds of how long a backup may be kept.
const (
	MinKeep = time.Minute
	MaxKeep = 10 * 365 * 24 * time.Hour
)

// Backup is a backup that was made, as the store records it.
type Backup struct {
	ID         string    `json:"id"`
	Created    time.Time `json:"created"`
	Expires    time.Time `json:"expires"`    // until then it may be needed, and a shred waits
	Generation uint64    `json:"generation"` // the oldest of the root that it needs
	By         string    `json:"by"`
	Key        string    `json:"key,omitempty"`    // namespace/name of the one key that it is of; empty: of the store
	SHA256     string    `json:"sha256,omitempty"` // of a key's backup
}

// Snapshot is a store at one revision, as a backup takes it.
type Snapshot struct {
	Backup  Backup
	Root    []byte           // the root record
	Wrapper envelope.Wrapper // wraps the data key of the backup's file
	Rev     store.Rev
	Records iter.Seq2[store.Record, error] // sealed, all of them
}

// NewBackup records a backup and, before it gives anything out, that it left. fault.Invalid for a time out of bounds.
func (g *Guard) NewBackup(ctx context.Context, p *Permit, keep time.Duration) (Snapshot, error) {
	b, err := g.newBackup(p, keep)
	if err != nil {
		return Snapshot{}, err
	}
	r, err := g.recordBackup(ctx, p, &b)
	if err != nil {
		return Snapshot{}, err
	}
	root, err := json.Marshal(r.record)
	if err != nil {
		return Snapshot{}, fmt.Errorf("encode root: %w", err)
	}
	rev, records := g.store.List(ctx, "")
	kept := func(yield func(store.Record, error) bool) {
		for rec, err := range records {
			if err == nil && (strings.HasPrefix(rec.Key, restoredRoom) || strings.HasPrefix(rec.Key, ReplicaPrefix)) {
				continue
			}
			if !yield(rec, err) {
				return
			}
		}
	}
	return Snapshot{Backup: b, Root: root, Wrapper: backupKeys{r.all, r.current.generation}, Rev: rev, Records: kept}, nil
}

// recordBackup records a backup and that it leaves, and returns the root keys that it is under. They are those of the commit: a shred that was done
// before it did not wait for it, and has had the sealers forget what it would be under.
func (g *Guard) recordBackup(ctx context.Context, p *Permit, b *Backup) (*roots, error) {
	for {
		r := g.keys.Load()
		b.Generation = slices.Min(append(r.older(), r.current.generation))
		value, err := json.Marshal(b)
		if err != nil {
			return nil, fmt.Errorf("encode backup: %w", err)
		}
		path := backupPrefix + b.ID
		detail := map[string]string{"backup": b.ID, "expires": b.Expires.Format(time.RFC3339), "generation": number(b.Generation)}
		_, err = p.Commit(ctx, []Cond{{Path: rootPath, Rev: r.rev}, {Path: path}}, []Write{{Path: path, Value: value}}, detail)
		if err == nil {
			return r, p.Release(ctx, detail)
		}
		if fault.CodeOf(err) != fault.Conflict {
			return nil, err
		}
		if moved, merr := g.catchUp(ctx, r); merr != nil || !moved {
			return nil, errors.Join(err, merr)
		}
	}
}

// newBackup is a backup that is kept for so long. fault.Invalid for a time out of bounds.
func (g *Guard) newBackup(p *Permit, keep time.Duration) (Backup, error) {
	if keep < MinKeep || keep > MaxKeep {
		return Backup{}, fault.New(fault.Invalid, "keep").WithHint("between %v and 10 years", MinKeep)
	}
	now := g.now().UTC().Truncate(time.Second)
	return Backup{ID: fmt.Sprintf("%x", secret.Random(8).Reveal()), Created: now, Expires: now.Add(keep), By: p.caller.Name}, nil
}

// ForgetBackup notes that a backup is gone, so that no shred waits for it. fault.NotFound.
func (g *Guard) ForgetBackup(ctx context.Context, c policy.Caller, id string) error {
	p, err := g.Admit(ctx, c, policy.ActBackup, policy.Resource{})
	if err != nil {
		return err
	}
	rec, err := g.Get(ctx, backupPrefix+id)
	if err != nil {
		return err
	}
	_, err = p.Commit(ctx, []Cond{{Path: rec.Path, Rev: rec.Rev}}, []Write{{Path: rec.Path, Delete: true}}, map[string]string{"backup": id, "change": "gone"})
	g.wakeTender()
	return err
}

// Backups lists the backups that the store knows of, by ID.
func (g *Guard) Backups(ctx context.Context) ([]Backup, error) {
	records, _, err := g.List(ctx, backupPrefix)
	if err != nil {
		return nil, err
	}
	var out []Backup
	for _, r := range records {
		var b Backup
		if err := json.Unmarshal(r.Value, &b); err != nil {
			return nil, fault.Wrap(fault.RecordTampered, r.Path, err)
		}
		out = append(out, b)
	}
	return out, nil
}

// ListBackups is Backups for a caller. fault.Denied.
func (g *Guard) ListBackups(ctx context.Context, c policy.Caller) ([]Backup, error) {
	if _, err := g.Admit(ctx, c, policy.ActBackup, policy.Resource{}); err != nil {
		return nil, err
	}
	return g.Backups(ctx)
}

// BackupOpener opens the data keys of backups with the sealers, by the root record in the backup's header. fault.SealWrong when they have
// forgotten it, or never knew.
func BackupOpener(ctx context.Context, sealers []seal.Sealer, root []byte) (u envelope.Unwrapper, cluster string, err error) {
	var rec rootRecord
	if err := json.Unmarshal(root, &rec); err != nil || rec.Root > maxGeneration {
		return nil, "", fault.New(fault.MalformedFile, "backup")
	}
	r, err := rec.unseal(ctx, sealers, nil)
	if err != nil {
		return nil, "", err
	}
	return backupKeys{maps.Clone(r.all), r.current.generation}, rec.Cluster, nil
}

// backupKeys wrap under the current generation and unwrap under any.
type backupKeys struct {
	all     map[uint64]hierarchy
	current uint64
}

const backupKeyID = "rotor/backup"

// WrapDEK implements envelope.Wrapper.
func (k backupKeys) WrapDEK(_ context.Context, dek envelope.Secret, immutable []byte) (envelope.Wrap, error) {
	w := envelope.Wrap{Type: envelope.WrapKMS, KeyID: backupKeyID, Version: uint32(k.current), Algorithm: suite.XAES256GCM, ProtectTime: time.Unix(0, 0).UTC()}
	aead, err := k.aead(k.current)
	if err != nil {
		return w, err
	}
	return envelope.SealDEK(aead, w, immutable, dek)
}

// UnwrapDEK implements envelope.Unwrapper.
func (k backupKeys) UnwrapDEK(_ context.Context, w envelope.Wrap, immutable []byte) (envelope.Secret, error) {
	if w.KeyID != backupKeyID {
		return envelope.Secret{}, fault.New(fault.NotFound, "key "+w.KeyID)
	}
	aead, err := k.aead(uint64(w.Version))
	if err != nil {
		return envelope.Secret{}, err
	}
	return envelope.OpenDEK(aead, w, immutable)
}

func (k backupKeys) aead(generation uint64) (cipher.AEAD, error) {
	h, ok := k.all[generation]
	if !ok {
		return nil, fault.New(fault.SealWrong, "root generation "+number(generation))
	}
	return h.aead("rotor/backup/1")
}

// aead is a key of the root's for one use.
func (h hierarchy) aead(use string) (cipher.AEAD, error) {
	b, err := hkdf.Key(sha256.New, h.root.Reveal(), []byte(h.cluster), use, suite.XAESKeySize)
	if err != nil {
		return nil, fmt.Errorf("derive key for %s: %w", use, err)
	}
	key := secret.Take(b)
	defer key.Destroy()
	return suite.NewXAES(key)
}
