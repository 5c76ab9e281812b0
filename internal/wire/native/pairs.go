package native

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/suite"
	"github.com/rotorkms/rotor/internal/wire"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// Encapsulate makes a shared secret for the holder of a key's private half.
func (s keys) Encapsulate(ctx context.Context, r *connect.Request[rotorv1.EncapsulateRequest]) (*connect.Response[rotorv1.EncapsulateResponse], error) {
	shared, ct, n, err := s.KMS.Encapsulate(ctx, wire.Caller(ctx), s.ref(r.Msg.GetKey()))
	return answer(&rotorv1.EncapsulateResponse{SharedSecret: shared.Reveal(), Ciphertext: ct, Version: n}, err)
}

// Decapsulate releases the shared secret of an encapsulation.
func (s keys) Decapsulate(ctx context.Context, r *connect.Request[rotorv1.DecapsulateRequest]) (*connect.Response[rotorv1.DecapsulateResponse], error) {
	m := r.Msg
	shared, err := s.KMS.Decapsulate(ctx, wire.Caller(ctx), s.ref(m.GetKey()), m.GetVersion(), m.GetCiphertext())
	return answer(&rotorv1.DecapsulateResponse{SharedSecret: shared.Reveal()}, err)
}

// PrepareImport makes a wrapping key.
func (s keys) PrepareImport(ctx context.Context, r *connect.Request[rotorv1.PrepareImportRequest]) (*connect.Response[rotorv1.PrepareImportResponse], error) {
	w, err := s.KMS.PrepareImport(ctx, wire.Caller(ctx), s.ref(r.Msg.GetKey()), suite.Transport(r.Msg.GetTransport()))
	return answer(&rotorv1.PrepareImportResponse{Id: w.ID, Transport: string(w.Transport), Public: w.Public, Expires: stamp(w.Expires)}, err)
}

// Import takes material from outside as a new key or as the next version of one.
func (s keys) Import(ctx context.Context, r *connect.Request[rotorv1.ImportRequest]) (*connect.Response[rotorv1.Key], error) {
	m := r.Msg
	in := kms.Imported{WrappingKey: clip(m.GetWrappingKey()), Blob: m.GetSealed(), Originated: moment(m.GetOriginated())}
	if m.GetNextVersion() {
		ref := kms.Ref{Namespace: s.namespace(m.GetKey().GetNamespace()), Name: clip(m.GetKey().GetName())}
		k, err := s.KMS.ImportVersion(ctx, wire.Caller(ctx), ref, in)
		return answer(keyMessage(k), err)
	}
	spec := keySpec(m.GetKey())
	spec.Namespace = s.namespace(m.GetKey().GetNamespace())
	k, err := s.KMS.Import(ctx, wire.Caller(ctx), spec, in)
	return answer(keyMessage(k), err)
}

// Export releases the material of a version sealed to a recipient.
func (s keys) Export(ctx context.Context, r *connect.Request[rotorv1.ExportKeyRequest]) (*connect.Response[rotorv1.ExportKeyResponse], error) {
	m := r.Msg
	blob, err := s.KMS.Export(ctx, wire.Caller(ctx), s.ref(m.GetKey()), m.GetVersion(), suite.Transport(m.GetTransport()), m.GetRecipient())
	return answer(&rotorv1.ExportKeyResponse{Sealed: blob}, err)
}

// Backup seals a key with all its versions, for this cluster or another one.
func (s keys) Backup(ctx context.Context, r *connect.Request[rotorv1.BackupKeyRequest]) (*connect.Response[rotorv1.BackupKeyResponse], error) {
	m := r.Msg
	to := kms.BackupFor{Keep: duration(m.GetKeepNs()), WrappingKey: clip(m.GetWrappingKey()), Transport: suite.Transport(m.GetTransport()), Recipient: m.GetRecipient()}
	b, err := s.KMS.Backup(ctx, wire.Caller(ctx), s.ref(m.GetKey()), to)
	return answer(&rotorv1.BackupKeyResponse{Backup: b.Blob, Id: b.ID, Expires: stamp(b.Expires), Versions: b.Versions}, err)
}

// Restore brings back what is missing of a key.
func (s keys) Restore(ctx context.Context, r *connect.Request[rotorv1.RestoreKeyRequest]) (*connect.Response[rotorv1.RestoreKeyResponse], error) {
	m := r.Msg
	in := kms.Restore{Namespace: s.namespace(m.GetNamespace()), Blob: m.GetBackup(), Name: clip(m.GetName()), Foreign: m.GetForeign()}
	out, err := s.KMS.Restore(ctx, wire.Caller(ctx), in)
	return answer(&rotorv1.RestoreKeyResponse{Key: keyMessage(out.Key), Restored: out.Versions, Destroyed: out.Destroyed}, err)
}

// moment reads a time; none is the zero time.
func moment(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}
