package guard

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

// This file is what the backup of one key needs of the root keys. Its data key is wrapped under the root; the record of it holds its hash, by
// which it is known again when that generation of the root is over.

const keyBackupUse = "rotor/key-backup/1"

// KeyBackup is the backup of a key that is being made.
type KeyBackup struct {
	Backup
	Root []byte // the root record

	root hierarchy
}

// NewKeyBackup begins the backup of a key, which is kept for so long. fault.Invalid for a time out of bounds.
func (g *Guard) NewKeyBackup(p *Permit, keep time.Duration) (*KeyBackup, error) {
	b, err := g.newBackup(p, keep)
	if err != nil {
		return nil, err
	}
	r := g.keys.Load()
	b.Key, b.Generation = p.resource.Namespace+"/"+p.resource.Key, r.current.generation
	root, err := json.Marshal(r.record)
	if err != nil {
		return nil, fmt.Errorf("encode root: %w", err)
	}
	return &KeyBackup{Backup: b, Root: root, root: r.current}, nil
}

// Wrap seals a data key under the root.
func (b *KeyBackup) Wrap(dek secret.Bytes, bound []byte) ([]byte, error) {
	aead, err := b.root.aead(keyBackupUse)
	if err != nil {
		return nil, err
	}
	return suite.Seal(aead, nil, dek.Reveal(), bound), nil
}

// Record is what puts a finished backup on record, for the commit of who asked for it.
func (b *KeyBackup) Record(blob []byte) (Cond, Write, error) {
	sum := sha256.Sum256(blob)
	b.SHA256 = hex.EncodeToString(sum[:])
	value, err := json.Marshal(b.Backup)
	if err != nil {
		return Cond{}, Write{}, fmt.Errorf("encode backup: %w", err)
	}
	path := backupPrefix + b.ID
	return Cond{Path: path}, Write{Path: path, Value: value}, nil
}

// Current says whether the generation that a backup is under is still the current one. If not, a shred may have been on its way before the backup
// was on record, and it is not to be relied on. fault.Conflict.
func (g *Guard) Current(b *KeyBackup) error {
	if g.keys.Load().current.generation != b.Generation {
		return fault.New(fault.Conflict, "backup "+b.ID).WithHint("the root key was changed meanwhile; make it again")
	}
	return nil
}

// OpenKeyBackup opens the data key of a backup that NewKeyBackup wrapped, and says whether it is proven to be of this cluster: it is under a root
// key that the server has, or on record with its hash. Otherwise the sealers are asked, which open what anybody may have sealed to them.
// fault.SealWrong, DecryptFailed.
func (g *Guard) OpenKeyBackup(ctx context.Context, id string, generation uint64, root, blob, wrapped, bound []byte) (dek secret.Bytes, own bool, err error) {
	r := g.keys.Load()
	h, live := r.all[generation]
	if live {
		if dek, err = h.openDEK(wrapped, bound); err == nil { // the facts are bound, and with them the cluster
			return dek, true, nil
		}
	}
	var rec rootRecord
	if err := json.Unmarshal(root, &rec); err != nil || rec.root() > maxGeneration || rec.root() != generation {
		return dek, false, fault.New(fault.MalformedFile, "key backup")
	}
	if live && rec.Cluster == r.record.Cluster {
		return dek, false, err // the sealers know no other root of that generation
	}
	if own, err = g.onRecord(ctx, id, blob); err != nil {
		return dek, false, err
	}
	opened, err := rec.unseal(ctx, *g.sealers.Load(), nil)
	if err != nil {
		return dek, false, err
	}
	dek, err = opened.current.openDEK(wrapped, bound)
	return dek, own, err
}

func (h hierarchy) openDEK(wrapped, bound []byte) (secret.Bytes, error) {
	aead, err := h.aead(keyBackupUse)
	if err != nil {
		return secret.Bytes{}, err
	}
	dek, err := suite.Open(aead, nil, wrapped, bound)
	if err != nil {
		return secret.Bytes{}, fault.New(fault.DecryptFailed, "key backup")
	}
	return secret.Take(dek), nil
}

// onRecord says whether a backup is on record with its hash.
func (g *Guard) onRecord(ctx context.Context, id string, blob []byte) (bool, error) {
	if len(id) > maxText { // the backup says it, not the record
		return false, nil
	}
	rec, err := g.Get(ctx, backupPrefix+id)
	if fault.CodeOf(err) == fault.NotFound {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var b Backup
	if err := json.Unmarshal(rec.Value, &b); err != nil {
		return false, fault.Wrap(fault.RecordTampered, rec.Path, err)
	}
	sum := sha256.Sum256(blob)
	return b.SHA256 == hex.EncodeToString(sum[:]), nil
}

// Deleted says whether the log knows a path as deleted: what was there does not come back.
func (g *Guard) Deleted(path string) bool {
	w, ok := g.index.latest(path)
	return ok && w.deleted
}
