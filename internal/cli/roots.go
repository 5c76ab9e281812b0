package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rotorkms/rotor/internal/backup"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/rpc"
	"github.com/rotorkms/rotor/internal/server"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// rootsView is the root keys as programs see them.
type rootsView struct {
	Generation  uint64   `json:"generation"`
	Older       []uint64 `json:"older,omitempty"` // that records may still be under
	Sealers     []string `json:"sealers"`
	Outside     []string `json:"outside,omitempty"` // that were in the wrap set and may still open copies from then
	Withdrawn   uint32   `json:"withdrawn"`         // destroyed materials that are not erased
	Erased      string   `json:"erased,omitempty"`  // the last erasure
	Asked       string   `json:"shred_asked,omitempty"`
	Waiting     string   `json:"waiting,omitempty"`
	Incarnation uint32   `json:"incarnation"`
	Detected    []string `json:"detected,omitempty"`
	Recovery    string   `json:"recovery_not_until,omitempty"`
}

func (a *app) showRoots(m *rotorv1.Roots) error {
	v := rootsView{
		m.GetGeneration(), m.GetOlder(), m.GetSealers(), m.GetOutside(), m.GetWithdrawn(), moment(m.GetErased()), moment(m.GetAsked()), m.GetWaiting(),
		m.GetIncarnation(), m.GetDetected(), moment(m.GetRecoveryNotUntil()),
	}
	t := table{rows: [][]string{
		{"generation", number(v.Generation)}, {"older", or(strings.Trim(fmt.Sprint(v.Older), "[]"), "none")}, {"sealers", strings.Join(v.Sealers, ", ")},
		{"withdrawn", number(v.Withdrawn)}, {"erased", or(v.Erased, "never")}, {"incarnation", number(v.Incarnation)},
	}}
	for _, row := range [][]string{
		{"shred asked", v.Asked}, {"waiting", v.Waiting}, {"outside", strings.Join(v.Outside, ", ")}, {"recovery not until", v.Recovery},
	} {
		if row[1] != "" {
			t.add(row...)
		}
	}
	for _, d := range v.Detected {
		t.add("detected", d)
	}
	return a.show(v, t)
}

