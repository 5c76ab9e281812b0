package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/fault"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

func newKeyCertificate(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "destroy-certificate NAME VERSION", Short: "Print the evidence that a version was destroyed",
		Long: `Print the evidence that a version was destroyed, as JSON: which, by whose approval, after a census of which data sets, and whether it is withdrawn or erased.
It carries the entries of the audit log that say so and the proofs that they are in it, so that rotor audit certificate verifies it offline. Made again after
a shred, it says erased. It takes the rights show and audit.read.`,
		Example: "  rotor key destroy-certificate records 1 > records-1.json",
		Args:    cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			n, err := parseVersion(args[1])
			if err != nil {
				return err
			}
			s, err := a.connect()
			if err != nil {
				return err
			}
			defer s.close()
			m, err := message(s.audit.DestroyCertificate(c.Context(), request(&rotorv1.DestroyCertificateRequest{Key: &rotorv1.KeyRef{Name: args[0]}, Version: n})))
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.out, "%s\n", m.GetCertificate())
			return err
		},
	}
}

// certificateView is a verified certificate as programs see it.
type certificateView struct {
	Namespace  string   `json:"namespace"`
	Key        string   `json:"key"`
	KeyID      string   `json:"key_id"`
	Version    uint32   `json:"version"`
	Algorithm  string   `json:"algorithm,omitempty"`
	Census     string   `json:"census"`
	DataSets   []string `json:"data_sets"`
	ApprovedBy []string `json:"approved_by"`
	State      string   `json:"state"` // withdrawn, erased
	Withdrawn  string   `json:"withdrawn"`
	Erased     string   `json:"erased,omitempty"`
	Entry      int64    `json:"entry"` // of the decision
	LogSize    int64    `json:"log_size"`
}

func newAuditCertificate(a *app) *cobra.Command {
	var key, keyFile string
	c := &cobra.Command{
		Use: "certificate FILE --key KEY", Short: "Verify a certificate of destruction offline with the pinned checkpoint key",
		Long: `Verify a certificate of destruction offline: that the entries of the audit log in it are in the log whose checkpoint is signed, and that they say what the
certificate does. The key is the one that rotor server init printed. "withdrawn" means that no server and no holder has the version, and copies of the store
may; "erased", that what it was sealed under is forgotten by every root of trust. What left rotor is outside of both.`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			vkey, err := pinnedKey(key, keyFile)
			if err != nil {
				return err
			}
			b, err := readCertificate(args[0])
			if err != nil {
				return err
			}
			m, size, err := audit.VerifyCertificate(b, vkey)
			if err != nil {
				return err
			}
			return a.showCertificate(m, size)
		},
	}
	c.Flags().StringVar(&key, "key", "", "the pinned checkpoint key")
	c.Flags().StringVar(&keyFile, "key-file", "", "file that holds the pinned checkpoint key")
	return c
}

func readCertificate(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fault.Wrap(fault.NotFound, path, err)
	}
	defer func() { _ = f.Close() }() // it was only read
	b, err := io.ReadAll(io.LimitReader(f, audit.MaxCertificate+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return b, nil
}

func (a *app) showCertificate(m audit.DestroyCertificate, size int64) error {
	v := certificateView{
		m.Namespace, m.Key, m.KeyID, m.Version, m.Algorithm, m.Census, m.DataSets, m.ApprovedBy, "withdrawn", m.Withdrawn.Format(time.RFC3339), "",
		m.Destroyed.Index, size,
	}
	if m.Erased != nil {
		v.State, v.Erased = "erased", m.Erased.Format(time.RFC3339)
	}
	t := table{rows: [][]string{
		{"key", v.Namespace + "/" + v.Key}, {"version", number(v.Version)}, {"state", v.State}, {"withdrawn", v.Withdrawn}, {"erased", or(v.Erased, "-")},
		{"census", v.Census}, {"data sets", or(strings.Join(v.DataSets, ", "), "none")}, {"approved by", strings.Join(v.ApprovedBy, ", ")},
		{"entry", number(v.Entry) + " of " + number(v.LogSize)},
	}}
	return a.show(v, t)
}
