package rotor

import (
	"context"
	"time"

	"connectrpc.com/connect"

	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// Backup returns a backup of the key, with all its versions and settings, that the cluster's own root key opens; a shred of older root keys waits for
// so long as it is kept (a minute to ten years). It needs the right key.backup. Codes not_exportable, too_large, denied.
func (k *Key) Backup(ctx context.Context, keep time.Duration) ([]byte, error) {
	out, err := k.client.admin.Keys.Backup(ctx, connect.NewRequest(&rotorv1.BackupKeyRequest{Key: k.ref(), KeepNs: int64(keep)}))
	if err != nil {
		return nil, err
	}
	return out.Msg.GetBackup(), nil
}

// RestoreOptions are what a restore may need beside the backup. The zero value restores under the key's own name.
type RestoreOptions struct {
	Name   string // that the key gets, where its own is taken
	Import bool   // the backup is of another cluster, or nothing shows that it is of this one; it needs the rights to import and create besides
}

// RestoreReport says what a restore brought back.
type RestoreReport struct {
	Key       string   // its name
	Versions  []uint32 // with their material
	Destroyed []uint32 // that came back as destroyed, without
}

// RestoreKey brings back what the server does not have of a backed-up key, and changes nothing that it has. Codes exists (nothing is missing),
// backup_foreign, decrypt_failed, seal_wrong, denied. It may be repeated.
func (c *Client) RestoreKey(ctx context.Context, backup []byte, o RestoreOptions) (RestoreReport, error) {
	m := &rotorv1.RestoreKeyRequest{Namespace: c.Namespace(), Backup: backup, Name: o.Name, Foreign: o.Import}
	out, err := c.admin.Keys.Restore(ctx, connect.NewRequest(m))
	if err != nil {
		return RestoreReport{}, err
	}
	return RestoreReport{out.Msg.GetKey().GetName(), out.Msg.GetRestored(), out.Msg.GetDestroyed()}, nil
}
