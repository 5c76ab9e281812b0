package native

import (
	"context"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/transit"
	"github.com/rotorkms/rotor/internal/wire"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// Undelete brings a key back that a client of Vault has deleted.
func (s keys) Undelete(ctx context.Context, r *connect.Request[rotorv1.UndeleteRequest]) (*connect.Response[rotorv1.Key], error) {
	k, err := s.KMS.TransitUndelete(ctx, wire.Caller(ctx), s.ref(r.Msg.GetKey()), clip(r.Msg.GetName()))
	return s.changed(k, err)
}

func transitMessage(k keyring.Key) *rotorv1.Transit {
	t := k.Transit
	if t == nil {
		return nil
	}
	name, set := transit.Describe(k.Algorithm, t.Spelling)
	if set != "" {
		name += "-" + set
	}
	m := &rotorv1.Transit{
		Type: name, KeyBytes: uint32(t.KeyBytes), Derived: t.Derived, Convergent: uint32(t.Convergent),
		MinDecryption: t.MinDecryption, MinEncryption: t.MinEncryption, MinAvailable: t.MinAvailable,
		DeletionAllowed: t.DeletionAllowed, PlaintextBackup: t.PlaintextBackup, Exportable: t.Exportable, Imported: t.Imported, RotationAllowed: t.RotationAllowed,
		SoftDeleted: stamp(t.SoftDeleted), Deleted: stamp(t.Deleted), Former: t.Former,
	}
	if t.BackedUp != nil {
		m.BackedUp = stamp(t.BackedUp.At)
	}
	if t.Restored != nil {
		m.Restored = stamp(t.Restored.At)
	}
	return m
}
