package native

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
	"github.com/rotorkms/rotor/internal/wire"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// keys is KeyService.
type keys struct{ Config }

// Create makes a key.
func (s keys) Create(ctx context.Context, r *connect.Request[rotorv1.CreateRequest]) (*connect.Response[rotorv1.Key], error) {
	spec := keySpec(r.Msg.GetKey())
	var err error
	if spec.Schedule, err = schedule(r.Msg.GetKey().GetSchedule()); err != nil {
		return nil, err
	}
	spec.Namespace = s.namespace(r.Msg.GetKey().GetNamespace())
	k, err := s.KMS.Create(ctx, wire.Caller(ctx), spec)
	return answer(keyMessage(k), err)
}

// Get shows a key, with its newest versions.
func (s keys) Get(ctx context.Context, r *connect.Request[rotorv1.KeyRef]) (*connect.Response[rotorv1.Key], error) {
	u, err := s.KMS.Usage(ctx, wire.Caller(ctx), s.ref(r.Msg))
	if err != nil {
		return nil, err
	}
	return answer(s.shown(u), nil)
}

// shown is a key with its newest versions, how often they were used, and when it rotates next.
func (s keys) shown(u kms.Usage) *rotorv1.Key {
	m := keyMessage(u.Key)
	m.Due, m.RotationRequired = stamp(u.Next), u.Required
	s.used(u, m.GetVersions())
	return m
}

// changed is a key after a change that was asked for.
func (s keys) changed(k keyring.Key, err error) (*connect.Response[rotorv1.Key], error) {
	if err != nil {
		return nil, err
	}
	return answer(s.shown(s.KMS.UsageOf(k, k.Newest(shownVersions))), nil)
}

// used adds what became of versions, and how often they were used.
func (s keys) used(u kms.Usage, versions []*rotorv1.Version) {
	for _, v := range versions {
		if at, ok := s.KMS.Erased(u.Key, v.GetNumber()); ok {
			v.Erased = stamp(at)
		}
		n := u.Versions[v.GetNumber()]
		v.Protected, v.Processed, v.LastProtected, v.LastProcessed = n.Protected, n.Processed, stamp(n.LastProtected), stamp(n.LastProcessed)
	}
}

// Versions shows versions of a key from a number on, as Get does.
func (s keys) Versions(ctx context.Context, r *connect.Request[rotorv1.VersionsRequest]) (*connect.Response[rotorv1.VersionsResponse], error) {
	u, err := s.KMS.Usage(ctx, wire.Caller(ctx), s.ref(r.Msg.GetKey()))
	if err != nil {
		return nil, err
	}
	out := &rotorv1.VersionsResponse{}
	for v := range u.Key.From(r.Msg.GetFrom()) {
		if len(out.GetVersions()) == shownVersions {
			out.Next = v.Number
			break
		}
		out.Versions = append(out.Versions, versionMessage(v))
	}
	s.used(u, out.GetVersions())
	return answer(out, nil)
}

// maxListed is how much of a message a list of keys fills, in bytes: one more fits, whatever it is.
const maxListed = 2 << 20

// List shows the keys of a namespace by name, as many as a message takes.
func (s keys) List(ctx context.Context, r *connect.Request[rotorv1.ListRequest]) (*connect.Response[rotorv1.ListResponse], error) {
	all, err := s.KMS.List(ctx, wire.Caller(ctx), s.namespace(r.Msg.GetNamespace()))
	out, size := &rotorv1.ListResponse{}, 0
	for _, k := range all {
		if after := r.Msg.GetAfter(); after != "" && k.Name <= after {
			continue
		}
		if size > maxListed {
			out.More = true
			break
		}
		m := keyMessage(k)
		size += proto.Size(m)
		out.Keys = append(out.Keys, m)
	}
	return answer(out, err)
}

// Change suspends, resumes or compromises a version.
func (s keys) Change(ctx context.Context, r *connect.Request[rotorv1.ChangeRequest]) (*connect.Response[rotorv1.Key], error) {
	m := r.Msg
	k, err := s.KMS.Change(ctx, wire.Caller(ctx), s.ref(m.GetKey()), m.GetVersion(), keyring.Event(m.GetEvent()), m.GetReason())
	return s.changed(k, err)
}

