package cli

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/recovery"
	"github.com/rotorkms/rotor/internal/rpc"
	"github.com/rotorkms/rotor/internal/server"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// recoverView is a recovery as programs see it.
type recoverView struct {
	Detected    []string     `json:"detected"`
	State       string       `json:"state"` // announced, approved, canceled, done
	NotUntil    string       `json:"not_until,omitempty"`
	Shares      []sharesView `json:"shares,omitempty"`
	Incarnation uint32       `json:"incarnation,omitempty"`
	Keys        int          `json:"keys,omitempty"`
}

func (a *app) showRecovery(v recoverView) error {
	t := table{rows: [][]string{{"state", v.State}}}
	if v.State == "announced" {
		for _, s := range v.Shares {
			t.add("shares of set "+s.Set, fmt.Sprintf("%d of %d", s.Have, s.Threshold))
		}
		if v.NotUntil != "" {
			t.add("not until", v.NotUntil)
		}
	}
	if v.State == "done" {
		t.add("incarnation", number(v.Incarnation))
		t.add("keys", number(v.Keys))
	}
	for _, d := range v.Detected {
		t.add("detected", d)
	}
	return a.show(v, t)
}

func newServerRecover(a *app) *cobra.Command {
	var f server.Config
	var log string
	var cancel bool
	var shareFiles []string
	var load func() error
	c := &cobra.Command{
		Use:   "recover",
		Short: "Bring a store that is not the one that it was back into use",
		Long: `Bring a store that is not the one that it was back into use: a restored backup, an older copy, a store with records that were changed from outside. The
server is in recovery mode then; it is asked, or, with --dir or --config, must be stopped. The first call announces the recovery, in the log and in rotor
server roots. Custodians approve it with their shares (rotor server approve); where a root of trust opens without people, it may also go on after
the configured recovery_delay. The next call does it; --cancel takes it back before.

It makes the store agree with its log, deletes what a newer log says was deleted (--log, a directory that rotor audit export made; it is verified), and begins
a new incarnation of the cluster: holders refuse what is of an older one. Without a newer log, what was destroyed since the store was copied is there again,
and version numbers jump by 100. Servers in recovery mode serve again by themselves.`,
		Example: "  rotor server recover --log audit-2026-11-24",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			offline := f.Dir != "" || c.Flags().Changed("config")
			if err := load(); err != nil {
				return err
			}
			plan := "recover the store: a new incarnation of the cluster, once it is announced and approved"
			if cancel {
				plan = "take back the announced recovery"
			}
			if err := a.confirm(plan); err != nil {
				return err
			}
			if !offline && len(shareFiles) > 0 {
				return usage("--share-file", "a server that runs takes shares by rotor server approve")
			}
			if offline {
				return a.recoverOffline(c.Context(), f, server.RecoverOptions{By: "operator", Log: log, Cancel: cancel}, shareFiles)
			}
			return a.recoverOnline(c.Context(), log, cancel)
		},
	}
	serverFlags(c, &f, "")
	c.Flags().StringVar(&log, "log", "", "directory of an exported audit log that is newer than the store")
	c.Flags().StringArrayVar(&shareFiles, "share-file", nil, "file that holds a custodian's share, with --dir; may be repeated: enough of them open the store and approve the recovery")
	c.Flags().BoolVar(&cancel, "cancel", false, "take an announced recovery back")
	load = configFlag(c, &f)
	return a.changes(c)
}

func (a *app) recoverOffline(ctx context.Context, f server.Config, o server.RecoverOptions, shareFiles []string) error {
	f.Log = quiet()
	var err error
	if o.Shares, err = a.shareTexts(shareFiles); err != nil {
		return err
	}
	if o.Log != "" {
		if _, err := os.Stat(filepath.Join(o.Log, "checkpoint")); err != nil {
			return fault.Wrap(fault.NotFound, "exported audit log "+o.Log, err).WithHint("name the directory that rotor audit export made")
		}
	}
	s, err := server.Recover(ctx, f, o)
	if err = needsShares(err); err != nil {
		return err
	}
	return a.showRecovery(viewRecovery(s))
}

// offlineShares adds the flag by which custodians open a store or a backup that no server has open.
func offlineShares(c *cobra.Command, files *[]string) {
	c.Flags().StringArrayVar(files, "share-file", nil, "file that holds a custodian's share; may be repeated: enough of them open it")
}

// needsShares says how shares are given to a command that has offlineShares.
func needsShares(err error) error {
	if fault.CodeOf(err) != fault.Sealed {
		return err
	}
	return fault.Wrap(fault.Sealed, "root key", err).WithHint("give the shares of enough custodians, each with --share-file, or make its root of trust reachable")
}