func newServerRoots(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "roots", Short: "Say how far the root keys are, what is erased, and what is wrong with the store",
		Long: `Say which generation of the root key is in use, whether records are still under an older one, how many destroyed versions are only withdrawn, and
when something was erased last. A server in recovery mode says here what it has found.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := a.connect()
			if err != nil {
				return err
			}
			defer s.close()
			m, err := message(s.roots.Show(c.Context(), request(&rotorv1.ShowRootsRequest{})))
			if err != nil {
				return err
			}
			return a.showRoots(m)
		},
	}
}

// newServerTurn makes another root key.
func newServerTurn(a *app, shred bool) *cobra.Command {
	var patience time.Duration
	use, short, plan := "rotate-root", "Make another root key and seal everything again under it, while serving",
		"make another root key; every sealer of the wrap set wraps it and opens it again first, then everything that lives is sealed again"
	long := `Make another root key and seal everything again under it, while the server serves. Every sealer of the wrap set has to be there. The command
returns when nothing is left under the old one; given up or cut off, the server goes on by itself.`
	if shred {
		use, short = "shred", "Erase what was destroyed: another root key, and the sealers forget the older ones"
		plan += "; then every sealer forgets the older root keys: copies of the store from before open with nothing any more"
		long = `Make another root key, seal again what lives, and have every sealer forget the older root keys. What was destroyed before is erased then: copies of the
store from before, and backups, open with nothing any more. It waits until the backups on record have expired (rotor backup list). The command
returns when all is done or says what it waits for; the server goes on by itself.`
	}
	c := &cobra.Command{
		Use: use, Short: short, Long: long, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := a.confirm(plan); err != nil {
				return err
			}
			s, err := a.connect()
			if err != nil {
				return err
			}
			defer s.close()
			m, err := message(s.roots.Turn(c.Context(), request(&rotorv1.TurnRootRequest{Shred: shred})))
			if err != nil {
				return err
			}
			if m, err = awaitRoots(c.Context(), s, m, patience); err != nil {
				return err
			}
			return a.showRoots(m)
		},
	}
	c.Flags().Var(duration{&patience}, "wait", "how long to wait until it is done (default 1h)")
	patience = time.Hour
	return a.changes(c)
}

// awaitRoots asks until the turn is done or waits for something.
func awaitRoots(ctx context.Context, s *api, m *rotorv1.Roots, patience time.Duration) (*rotorv1.Roots, error) {
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for len(m.GetOlder()) > 0 || m.GetAsked() != nil && m.GetWaiting() == "" {
		if !pause(limited, pollEvery) {
			return m, nil
		}
		var err error
		if m, err = message(s.roots.Show(ctx, request(&rotorv1.ShowRootsRequest{}))); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func newBackup(a *app) *cobra.Command {
	return newNoun("backup", "Make, verify and restore encrypted backups", newBackupCreate(a), newBackupList(a), newBackupVerify(a), newBackupRestore(a), newBackupForget(a))
}

// backupView is a backup as programs see it.
type backupView struct {
	ID         string `json:"id"`
	Created    string `json:"created"`
	Expires    string `json:"expires"`
	Generation uint64 `json:"generation,omitempty"`
	Records    uint64 `json:"records,omitempty"`
	Bytes      int64  `json:"bytes,omitempty"`
	By         string `json:"by,omitempty"`
	Key        string `json:"key,omitempty"` // namespace/name of the one key that it is of
}

func newBackupCreate(a *app) *cobra.Command {
	keep := 30 * 24 * time.Hour
	var f server.Config
	c := &cobra.Command{
		Use:   "create FILE",
		Short: "Write an encrypted backup of the whole store, while the server serves",
		Long: `Write an encrypted backup of the whole store as it is now, while the server serves. It is sealed to the cluster's root key: the cluster's sealers open
it, so keep the seal's key file, too, and elsewhere. --keep says how long it may be needed; a shred waits for that, and afterwards nothing opens
it any more. With --dir the backup is made of a server that is stopped.`,
		Example: "  rotor backup create rotor-2026-11-24.backup --keep 30d",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.writeBackup(args[0], func(w io.Writer) error {
				if f.Dir != "" {
					f.Log = quiet()
					_, err := server.Backup(c.Context(), f, keep, w)
					return err
				}
				return a.receiveBackup(c.Context(), keep, w)
			})
		},
	}
	c.Flags().Var(duration{&keep}, "keep", "how long it may be needed; a shred waits so long")
	serverFlags(c, &f, "")
	return c
}

// receiveBackup takes a backup from the server.
func (a *app) receiveBackup(ctx context.Context, keep time.Duration, w io.Writer) error {
	s, err := a.connect()
	if err != nil {
		return err
	}
	defer s.close()
	stream, err := s.roots.Backup(ctx, request(&rotorv1.BackupRequest{KeepNs: int64(keep)}))
	if err != nil {
		return rpc.Decode(err)
	}
	for stream.Receive() {
		if _, err := w.Write(stream.Msg().GetData()); err != nil {
			return errors.Join(err, stream.Close())
		}
	}
	return endOf(stream)
}

// writeBackup writes beside the place and moves the file there when it is whole and durable.
func (a *app) writeBackup(path string, write func(io.Writer) error) error {
	if exists(path) {
		return fault.New(fault.Exists, path).WithHint("name a file that is not there yet")
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".rotor-backup-*")
	if err != nil {
		return fmt.Errorf("make %s: %w", path, err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // gone already after the rename
	if err := errors.Join(write(tmp), tmp.Sync()); err != nil {
		return errors.Join(err, tmp.Close())
	}
	front := make([]byte, 2<<20)
	n, err := tmp.ReadAt(front, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return errors.Join(err, tmp.Close())
	}
	size, err := tmp.Seek(0, io.SeekEnd)
	if err := errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	h, err := backup.ReadHeader(front[:n])
	if err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	v := backupView{ID: h.ID, Created: h.Created.Format(time.RFC3339), Expires: h.Expires.Format(time.RFC3339), Bytes: size}
	return a.show(v, table{rows: [][]string{{"backup", v.ID}, {"expires", v.Expires}, {"bytes", number(v.Bytes)}}})
}

func newBackupList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the backups on record", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := a.connect()
			if err != nil {
				return err
			}
			defer s.close()
			m, err := message(s.roots.Backups(c.Context(), request(&rotorv1.BackupsRequest{})))
			if err != nil {
				return err
			}
			views, t := []backupView{}, table{header: []string{"backup", "of", "created", "expires", "generation", "by"}}
			for _, b := range m.GetBackups() {
				v := backupView{ID: b.GetId(), Created: moment(b.GetCreated()), Expires: moment(b.GetExpires()), Generation: b.GetGeneration(), By: b.GetBy(), Key: b.GetKey()}
				views = append(views, v)
				t.add(v.ID, or(v.Key, "the store"), v.Created, v.Expires, number(v.Generation), v.By)
			}
			return a.show(views, t)
		},
	}
}

func newBackupForget(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "forget ID", Short: "Note that a backup is gone, so that no shred waits for it",
		Long: `Note that every copy of a backup is gone, so that no shred waits for it. It deletes nothing: after a shred a copy that is left opens with nothing.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := a.confirm("note that backup " + args[0] + " is gone"); err != nil {
				return err
			}
			s, err := a.connect()
			if err != nil {
				return err
			}
			defer s.close()
			_, err = message(s.roots.ForgetBackup(c.Context(), request(&rotorv1.ForgetBackupRequest{Id: args[0]})))
			return err
		},
	}
	return a.changes(c)
}