// Rotate starts a rotation or aims the key back at an earlier version.
func (s keys) Rotate(ctx context.Context, r *connect.Request[rotorv1.RotateRequest]) (*connect.Response[rotorv1.Key], error) {
	m, c := r.Msg, wire.Caller(ctx)
	if n := m.GetBackTo(); n != 0 {
		k, err := s.KMS.Back(ctx, c, s.ref(m.GetKey()), n, m.GetExpectedEpoch())
		return s.changed(k, err)
	}
	k, err := s.KMS.RotateTo(ctx, c, s.ref(m.GetKey()), m.GetExpectedEpoch(), suite.Algorithm(m.GetAlgorithm()))
	return s.changed(k, err)
}

// SetSchedule says when a key rotates by itself, and how long a new version is shown first.
func (s keys) SetSchedule(ctx context.Context, r *connect.Request[rotorv1.SetScheduleRequest]) (*connect.Response[rotorv1.Key], error) {
	var to kms.Pace
	if r.Msg.MarginNs != nil {
		margin := time.Duration(r.Msg.GetMarginNs())
		to.Margin = &margin
	}
	if r.Msg.GetSchedule() != nil || to.Margin == nil {
		s, err := schedule(r.Msg.GetSchedule())
		if err != nil {
			return nil, err
		}
		to.Schedule = &s
	}
	k, err := s.KMS.SetSchedule(ctx, wire.Caller(ctx), s.ref(r.Msg.GetKey()), to)
	return s.changed(k, err)
}

// Progress says how far a rotation is.
func (s keys) Progress(ctx context.Context, r *connect.Request[rotorv1.KeyRef]) (*connect.Response[rotorv1.ProgressResponse], error) {
	k, err := s.KMS.MayAsk(ctx, wire.Caller(ctx), policy.ActShow, s.ref(r.Msg))
	if err != nil {
		return nil, err
	}
	p := s.Rollout.Progress(ctx, k)
	m := &rotorv1.ProgressResponse{
		Key: keyMessage(p.Key), Step: string(p.Step), Waiting: p.Waiting, Members: uint32(p.Members), Behind: p.Behind, Paused: p.Paused,
		Due: stamp(p.Schedule.Next), Retry: stamp(p.Schedule.Retry),
	}
	if err := p.Schedule.Refused; err != nil {
		m.Refused = err.Error()
	}
	return answer(m, nil)
}

// Encrypt makes a message.
func (s keys) Encrypt(ctx context.Context, r *connect.Request[rotorv1.EncryptRequest]) (*connect.Response[rotorv1.EncryptResponse], error) {
	out, n, err := s.KMS.Encrypt(ctx, wire.Caller(ctx), s.ref(r.Msg.GetKey()), r.Msg.GetPlaintext(), parts(r.Msg.GetParts()))
	return answer(&rotorv1.EncryptResponse{Ciphertext: out, Version: n}, err)
}

// Decrypt opens a message.
func (s keys) Decrypt(ctx context.Context, r *connect.Request[rotorv1.DecryptRequest]) (*connect.Response[rotorv1.DecryptResponse], error) {
	if n := r.Msg.GetForeignVersion(); n != 0 {
		out, err := s.KMS.DecryptForeign(ctx, wire.Caller(ctx), s.ref(r.Msg.GetKey()), n, r.Msg.GetCiphertext())
		return answer(&rotorv1.DecryptResponse{Plaintext: out, Version: n}, err)
	}
	if r.Msg.GetAllowCompromised() {
		out, n, is, err := s.KMS.DecryptCompromised(ctx, wire.Caller(ctx), s.ref(r.Msg.GetKey()), r.Msg.GetCiphertext(), parts(r.Msg.GetParts()))
		return answer(&rotorv1.DecryptResponse{Plaintext: out, Version: n, Compromised: is}, err)
	}
	out, n, err := s.KMS.Decrypt(ctx, wire.Caller(ctx), s.ref(r.Msg.GetKey()), r.Msg.GetCiphertext(), parts(r.Msg.GetParts()))
	return answer(&rotorv1.DecryptResponse{Plaintext: out, Version: n}, err)
}

// Wrap wraps the data key of a file.
func (s keys) Wrap(ctx context.Context, r *connect.Request[rotorv1.WrapRequest]) (*connect.Response[rotorv1.WrapResponse], error) {
	w, err := s.KMS.Wrap(ctx, wire.Caller(ctx), s.ref(r.Msg.GetKey()), secret.Take(r.Msg.GetDek()), r.Msg.GetImmutable())
	return answer(&rotorv1.WrapResponse{Wrap: wrapMessage(w)}, err)
}

