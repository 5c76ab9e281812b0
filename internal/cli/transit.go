package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// transitView is what clients of Vault set on a key, and see of it.
type transitView struct {
	Type            string `json:"type"`
	KeyBytes        uint32 `json:"key_bytes,omitempty"`
	Derived         bool   `json:"derived,omitempty"`
	Convergent      uint32 `json:"convergent,omitempty"` // version of the construction
	MinDecryption   uint32 `json:"min_decryption_version"`
	MinEncryption   uint32 `json:"min_encryption_version"`
	MinAvailable    uint32 `json:"min_available_version"`
	DeletionAllowed bool   `json:"deletion_allowed"`
	Exportable      bool   `json:"exportable"`
	PlaintextBackup bool   `json:"allow_plaintext_backup"`
	Imported        bool   `json:"imported,omitempty"`
	RotationAllowed bool   `json:"rotation_allowed,omitempty"` // of an imported key
	SoftDeleted     string `json:"soft_deleted,omitempty"`
	Deleted         string `json:"deleted,omitempty"`
	Former          string `json:"former,omitempty"` // its name before it was deleted
	BackedUp        string `json:"backed_up,omitempty"`
	Restored        string `json:"restored,omitempty"`
}

func viewTransit(m *rotorv1.Transit) *transitView {
	if m == nil {
		return nil
	}
	return &transitView{
		m.GetType(), m.GetKeyBytes(), m.GetDerived(), m.GetConvergent(), m.GetMinDecryption(), m.GetMinEncryption(), m.GetMinAvailable(), m.GetDeletionAllowed(),
		m.GetExportable(), m.GetPlaintextBackup(), m.GetImported(), m.GetRotationAllowed(), moment(m.GetSoftDeleted()), moment(m.GetDeleted()), m.GetFormer(),
		moment(m.GetBackedUp()), moment(m.GetRestored()),
	}
}

// rows are what key show tells beside what it tells of every key.
func (t *transitView) rows() (rows [][]string) {
	if t == nil {
		return nil
	}
	kind := []string{t.Type}
	for word, is := range map[string]bool{"derived": t.Derived, "imported": t.Imported} {
		if is {
			kind = append(kind, word)
		}
	}
	if t.Convergent > 0 {
		kind = append(kind, "convergent")
	}
	floor := func(n uint32, none string) string {
		if n == 0 {
			return none
		}
		return "version " + number(n)
	}
	rows = [][]string{
		{"type for Vault's clients", strings.Join(kind, ", ")},
		{"they decrypt from", floor(max(t.MinDecryption, t.MinAvailable), "version 1")}, {"they encrypt from", floor(t.MinEncryption, "any active version")},
		{"they may delete it", yesNo(t.DeletionAllowed)}, {"may leave in clear", yesNo(t.Exportable)}, {"backup in clear", yesNo(t.Exportable && t.PlaintextBackup)},
	}
	if t.SoftDeleted != "" {
		rows = append(rows, []string{"put aside", t.SoftDeleted})
	}
	if t.Deleted != "" {
		rows = append(rows, []string{"deleted", fmt.Sprintf("%s, as %s", t.Deleted, t.Former)})
	}
	return rows
}

func newKeyUndelete(a *app) *cobra.Command {
	var as string
	c := &cobra.Command{
		Use:   "undelete NAME",
		Short: "Bring back a key that a client of Vault has deleted",
		Long: `Bring back a key that a client of Vault has deleted. For clients it is gone at once and its name is free; the server keeps it as
MOUNT/NAME.deleted-ID, with every version retired, until all of them are destroyed through "rotor key destroy". NAME is that name: "rotor key list" tells it.
It gets the name that it had, or another one with --as. If its primary version was destroyed meanwhile, it gets a new one.`,
		Example: "  rotor key undelete transit/orders.deleted-3f9c01aa\n  rotor key undelete transit/orders.deleted-3f9c01aa --as transit/orders-of-old",
		Args:    cobra.ExactArgs(1),
		RunE:    func(c *cobra.Command, args []string) error { return a.undelete(c, args[0], as) },
	}
	c.Flags().StringVar(&as, "as", "", "name that it gets (default: the one that it had)")
	return a.changes(c)
}

func (a *app) undelete(c *cobra.Command, name, as string) error {
	api, err := a.connect()
	if err != nil {
		return err
	}
	defer api.close()
	if err := a.confirm(fmt.Sprintf("bring key %s back as %s", name, or(as, "what it was"))); err != nil {
		return err
	}
	k, err := message(api.keys.Undelete(c.Context(), request(&rotorv1.UndeleteRequest{Key: a.ref(name), Name: as})))
	if err != nil {
		return err
	}
	return a.showKey(k)
}