func newBackupVerify(a *app) *cobra.Command {
	var f server.Config
	var shareFiles []string
	var load func() error
	c := &cobra.Command{
		Use: "verify FILE", Short: "Check a backup with the server's sealers: its log, its counters, every record",
		Long: `Check a backup: it is opened with the sealers that --dir or --seal-key name, restored into a temporary place in which everything stays sealed, and its
audit log, the counters in it and every record are checked as at the start of a server. Where custodians alone open it, enough of them come (--share-file).`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := load(); err != nil {
				return err
			}
			return a.readBackup(args[0], shareFiles, func(r io.Reader, shares []string) (backup.Report, error) {
				return server.VerifyBackup(c.Context(), f, r, shares...)
			})
		},
	}
	serverFlags(c, &f, "")
	offlineShares(c, &shareFiles)
	load = configFlag(c, &f)
	return c
}

func newBackupRestore(a *app) *cobra.Command {
	var f server.Config
	var shareFiles []string
	var load func() error
	c := &cobra.Command{
		Use: "restore FILE", Short: "Fill the empty store of a stopped server from a backup",
		Long: `Fill the empty store of a stopped server from a backup, on any engine. The server then comes up in recovery mode: rotor server recover, with the newest
audit log that was exported, brings it into use. Where custodians alone open it, enough of them come to the machine (--share-file).`,
		Example: "  rotor backup restore rotor-2026-11-24.backup --dir /var/lib/rotor",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := load(); err != nil {
				return err
			}
			if err := a.confirm("fill the store of " + f.Dir + " from " + args[0]); err != nil {
				return err
			}
			return a.readBackup(args[0], shareFiles, func(r io.Reader, shares []string) (backup.Report, error) {
				return server.RestoreBackup(c.Context(), f, r, shares...)
			})
		},
	}
	serverFlags(c, &f, "")
	offlineShares(c, &shareFiles)
	load = configFlag(c, &f)
	return a.changes(c)
}

func (a *app) readBackup(path string, shareFiles []string, do func(io.Reader, []string) (backup.Report, error)) error {
	shares, err := a.shareTexts(shareFiles)
	if err != nil {
		return err
	}
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }() // it was only read
	r, err := do(in, shares)
	if err = needsShares(err); err != nil {
		return err
	}
	v := backupView{ID: r.ID, Created: r.Created.Format(time.RFC3339), Expires: r.Expires.Format(time.RFC3339), Records: r.Records}
	return a.show(v, table{rows: [][]string{{"backup", v.ID}, {"created", v.Created}, {"records", number(v.Records)}}})
}
