package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/rpc"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

func newAudit(a *app) *cobra.Command {
	return newNoun("audit", "Read the audit log and verify it offline", newAuditTail(a), newAuditExport(a), newAuditVerify(a), newAuditCertificate(a))
}

func newAuditTail(a *app) *cobra.Command {
	var (
		from   uint64
		follow bool
	)
	c := &cobra.Command{
		Use:   "tail",
		Short: "Print the entries of the audit log",
		Long:  `Print the entries of the audit log, with --follow also those to come. -o json prints each entry as it is in the log, one a line.`,
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := a.connect()
			if err != nil {
				return err
			}
			defer s.close()
			stream, err := s.audit.Tail(c.Context(), request(&rotorv1.TailRequest{From: from, Follow: follow}))
			if err != nil {
				return rpc.Decode(err)
			}
			for stream.Receive() {
				if err := a.printEntry(stream.Msg()); err != nil {
					return errors.Join(err, stream.Close())
				}
			}
			if follow && c.Context().Err() != nil {
				return nil // the caller has seen enough
			}
			return endOf(stream)
		},
	}
	c.Flags().Uint64Var(&from, "from", 0, "index of the first entry")
	c.Flags().BoolVar(&follow, "follow", false, "wait for more until interrupted")
	return c
}

func endOf[T any](stream *connect.ServerStreamForClient[T]) error {
	return rpc.Decode(errors.Join(stream.Err(), stream.Close()))
}

func (a *app) printEntry(m *rotorv1.TailEntry) error {
	if a.format == "json" {
		_, err := fmt.Fprintf(a.out, "%s\n", m.GetEntry())
		return err
	}
	e, err := audit.Decode(m.GetEntry())
	if err != nil {
		return fault.Wrap(fault.AuditBroken, "entry "+number(m.GetIndex()), err)
	}
	if a.format == "yaml" {
		if _, err := fmt.Fprintln(a.out, "---"); err != nil {
			return err
		}
		return a.show(e)
	}
	var t table
	t.add(number(m.GetIndex()), e.Time.UTC().Format(time.RFC3339), number(int(e.Class)), e.Outcome, e.Action, or(e.Key, "-"), e.Caller, labelText(e.Detail))
	return printLines(a.out, []table{t}) // in a stream no column is known to be wide enough
}

