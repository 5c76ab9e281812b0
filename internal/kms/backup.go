package kms

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keybackup"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/replica"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

// BackupFor says who shall open the backup of a key: this cluster within the time Keep, or, if Recipient is set, another one.
type BackupFor struct {
	Keep time.Duration

	WrappingKey string // ID; of PrepareImport at the other cluster, for the name that the key shall have there
	Transport   suite.Transport
	Recipient   []byte // the public half
}

// KeyBackup is the backup of a key.
type KeyBackup struct {
	ID       string
	Blob     []byte
	Expires  time.Time // zero: it is for another cluster, and this one has no say in it
	Versions []uint32  // whose material is in it
}

// Backup seals a key with all its versions and settings, also those that are retired, suspended and compromised. It is a release: its entry is
// durable before the answer. A backup for another cluster is an export besides. fault.NotExportable, Invalid, TooLarge.
func (s *Service) Backup(ctx context.Context, c policy.Caller, ref Ref, to BackupFor) (KeyBackup, error) {
	k, p, err := s.admit(ctx, c, policy.ActKeyBackup, ref)
	if err != nil {
		return KeyBackup{}, err
	}
	if err := s.mayLeave(ctx, c, k, to); err != nil {
		return KeyBackup{}, err
	}
	if err := s.agreed(replica.FormatBackups, "backup of a key"); err != nil {
		return KeyBackup{}, err
	}
	content, err := s.content(ctx, k.ID)
	if err != nil {
		return KeyBackup{}, err
	}
	defer content.Destroy()
	b, err := s.guard.NewKeyBackup(p, to.keep())
	if err != nil {
		return KeyBackup{}, err
	}
	k = content.Key
	f := keybackup.Facts{
		ID: b.ID, Cluster: s.guard.ClusterID(), Incarnation: s.guard.Incarnation(), Namespace: k.Namespace, Key: k.ID, Name: k.Name, Labels: k.Labels,
		Created: b.Created,
	}
	detail := map[string]string{"backup": b.ID, "epoch": fmt.Sprint(k.Epoch.Counter), "versions": listed(numbers(content))}
	out := KeyBackup{ID: b.ID, Versions: numbers(content)}
	if to.Recipient != nil {
		out.Blob, err = s.sealAbroad(f, content, to, detail)
	} else {
		f.Expires, f.Generation, f.Root = b.Expires, b.Generation, b.Root
		out.Expires = b.Expires
		detail["expires"], detail["generation"] = b.Expires.Format(time.RFC3339), fmt.Sprint(b.Generation)
		out.Blob, err = keybackup.Seal(f, content, b.Wrap)
	}
	if err != nil {
		return KeyBackup{}, err
	}
	return out, s.release(ctx, p, k.ID, b, out, detail)
}

func (f BackupFor) keep() time.Duration {
	if f.Recipient != nil {
		return guard.MinKeep // its end is not this cluster's business; it is not put on record
	}
	return f.Keep
}

// portable refuses a custody whose material is nothing that a backup could hold. Custodies are named: one that is not does not leave.
func portable(k keyring.Key) error {
	if k.Custody == keyring.CustodyServer || k.Custody == keyring.CustodyFleet {
		return nil
	}
	return fault.New(fault.NotExportable, "key "+k.Name).WithHint("its material is in custody %s and never leaves it", k.Custody)
}

// mayLeave refuses what the key or the way forbids.
func (s *Service) mayLeave(ctx context.Context, c policy.Caller, k keyring.Key, to BackupFor) error {
	if err := portable(k); err != nil {
		return err
	}
	if to.Recipient == nil {
		return nil
	}
	if _, err := s.guard.Admit(ctx, c, policy.ActExport, Resource(k)); err != nil {
		return err
	}
	if !k.Exportable {
		return fault.New(fault.NotExportable, "key "+k.Name)
	}
	return s.suites.AllowsTransport(to.Transport)
}

func (s *Service) sealAbroad(f keybackup.Facts, content keybackup.Content, to BackupFor, detail map[string]string) ([]byte, error) {
	f.WrappingKey, f.Transport = to.WrappingKey, to.Transport
	sum := sha256.Sum256(to.Recipient)
	detail["transport"], detail["recipient_sha256"] = string(to.Transport), hex.EncodeToString(sum[:])
	return keybackup.Seal(f, content, func(dek secret.Bytes, _ []byte) ([]byte, error) {
		return suite.SealKey(to.Transport, to.Recipient, backupLabel(f.WrappingKey), dek)
	})
}

// backupLabel keeps the data key of a backup from passing for the material of an import.
func backupLabel(wrappingKey string) string { return "backup/" + wrappingKey }

// release puts a backup on record, and in the log that it left.
func (s *Service) release(ctx context.Context, p *guard.Permit, id keyring.KeyID, b *guard.KeyBackup, out KeyBackup, detail map[string]string) error {
	var with change
	if !out.Expires.IsZero() {
		cond, write, err := b.Record(out.Blob)
		if err != nil {
			return err
		}
		with = change{conds: []guard.Cond{cond}, writes: []guard.Write{write}}
	}
	_, err := s.update(ctx, p, id, detail, func(k keyring.Key) (keyring.Key, change, error) {
		k = k.Clone()
		k.BackedUp = b.Created
		return k, with, nil
	})
	if err != nil {
		return err
	}
	if !out.Expires.IsZero() {
		if err := s.guard.Current(b); err != nil {
			return err
		}
	}
	return p.Release(ctx, detail)
}

// content reads a key as it is now and all its material, at one moment: a version whose material was withdrawn meanwhile has it read again.
func (s *Service) content(ctx context.Context, id keyring.KeyID) (keybackup.Content, error) {
	for {
		k, rev, err := s.read(ctx, id)
		if err != nil {
			return keybackup.Content{}, err
		}
		c := keybackup.Content{Key: k, Materials: map[uint32]secret.Bytes{}}
		for v := range k.All() {
			if !k.KeepsMaterial(v) {
				continue
			}
			if c.Materials[v.Number], err = s.unseal(ctx, k, v); err != nil {
				break
			}
		}
		if err == nil {
			return c, nil
		}
		c.Destroy()
		if _, now, rerr := s.read(ctx, id); fault.CodeOf(err) == fault.NotFound && rerr == nil && now != rev {
			continue
		}
		return keybackup.Content{}, err
	}
}

// numbers are the versions whose material is in a backup.
func numbers(c keybackup.Content) []uint32 { return slices.Sorted(maps.Keys(c.Materials)) }

// listed writes numbers for an entry of the log, as far as it takes them.
func listed(numbers []uint32) string {
	const most = 1000
	slices.Sort(numbers)
	list := keyring.Ranges(slices.Values(numbers))
	if len(list) > most {
		return list[:most] + " …"
	}
	return cmp.Or(list, "none")
}
