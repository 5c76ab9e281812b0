package kms

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/policy"
)

// Certificate makes the certificate of destruction of a version, as of now: whether it is withdrawn or erased. It carries entries of the audit
// log, so it takes the right to read that as well. fault.WrongState when the version is not destroyed, NotFound when the log has no decision of it,
// as of one that a recovery found to be without material.
func (s *Service) Certificate(ctx context.Context, c policy.Caller, ref Ref, n uint32) ([]byte, error) {
	k, err := s.MayAsk(ctx, c, policy.ActShow, ref)
	if err != nil {
		return nil, err
	}
	log, err := s.guard.ReadLog(ctx, c)
	if err != nil {
		return nil, err
	}
	v, err := k.Version(n)
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("key %s, version %d", k.Name, n)
	if k.KeepsMaterial(v) {
		return nil, fault.New(fault.WrongState, name).WithHint("it is not destroyed")
	}
	if err := log.Settled(ctx); err != nil {
		return nil, err
	}
	t := s.guard.TraceOf(string(k.Namespace), string(k.ID), n, materialPath(k, n))
	if t.Destroyed < 0 || t.Deleted < 0 {
		return nil, fault.New(fault.NotFound, "destruction of "+name).WithHint("the audit log has no decision to destroy it")
	}
	all, checkpoint, err := log.Prove(ctx, t.Indexes()...)
	if err != nil {
		return nil, err
	}
	out := audit.DestroyCertificate{Checkpoint: string(checkpoint), Destroyed: all[0]}
	for _, i := range all[1:] {
		switch i.Index {
		case t.Turned:
			out.Turn = &i
		case t.Erased:
			out.Erasure = &i
		default:
			out.Deleted = &i
		}
	}
	if err := out.Say(); err != nil {
		return nil, err
	}
	return json.Marshal(out)
}