func newAuditExport(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "export DIR",
		Short: "Write the whole audit log into a new directory, to be verified offline",
		Long: `Write the whole audit log into a new directory in the layout of C2SP tlog-tiles, to be kept elsewhere and verified with rotor audit
verify. The directory appears whole or not at all.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			s, err := a.connect()
			if err != nil {
				return err
			}
			defer s.close()
			files, err := exportLog(c.Context(), s, args[0])
			if err != nil {
				return err
			}
			return a.show(map[string]any{"directory": args[0], "files": files}, table{rows: [][]string{{"directory", args[0]}, {"files", number(files)}}})
		},
	}
}

// exportLog writes the log beside its place and moves it there when it is whole.
func exportLog(ctx context.Context, s *api, dir string) (files int, err error) {
	if exists(dir) {
		return 0, fault.New(fault.Exists, dir).WithHint("name a directory that is not there yet")
	}
	tmp, err := os.MkdirTemp(filepath.Dir(filepath.Clean(dir)), ".rotor-audit-*")
	if err != nil {
		return 0, fmt.Errorf("make %s: %w", dir, err)
	}
	defer func() { _ = os.RemoveAll(tmp) }() // gone already after the rename
	root, err := os.OpenRoot(tmp)
	if err != nil {
		return 0, fmt.Errorf("make %s: %w", dir, err)
	}
	stream, err := s.audit.Export(ctx, request(&rotorv1.ExportRequest{}))
	if err != nil {
		return 0, errors.Join(rpc.Decode(err), root.Close())
	}
	var failed error
	for failed == nil && stream.Receive() {
		failed = writeTile(root, stream.Msg())
		files++
	}
	if err := errors.Join(failed, endOf(stream), root.Close()); err != nil {
		return files, err
	}
	return files, os.Rename(tmp, dir)
}

// writeTile writes one file below root, which no path of the server's can leave.
func writeTile(root *os.Root, f *rotorv1.ExportFile) error {
	path := filepath.FromSlash(f.GetPath())
	if err := root.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write %s: %w", f.GetPath(), err)
	}
	if err := root.WriteFile(path, f.GetData(), 0o600); err != nil {
		return fmt.Errorf("write %s: %w", f.GetPath(), err)
	}
	return nil
}

// reportView is what a verification found, as programs see it.
type reportView struct {
	Origin  string           `json:"origin"`
	Size    int64            `json:"size"`
	Root    string           `json:"root"`
	ByClass map[string]int64 `json:"by_class"`
	Refused int64            `json:"refused"`
	Open    int64            `json:"open_windows"`
	Actions map[string]int64 `json:"actions"`
}

func newAuditVerify(a *app) *cobra.Command {
	var (
		key, keyFile string
		after        []string
	)
	c := &cobra.Command{
		Use:   "verify DIR --key KEY",
		Short: "Verify an exported audit log offline with the pinned checkpoint key",
		Long: `Verify an exported audit log offline: the checkpoint's signature, every entry up to the root, each tile, and that the counters of every
record go up by one. The key is the one that rotor server init printed; a key that came with the log proves nothing.

A log that was set back to an earlier day, or started again, is in order in itself. Keep the file checkpoint of an export elsewhere and give
it with --after: the log must begin with the one that it was signed for.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			vkey, err := pinnedKey(key, keyFile)
			if err != nil {
				return err
			}
			if info, err := os.Stat(args[0]); err != nil || !info.IsDir() {
				return fault.Wrap(fault.NotFound, args[0], err).WithHint("name the directory that rotor audit export made")
			}
			if !exists(filepath.Join(args[0], "checkpoint")) && !exists(filepath.Join(args[0], "tile")) { // a wrong path is no sign of tampering
				return fault.New(fault.NotFound, "audit log in "+args[0]).WithHint("name the directory that rotor audit export made")
			}
			earlier, err := checkpoints(after)
			if err != nil {
				return err
			}
			r, err := audit.Verify(os.DirFS(args[0]), vkey, earlier...)
			if err != nil {
				return err
			}
			return a.showReport(r)
		},
	}
	c.Flags().StringVar(&key, "key", "", "the pinned checkpoint key")
	c.Flags().StringVar(&keyFile, "key-file", "", "file that holds the pinned checkpoint key")
	c.Flags().StringArrayVar(&after, "after", nil, "file checkpoint of an earlier export, which this log must continue; may be repeated")
	return c
}

// maxCheckpoint bounds a checkpoint file in bytes: an origin, a size, a root and signatures.
const maxCheckpoint = 1 << 20

// checkpoints reads the checkpoints that the verifier kept.
func checkpoints(paths []string) ([][]byte, error) {
	var out [][]byte
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		b, err := io.ReadAll(io.LimitReader(f, maxCheckpoint))
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		out = append(out, b)
	}
	return out, nil
}

func pinnedKey(key, path string) (string, error) {
	if (key == "") == (path == "") {
		return "", usage("--key", "give the pinned checkpoint key with --key or --key-file")
	}
	if key != "" {
		return key, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }() // only read
	return readSecret(io.Reader(f), path)
}

func (a *app) showReport(r audit.Report) error {
	v := reportView{r.Origin, r.Size, r.Root, map[string]int64{}, r.Refused, r.Open, r.Actions}
	facts := table{rows: [][]string{{"origin", r.Origin}, {"entries", number(r.Size)}, {"root", r.Root}, {"refused", number(r.Refused)}, {"open windows", number(r.Open)}}}
	for _, class := range slices.Sorted(maps.Keys(r.ByClass)) {
		v.ByClass[number(int(class))] = r.ByClass[class]
		facts.add("class "+number(int(class)), number(r.ByClass[class]))
	}
	actions := table{header: []string{"action", "entries"}}
	for _, name := range slices.Sorted(maps.Keys(r.Actions)) {
		actions.add(name, number(r.Actions[name]))
	}
	return a.show(v, facts, actions)
}
