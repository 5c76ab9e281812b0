package native

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/recovery"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/wire"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// maxLog bounds the audit log that is sent for a recovery, in bytes.
const maxLog = 4 << 30

// recoverer lets in who may recover the store. fault.WrongState when nothing is wrong with it.
func (s roots) recoverer(ctx context.Context) error {
	if _, err := s.Guard.Admit(ctx, wire.Caller(ctx), policy.ActRecover, policy.Resource{}); err != nil {
		return err
	}
	if s.Recovery == nil {
		return fault.New(fault.WrongState, "store").WithHint("nothing is wrong with it")
	}
	return nil
}

// Recover announces a recovery, or does it.
func (s roots) Recover(ctx context.Context, stream *connect.ClientStream[rotorv1.RecoverRequest]) (*connect.Response[rotorv1.Recovery], error) {
	if err := s.recoverer(ctx); err != nil {
		return nil, err
	}
	dir, files, err := s.receiveLog(stream)
	defer func() { _ = os.RemoveAll(dir) }() // it was verified as it was read, and is of no use any more
	if err != nil {
		return nil, err
	}
	var newer recovery.Past
	if files > 0 {
		newer = func() (*guard.Past, error) {
			past := guard.NewPast()
			_, err := audit.Read(os.DirFS(dir), s.Guard.CheckpointKey(), past.Add)
			return past, err
		}
	}
	state, err := s.Recovery.Recover(ctx, wire.Caller(ctx).Name, newer)
	return answer(recoveryMessage(state), err)
}

// receiveLog writes the log that is sent to a directory, which the caller removes.
func (s roots) receiveLog(stream *connect.ClientStream[rotorv1.RecoverRequest]) (dir string, files int, err error) {
	if dir, err = os.MkdirTemp(s.Dir, ".recover-*"); err != nil {
		return "", 0, fmt.Errorf("keep the newer log: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return dir, 0, fmt.Errorf("keep the newer log: %w", err)
	}
	size, promised := 0, false
	for err == nil && stream.Receive() {
		promised = promised || stream.Msg().GetLog()
		f := stream.Msg().GetFile()
		if f == nil {
			continue
		}
		files++
		if size += len(f.GetPath()) + len(f.GetData()); size > maxLog {
			err = fault.New(fault.TooLarge, "audit log").WithHint("recover with the server stopped: rotor server recover --dir")
			break
		}
		err = writeFile(root, f)
	}
	if err == nil && stream.Err() != nil {
		err = fault.Wrap(fault.Canceled, "audit log", stream.Err())
	}
	if err == nil && promised != (files > 0) {
		err = fault.New(fault.Invalid, "audit log").WithHint("what was announced did not come")
	}
	return dir, files, errors.Join(err, root.Close())
}

// writeFile writes a file below root, which no path of the caller's can leave. fault.Invalid.
func writeFile(root *os.Root, f *rotorv1.ExportFile) error {
	if !fs.ValidPath(f.GetPath()) || len(f.GetPath()) > maxPath {
		return fault.New(fault.Invalid, "file of an audit log").WithHint("%q is no path of one", clip(f.GetPath()))
	}
	path := filepath.FromSlash(f.GetPath())
	err := root.MkdirAll(filepath.Dir(path), 0o700)
	if err == nil {
		err = root.WriteFile(path, f.GetData(), 0o600)
	}
	if err != nil {
		return fault.Wrap(fault.Invalid, "file of an audit log", err)
	}
	return nil
}

// maxPath bounds the name of a file of a log, in bytes.
const maxPath = 256

// ApproveRecovery takes a custodian's share. Whoever is known may bring one: the share is what counts.
func (s roots) ApproveRecovery(ctx context.Context, r *connect.Request[rotorv1.ApproveRecoveryRequest]) (*connect.Response[rotorv1.SealProgress], error) {
	share := secret.Copy([]byte(r.Msg.GetShare()))
	if s.Recovery == nil {
		share.Destroy()
		return nil, fault.New(fault.WrongState, "store").WithHint("nothing is wrong with it")
	}
	p, err := s.Recovery.Approve(ctx, wire.Caller(ctx), clip(r.Msg.GetAttempt()), share)
	return answer(progress(p), err)
}

// CancelRecovery takes an announced recovery back.
func (s roots) CancelRecovery(ctx context.Context, _ *connect.Request[rotorv1.CancelRecoveryRequest]) (*connect.Response[rotorv1.Recovery], error) {
	if err := s.recoverer(ctx); err != nil {
		return nil, err
	}
	state, err := s.Recovery.Cancel(ctx)
	return answer(recoveryMessage(state), err)
}

func recoveryMessage(s recovery.State) *rotorv1.Recovery {
	m := &rotorv1.Recovery{Detected: s.Detected, State: s.Name(), NotUntil: stamp(s.NotUntil), Incarnation: s.Incarnation, Keys: uint32(s.Keys)}
	for _, p := range s.Shares {
		m.Shares = append(m.Shares, progress(p))
	}
	return m
}