// Unwrap releases the data key of a file.
func (s keys) Unwrap(ctx context.Context, r *connect.Request[rotorv1.UnwrapRequest]) (*connect.Response[rotorv1.UnwrapResponse], error) {
	if r.Msg.GetAllowCompromised() {
		dek, is, err := s.KMS.UnwrapCompromised(ctx, wire.Caller(ctx), wrapOf(r.Msg.GetWrap()), r.Msg.GetImmutable())
		return answer(&rotorv1.UnwrapResponse{Dek: dek.Reveal(), Compromised: is}, err)
	}
	dek, err := s.KMS.Unwrap(ctx, wire.Caller(ctx), wrapOf(r.Msg.GetWrap()), r.Msg.GetImmutable())
	return answer(&rotorv1.UnwrapResponse{Dek: dek.Reveal()}, err)
}

// Rewrap moves a wrap to its key's primary version.
func (s keys) Rewrap(ctx context.Context, r *connect.Request[rotorv1.RewrapRequest]) (*connect.Response[rotorv1.RewrapResponse], error) {
	w, changed, err := s.KMS.Rewrap(ctx, wire.Caller(ctx), wrapOf(r.Msg.GetWrap()), r.Msg.GetImmutable())
	return answer(&rotorv1.RewrapResponse{Wrap: wrapMessage(w), Changed: changed}, err)
}

// Sign signs a message, or authenticates it with a MAC key.
func (s keys) Sign(ctx context.Context, r *connect.Request[rotorv1.SignRequest]) (*connect.Response[rotorv1.SignResponse], error) {
	sig, n, err := s.KMS.Authenticate(ctx, wire.Caller(ctx), s.ref(r.Msg.GetKey()), r.Msg.GetMessage())
	return answer(&rotorv1.SignResponse{Signature: sig, Version: n}, err)
}

// Verify checks a signature or tag.
func (s keys) Verify(ctx context.Context, r *connect.Request[rotorv1.VerifyRequest]) (*connect.Response[rotorv1.VerifyResponse], error) {
	m := r.Msg
	err := s.KMS.Verify(ctx, wire.Caller(ctx), s.ref(m.GetKey()), m.GetVersion(), m.GetMessage(), m.GetSignature())
	return answer(&rotorv1.VerifyResponse{}, err)
}

// Retire withdraws a version once its census is 0, or brings it back.
func (s keys) Retire(ctx context.Context, r *connect.Request[rotorv1.RetireRequest]) (*connect.Response[rotorv1.Key], error) {
	k, err := s.Campaigns.Retire(ctx, wire.Caller(ctx), s.ref(r.Msg.GetKey()), r.Msg.GetVersion(), r.Msg.GetUndo())
	return s.changed(k, err)
}

// Destroy asks for the destruction of a retired version.
func (s keys) Destroy(ctx context.Context, r *connect.Request[rotorv1.DestroyRequest]) (*connect.Response[rotorv1.DestroyResponse], error) {
	k, done, waiting, err := s.Campaigns.Destroy(ctx, wire.Caller(ctx), s.ref(r.Msg.GetKey()), r.Msg.GetVersion())
	return answer(&rotorv1.DestroyResponse{Key: keyMessage(k), Destroyed: done, Waiting: waiting}, err)
}

func keySpec(m *rotorv1.Key) keyring.Key {
	r := m.GetRotation()
	return keyring.Key{
		Name: clip(m.GetName()), Purpose: suite.Purpose(m.GetPurpose()), Custody: keyring.Custody(m.GetCustody()),
		Algorithm: suite.Algorithm(m.GetAlgorithm()), Labels: m.GetLabels(), Owner: m.GetOwner(), Exportable: m.GetExportable(),
		Periods: keyring.Periods{Originator: time.Duration(m.GetOriginatorNs()), Recipient: time.Duration(m.GetRecipientNs())},
		Rotation: keyring.Rotation{
			Silence: keyring.Silence(r.GetSilence()), MaxStale: time.Duration(r.GetMaxStaleNs()), MaxWait: time.Duration(r.GetMaxWaitNs()),
			Window: time.Duration(r.GetWindowNs()), Wait: time.Duration(r.GetDestroyWaitNs()), Margin: time.Duration(r.GetMarginNs()),
			Approvals: int(r.GetDestroyApprovals()),
		},
	}
}
