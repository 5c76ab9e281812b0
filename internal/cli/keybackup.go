package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keybackup"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/suite"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// keyBackupFlags are the flags of key backup.
type keyBackupFlags struct {
	to, recipient, wrapping, transport string
	keep                               time.Duration
}

// keyBackupView is what key backup answers.
type keyBackupView struct {
	ID       string   `json:"id"`
	File     string   `json:"file"`
	Versions []uint32 `json:"versions"` // whose material is in it
	Expires  string   `json:"expires,omitempty"`
}

func newKeyBackup(a *app) *cobra.Command {
	f := keyBackupFlags{keep: 90 * 24 * time.Hour}
	c := &cobra.Command{
		Use:   "backup NAME --to FILE",
		Short: "Back up one key, with all its versions and settings",
		Long: `Write a backup of one key into FILE, which must not be there yet: all versions with their material, and the settings. It is sealed to the cluster's root key: only
this cluster opens it, and no shred forgets that root key before the backup expires (rotor backup list, rotor backup forget). It needs the right key.backup, and the
audit log has it before the file is written.

With --recipient it is sealed to the wrapping key that "rotor key import-params" made at another cluster, for that cluster alone; such a key must be exportable, and its
backup needs the right key.export as well. What has left so is outside of this cluster's reach.`,
		Example: "  rotor key backup records --to records.backup --keep 365d\n  rotor key backup records --to records.backup --recipient wrapping.pem --wrapping-key 7f…",
		Args:    cobra.ExactArgs(1),
		RunE:    func(c *cobra.Command, args []string) error { return a.backupKey(c, args[0], f) },
	}
	c.Flags().StringVar(&f.to, "to", "", "file for the backup")
	c.Flags().Var(duration{&f.keep}, "keep", "how long it may be needed; a shred waits so long")
	c.Flags().StringVar(&f.recipient, "recipient", "", "file with another cluster's wrapping key, PEM or DER")
	c.Flags().StringVar(&f.wrapping, "wrapping-key", "", "with --recipient: its ID")
	c.Flags().StringVar(&f.transport, "transport", string(suite.Transports()[0]), "with --recipient: how it travels; it has to fit the key")
	return a.changes(c)
}

func (a *app) backupKey(c *cobra.Command, name string, f keyBackupFlags) error {
	if f.to == "" {
		return usage("--to", "name the file for the backup")
	}
	if (f.recipient == "") != (f.wrapping == "") {
		return usage("--recipient", "give --recipient with --wrapping-key")
	}
	if exists(f.to) {
		return fault.New(fault.Exists, f.to).WithHint("name a file that is not there yet")
	}
	m := &rotorv1.BackupKeyRequest{Key: a.ref(name), KeepNs: int64(f.keep)}
	plan := "back up key " + name + ", for this cluster to open"
	if f.recipient != "" {
		public, err := readPublic(f.recipient)
		if err != nil {
			return err
		}
		m = &rotorv1.BackupKeyRequest{Key: a.ref(name), WrappingKey: f.wrapping, Transport: f.transport, Recipient: public}
		plan = fmt.Sprintf("release all versions of key %s to the cluster that made %s: it cannot be taken back", name, f.recipient)
	}
	if err := a.confirm(plan); err != nil {
		return err
	}
	s, err := a.connect()
	if err != nil {
		return err
	}
	defer s.close()
	b, err := message(s.keys.Backup(c.Context(), request(m)))
	if err != nil {
		return err
	}
	if err := writeNew(f.to, b.GetBackup()); err != nil {
		return err
	}
	v := keyBackupView{b.GetId(), f.to, b.GetVersions(), moment(b.GetExpires())}
	return a.show(v, table{rows: [][]string{{"backup", v.ID}, {"key", name}, {"versions", numberList(v.Versions)}, {"expires", or(v.Expires, "never")}, {"file", v.File}}})
}

// writeNew writes a file beside its place and moves it there when it is whole and durable.
func writeNew(path string, b []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".rotor-*")
	if err != nil {
		return fmt.Errorf("make %s: %w", path, err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // gone already after the rename
	_, err = tmp.Write(b)
	if serr := tmp.Sync(); err == nil {
		err = serr
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func numberList(all []uint32) string { return or(keyring.Ranges(slices.Values(all)), "-") }

// restoreView is what key restore answers.
type restoreView struct {
	Key       keyView  `json:"key"`
	Restored  []uint32 `json:"restored"`
	Destroyed []uint32 `json:"destroyed"`
}

func newKeyRestore(a *app) *cobra.Command {
	var name string
	var foreign bool
	c := &cobra.Command{
		Use:   "restore FILE",
		Short: "Bring back what the server does not have of a backed-up key",
		Long: `Bring back what the server does not have of the key in FILE, which rotor key backup made: all of it where there is none of its ID, else the versions that a recovery of
the store lost. It changes nothing that is there. A version that was destroyed since stays destroyed, no number and no handle is given again, and what comes back to a
key that is there only processes. It needs the right key.restore, and may be repeated after a failure.

A backup of another cluster, or one by which nothing shows that it is of this one, is refused without --import, which needs the rights key.import and key.create as well.`,
		Example: "  rotor key restore records.backup\n  rotor key restore records.backup --as records-2025\n  rotor key restore records.backup --import",
		Args:    cobra.ExactArgs(1),
		RunE:    func(c *cobra.Command, args []string) error { return a.restoreKey(c, args[0], name, foreign) },
	}
	c.Flags().StringVar(&name, "as", "", "name of the restored key, where its own is taken by another key")
	c.Flags().BoolVar(&foreign, "import", false, "it is of another cluster, and you know where it is from")
	return a.changes(c)
}

func (a *app) restoreKey(c *cobra.Command, path, name string, foreign bool) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read backup: %w", err)
	}
	defer func() { _ = f.Close() }() // only read
	b, err := readAll(f, keybackup.MaxBytes, path)
	if err != nil {
		return err
	}
	facts, err := keybackup.Read(b)
	if err != nil {
		return err
	}
	plan := fmt.Sprintf("restore what is missing of key %s from the backup %s of %s", or(name, facts.Name), facts.ID, facts.Created.Format(time.RFC3339))
	if foreign {
		plan += "; it is taken as you say, and rotor cannot know who else has the material"
	}
	if err := a.confirm(plan); err != nil {
		return err
	}
	s, err := a.connect()
	if err != nil {
		return err
	}
	defer s.close()
	m, err := message(s.keys.Restore(c.Context(), request(&rotorv1.RestoreKeyRequest{Namespace: a.namespace, Backup: b, Name: name, Foreign: foreign})))
	if err != nil {
		return err
	}
	v := restoreView{viewKey(m.GetKey()), m.GetRestored(), m.GetDestroyed()}
	return a.show(v, table{rows: [][]string{
		{"key", v.Key.Name}, {"primary", number(v.Key.Primary)}, {"restored", numberList(v.Restored)}, {"destroyed", numberList(v.Destroyed)},
	}})
}
