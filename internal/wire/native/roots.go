package native

import (
	"bufio"
	"context"
	"errors"
	"net/http"
	"time"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor/internal/backup"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/rpc"
	"github.com/rotorkms/rotor/internal/wire"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// roots is RootService.
type roots struct{ Config }

// MountRecovery adds what a server in recovery mode answers: how the roots and the seal are, to who may ask for the status, and the recovery.
// Everything else is fault.Recovery.
func MountRecovery(mux *http.ServeMux, c Config) {
	o := c.options()
	mux.Handle(rotorv1.NewRootServiceHandler(roots{c}, o...))
	mux.Handle(rotorv1.NewSealServiceHandler(seals{c.Seals}, o...))
	refuse := connect.NewErrorWriter(o...)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		var about string
		if d := c.Guard.Detected(); len(d) > 0 {
			about = d[0].String()
		}
		_ = refuse.Write(w, r, rpc.Encode(fault.New(fault.Recovery, about))) // the client is gone when this fails
	})
}

// Show says how far the root keys are, and what is wrong with the store.
func (s roots) Show(ctx context.Context, _ *connect.Request[rotorv1.ShowRootsRequest]) (*connect.Response[rotorv1.Roots], error) {
	if _, err := s.Guard.Admit(ctx, wire.Caller(ctx), policy.ActStatus, policy.Resource{}); err != nil {
		return nil, err
	}
	m, err := s.show(ctx)
	return answer(m, err)
}

func (s roots) show(ctx context.Context) (*rotorv1.Roots, error) {
	r, err := s.Guard.Roots(ctx)
	if err != nil && len(s.Guard.Detected()) == 0 {
		return nil, err
	}
	m := &rotorv1.Roots{
		Generation: r.Generation, Older: r.Older, Sealers: r.Sealers, Outside: r.Outside, Withdrawn: uint32(r.Withdrawn),
		Erased: stamp(r.Erased), Asked: stamp(r.Asked), Incarnation: s.Guard.Incarnation(),
	}
	if r.Why != nil {
		m.Waiting = r.Why.Error()
		var f *fault.Error
		if errors.As(r.Why, &f) && f.Hint != "" {
			m.Waiting += "; " + f.Hint
		}
	}
	for _, d := range s.Guard.Detected() {
		m.Detected = append(m.Detected, d.String())
	}
	if asked, err := s.Guard.Recovering(ctx); err == nil {
		m.RecoveryNotUntil, m.RecoveryBy = stamp(asked.NotUntil), asked.By
	}
	return m, nil
}

// Turn makes another root key.
func (s roots) Turn(ctx context.Context, r *connect.Request[rotorv1.TurnRootRequest]) (*connect.Response[rotorv1.Roots], error) {
	action := policy.ActRotateRoot
	if r.Msg.GetShred() {
		action = policy.ActShred
	}
	p, err := s.Guard.Admit(ctx, wire.Caller(ctx), action, policy.Resource{})
	if err != nil {
		return nil, err
	}
	if _, err := s.Guard.Turn(ctx, p, r.Msg.GetShred()); err != nil {
		return nil, err
	}
	m, err := s.show(ctx)
	return answer(m, err)
}

// Backup sends a backup of the store as it is now.
func (s roots) Backup(ctx context.Context, r *connect.Request[rotorv1.BackupRequest], stream *connect.ServerStream[rotorv1.BackupChunk]) error {
	p, err := s.Guard.Admit(ctx, wire.Caller(ctx), policy.ActBackup, policy.Resource{})
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(chunks{stream}, 256<<10)
	if _, err := backup.Create(ctx, s.Guard, p, time.Duration(r.Msg.GetKeepNs()), out); err != nil {
		return err
	}
	return out.Flush()
}

// chunks sends what is written.
type chunks struct {
	stream *connect.ServerStream[rotorv1.BackupChunk]
}

// Write implements io.Writer.
func (c chunks) Write(b []byte) (int, error) {
	if err := c.stream.Send(&rotorv1.BackupChunk{Data: b}); err != nil {
		return 0, err
	}
	return len(b), nil
}

// Backups lists the backups on record.
func (s roots) Backups(ctx context.Context, _ *connect.Request[rotorv1.BackupsRequest]) (*connect.Response[rotorv1.BackupsResponse], error) {
	all, err := s.Guard.ListBackups(ctx, wire.Caller(ctx))
	m := &rotorv1.BackupsResponse{}
	for _, b := range all {
		m.Backups = append(m.Backups, backupMessage(b))
	}
	return answer(m, err)
}

func backupMessage(b guard.Backup) *rotorv1.Backup {
	return &rotorv1.Backup{Id: b.ID, Created: stamp(b.Created), Expires: stamp(b.Expires), Generation: b.Generation, By: b.By, Key: b.Key}
}

// ForgetBackup notes that a backup is gone.
func (s roots) ForgetBackup(ctx context.Context, r *connect.Request[rotorv1.ForgetBackupRequest]) (*connect.Response[rotorv1.ForgetBackupResponse], error) {
	return answer(&rotorv1.ForgetBackupResponse{}, s.Guard.ForgetBackup(ctx, wire.Caller(ctx), clip(r.Msg.GetId())))
}
