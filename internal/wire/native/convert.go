package native

import (
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/suite"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// shownVersions is how many versions one message tells of: those of ML-DSA-87, with their public halves, take 1.4 MB of its 4 MiB.
const shownVersions = 500

// keyMessage tells of a key, with its newest versions.
func keyMessage(k keyring.Key) *rotorv1.Key {
	r := k.Rotation.Defaults()
	m := &rotorv1.Key{
		Id: string(k.ID), Namespace: string(k.Namespace), Name: k.Name, Purpose: string(k.Purpose), Custody: string(k.Custody),
		Algorithm: string(k.Algorithm), Labels: k.Labels, Owner: k.Owner, OriginatorNs: int64(k.Periods.Originator),
		RecipientNs: int64(k.Periods.Recipient), Epoch: k.Epoch.Counter, Incarnation: k.Epoch.Incarnation, Primary: k.Primary,
		Target: k.Target, Created: stamp(k.Created), Exportable: k.Exportable, Next: k.NextNumber(), BackedUp: stamp(k.BackedUp), Transit: transitMessage(k),
		Schedule: scheduleMessage(k.Schedule), VersionCount: uint32(k.Len()), // #nosec G115 -- bounded by kms
		Rotation: &rotorv1.Rotation{
			Silence: string(r.Silence), MaxStaleNs: int64(r.MaxStale), MaxWaitNs: int64(r.MaxWait), WindowNs: int64(r.Window),
			DestroyWaitNs: int64(r.Wait), MarginNs: int64(r.Margin), DestroyApprovals: uint32(r.Approvals),
		},
	}
	for v := range k.From(k.Newest(shownVersions)) {
		m.Versions = append(m.Versions, versionMessage(v))
	}
	return m
}

func versionMessage(v keyring.Version) *rotorv1.Version {
	return &rotorv1.Version{
		Number: v.Number, Handle: v.Handle, Algorithm: string(v.Algorithm), State: string(v.State), Phase: string(v.Phase),
		Public: v.Public, Created: stamp(v.Created), Activated: stamp(v.Activated), Retired: stamp(v.Retired), Reason: v.Reason,
		Approvals: uint32(len(v.Approved)), Origin: v.Origin, Originated: stamp(v.Originated), Attempts: v.Attempts,
	}
}

// schedule reads when a key rotates by itself. What is out of bounds is left to its validation. fault.Invalid for a window that cannot be read.
func schedule(m *rotorv1.Schedule) (keyring.Schedule, error) {
	s := keyring.Schedule{Every: time.Duration(m.GetEveryNs()), Jitter: int(min(m.GetJitterPercent(), 100)), MaxUses: m.GetMaxUses()}
	for _, text := range m.GetWindows()[:min(len(m.GetWindows()), keyring.MaxWindows+1)] {
		w, err := keyring.ParseWindow(text)
		if err != nil {
			return s, err
		}
		s.Windows = append(s.Windows, w)
	}
	return s, nil
}

func scheduleMessage(s keyring.Schedule) *rotorv1.Schedule {
	if s.IsZero() {
		return nil
	}
	m := &rotorv1.Schedule{EveryNs: int64(s.Every), JitterPercent: uint32(s.Jitter), MaxUses: s.MaxUses}
	for _, w := range s.Windows {
		m.Windows = append(m.Windows, w.String())
	}
	return m
}

func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func duration(ns int64) time.Duration { return time.Duration(ns) }

func parts(in []*rotorv1.Part) []envelope.Part {
	var out []envelope.Part
	for _, p := range in {
		out = append(out, envelope.Part{Label: p.GetLabel(), Value: p.GetValue()})
	}
	return out
}

func wrapMessage(w envelope.Wrap) *rotorv1.FileWrap {
	return &rotorv1.FileWrap{
		Type: uint32(w.Type), KeyId: w.KeyID, Version: w.Version, Algorithm: string(w.Algorithm), ProtectTimeUnix: w.ProtectTime.Unix(), Blob: w.Blob,
	}
}

func wrapOf(m *rotorv1.FileWrap) envelope.Wrap {
	return envelope.Wrap{
		Type: envelope.WrapType(m.GetType()), KeyID: m.GetKeyId(), Version: m.GetVersion(), Algorithm: suite.Algorithm(m.GetAlgorithm()),
		ProtectTime: time.Unix(m.GetProtectTimeUnix(), 0).UTC(), Blob: m.GetBlob(),
	}
}