// shareTexts reads the shares of custodians who came to the machine.
func (a *app) shareTexts(files []string) (shares []string, err error) {
	for _, path := range files {
		s, err := a.secretText(path, "share")
		if err != nil {
			return nil, err
		}
		shares = append(shares, s)
	}
	return shares, nil
}

func viewRecovery(s recovery.State) recoverView {
	v := recoverView{Detected: s.Detected, State: s.Name(), Incarnation: s.Incarnation, Keys: s.Keys}
	if !s.NotUntil.IsZero() {
		v.NotUntil = s.NotUntil.UTC().Format(time.RFC3339)
	}
	return v
}

func (a *app) recoverOnline(ctx context.Context, log string, cancel bool) error {
	s, err := a.connect()
	if err != nil {
		return err
	}
	defer s.close()
	var m *rotorv1.Recovery
	if cancel {
		m, err = message(s.roots.CancelRecovery(ctx, request(&rotorv1.CancelRecoveryRequest{})))
	} else {
		m, err = sendRecover(ctx, s, log)
	}
	if err != nil {
		return err
	}
	if m.GetState() == "done" {
		awaitServing(ctx, s)
	}
	v := recoverView{Detected: m.GetDetected(), State: m.GetState(), NotUntil: moment(m.GetNotUntil()), Incarnation: m.GetIncarnation(), Keys: int(m.GetKeys())}
	for _, p := range m.GetShares() {
		v.Shares = append(v.Shares, viewShares(p))
	}
	return a.showRecovery(v)
}

// awaitServing waits until a recovered server serves, for as long as that may take; what it then is it says itself.
func awaitServing(ctx context.Context, s *api) {
	limited, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		_, err := message(s.server.Status(limited, request(&rotorv1.StatusRequest{})))
		if code := fault.CodeOf(err); code != fault.Recovery && code != fault.Unavailable || !pause(limited, pollEvery) {
			return
		}
	}
}

// sendRecover asks for the recovery, with the files of a newer log.
func sendRecover(ctx context.Context, s *api, log string) (*rotorv1.Recovery, error) {
	ctx, cancel := context.WithCancel(ctx) // what was not sent as a whole is not to be taken for a log
	defer cancel()
	files := os.DirFS(log)
	if log != "" {
		if _, err := fs.Stat(files, "checkpoint"); err != nil {
			return nil, fault.Wrap(fault.NotFound, "exported audit log "+log, err)
		}
	}
	stream := s.roots.Recover(ctx)
	if err := stream.Send(&rotorv1.RecoverRequest{Log: log != ""}); err == nil && log != "" {
		if err := sendLog(files, stream); err != nil {
			return nil, err
		}
	}
	r, err := stream.CloseAndReceive()
	if err != nil {
		return nil, rpc.Decode(err)
	}
	return r.Msg, nil
}

// sendLog sends every file of an exported log. That the server takes no more is no error: it has the reason.
func sendLog(log fs.FS, stream *connect.ClientStreamForClient[rotorv1.RecoverRequest, rotorv1.Recovery]) error {
	return fs.WalkDir(log, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(log, path)
		if err != nil {
			return err
		}
		if stream.Send(&rotorv1.RecoverRequest{File: &rotorv1.ExportFile{Path: path, Data: data}}) != nil {
			return fs.SkipAll
		}
		return nil
	})
}

func newServerApprove(a *app) *cobra.Command {
	var file, attempt string
	c := &cobra.Command{
		Use: "approve", Short: "Approve an announced recovery with a custodian's share",
		Long: `Approve an announced recovery with a custodian's share. Look first at what the server has found (rotor server roots), and ask whether the newest audit
log that was exported will be given. The share is read from standard input, from a file, or at a prompt that does not show it. The last one that is needed
approves it; any identity of the cluster will do.`,
		Example: "  rotor server approve --share-file /media/stick/share.txt",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			share, err := a.secretText(file, "share")
			if err != nil {
				return err
			}
			s, err := a.connect()
			if err != nil {
				return err
			}
			defer s.close()
			p, err := message(s.roots.ApproveRecovery(c.Context(), request(&rotorv1.ApproveRecoveryRequest{Share: share, Attempt: attempt})))
			if err != nil {
				return err
			}
			v := viewShares(p)
			return a.show(v, v.table())
		},
	}
	c.Flags().StringVar(&file, "share-file", "", "file that holds the share (default standard input or a prompt)")
	c.Flags().StringVar(&attempt, "attempt", "", "the collection that the share is meant for (default the one that goes on, or a new one)")
	return c
}
