package cli

import (
	"encoding/pem"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// wrappingView is what import-params answers.
type wrappingView struct {
	ID        string `json:"id"`
	Transport string `json:"transport"`
	Public    string `json:"public"` // PEM
	Expires   string `json:"expires"`
}

func newKeyImportParams(a *app) *cobra.Command {
	var transport, out string
	c := &cobra.Command{
		Use:   "import-params NAME --out FILE",
		Short: "Make a wrapping key, to which material for a key can be sealed once",
		Long: `Make a wrapping key for one import of material for the key NAME, within a day. Its public half is written to FILE as PEM. With the transport
RSA-OAEP-256+AES-KWP it is for what cloud services and tokens call CKM_RSA_AES_KEY_WRAP; the HPKE ones seal with the info "rotor/key-transport/1", a zero byte and
the ID (spec/transport.md).`,
		Example: "  rotor key import-params records --transport RSA-OAEP-256+AES-KWP --out wrapping.pem --yes",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if out == "" {
				return usage("--out", "name the file for the public key")
			}
			if err := a.confirm(fmt.Sprintf("make a wrapping key for one import of key %s", args[0])); err != nil {
				return err
			}
			s, err := a.connect()
			if err != nil {
				return err
			}
			defer s.close()
			m, err := message(s.keys.PrepareImport(c.Context(), request(&rotorv1.PrepareImportRequest{Key: a.ref(args[0]), Transport: transport})))
			if err != nil {
				return err
			}
			kind := "PUBLIC KEY"
			if t := m.GetTransport(); t == string(suite.HPKEXWing) || t == string(suite.HPKEMLKEM768P256) {
				kind = pemHPKE
			}
			text := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: m.GetPublic()})
			if err := os.WriteFile(out, text, 0o600); err != nil {
				return fmt.Errorf("write public key: %w", err)
			}
			v := wrappingView{m.GetId(), m.GetTransport(), string(text), moment(m.GetExpires())}
			return a.show(v, table{rows: [][]string{{"id", v.ID}, {"transport", v.Transport}, {"expires", v.Expires}, {"public key", out}}})
		},
	}
	c.Flags().StringVar(&transport, "transport", "", fmt.Sprintf("one of %v (default: the server's)", suite.Transports()))
	c.Flags().StringVar(&out, "out", "", "file for the public key, PEM")
	return a.changes(c)
}

// importFlags are the flags of key import.
type importFlags struct {
	keySpec
	material, sealed, wrapping, originated, transport string
	next                                              bool
}

func newKeyImport(a *app) *cobra.Command {
	var f importFlags
	c := &cobra.Command{
		Use:   "import NAME --purpose PURPOSE --algorithm ALGORITHM (--sealed FILE --wrapping-key ID | --material FILE)",
		Short: "Bring key material of your own",
		Long: `Make a key of material from outside, or stage the material as the next version of a key that exists (--next-version). Either the material was sealed
elsewhere to the wrapping key of import-params (--sealed, --wrapping-key), or it lies in a file here and is sealed by this command (--material). Symmetric material is the
bare bytes, that of a key pair PKCS #8, DER or PEM.`,
		Example: "  rotor key import records --purpose encrypt --algorithm AES-256-GCM --wrapping-key 7f… --sealed sealed.bin --originated 2026-01-31T00:00:00Z\n" +
			"  rotor key import records --next-version --material key.bin --yes",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return a.importKey(c, args[0], f) },
	}
	fl := c.Flags()
	fl.StringVar(&f.purpose, "purpose", "", "what the key is for (rotor key create --help)")
	fl.StringVar(&f.custody, "custody", "", "server or fleet (default server)")
	fl.StringVar(&f.algorithm, "algorithm", "", "algorithm of the material (default: the purpose's)")
	fl.StringVar(&f.owner, "owner", "", "who answers for it (default: the caller)")
	fl.StringArrayVar(&f.labels, "label", nil, "name=value, which rules may select by; may be repeated")
	fl.BoolVar(&f.exportable, "exportable", false, "versions may leave sealed to a recipient, where rules allow it")
	fl.StringVar(&f.material, "material", "", "file with the material in the clear, sealed here before it is sent")
	fl.StringVar(&f.sealed, "sealed", "", "file with the material sealed to the wrapping key")
	fl.StringVar(&f.wrapping, "wrapping-key", "", "ID of the wrapping key")
	fl.StringVar(&f.transport, "transport", "", "with --material: how it travels (default: the server's)")
	fl.StringVar(&f.originated, "originated", "", "since when its originator has used it, RFC 3339; the cryptoperiod counts from then")
	fl.BoolVar(&f.next, "next-version", false, "of a key that exists")
	return a.changes(c)
}

func (a *app) importKey(c *cobra.Command, name string, f importFlags) error {
	if sealed := f.sealed != "" && f.wrapping != ""; (f.material != "") == sealed || f.material != "" && (f.sealed != "" || f.wrapping != "") {
		return usage("--sealed", "give --sealed with --wrapping-key, or --material alone")
	}
	m := &rotorv1.ImportRequest{Key: &rotorv1.Key{Namespace: a.namespace, Name: name}, NextVersion: f.next, WrappingKey: f.wrapping}
	if !f.next {
		spec, err := f.message(a.namespace, name)
		if err != nil {
			return err
		}
		m.Key = spec
	}
	if f.originated != "" {
		t, err := time.Parse(time.RFC3339, f.originated)
		if err != nil {
			return usage("--originated", "it looks like 2026-01-31T00:00:00Z")
		}
		m.Originated = timestamppb.New(t)
	}
	plan := "import key " + name + " with its first version from outside"
	if f.next {
		plan = "import the next version of key " + name
	}
	if err := a.confirm(plan + "; rotor cannot know who else has the material"); err != nil {
		return err
	}
	s, err := a.connect()
	if err != nil {
		return err
	}
	defer s.close()
	if f.material != "" {
		err = a.sealMaterial(c, s, name, f, m)
	} else {
		m.Sealed, err = readFile(f.sealed)
	}
	if err != nil {
		return err
	}
	k, err := message(s.keys.Import(c.Context(), request(m)))
	if err != nil {
		return err
	}
	return a.showKey(k)
}

// sealMaterial seals material that lies here to a fresh wrapping key.
func (a *app) sealMaterial(c *cobra.Command, s *api, name string, f importFlags, m *rotorv1.ImportRequest) error {
	b, err := readFile(f.material)
	if err != nil {
		return err
	}
	if block, _ := pem.Decode(b); block != nil {
		clear(b)
		b = block.Bytes
	}
	material := secret.Take(b)
	defer material.Destroy()
	p, err := message(s.keys.PrepareImport(c.Context(), request(&rotorv1.PrepareImportRequest{Key: a.ref(name), Transport: f.transport})))
	if err != nil {
		return err
	}
	m.WrappingKey = p.GetId()
	m.Sealed, err = suite.SealKey(suite.Transport(p.GetTransport()), p.GetPublic(), p.GetId(), material)
	return err
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	defer func() { _ = f.Close() }() // only read
	return readAll(f, maxSecret, path)
}

func newKeyExport(a *app) *cobra.Command {
	var recipient, transport, out string
	c := &cobra.Command{
		Use:   "export NAME VERSION --recipient PUBLIC --out FILE",
		Short: "Release the material of a version, sealed to a public key",
		Long: `Release the material of a version of a key that was made exportable, sealed to a recipient's public key. It needs the right key.export; the entry in the audit log names the
recipient by the SHA-256 of its key. What has left rotor is outside of its reach: rotation, retirement and destruction do not get it back.`,
		Example: "  rotor key export records 1 --recipient partner.pem --transport RSA-OAEP-256+AES-KWP --out sealed.bin",
		Args:    cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			n, err := parseVersion(args[1])
			if err != nil {
				return err
			}
			if recipient == "" || out == "" {
				return usage("--recipient", "name the file with the recipient's public key, and --out")
			}
			public, err := readPublic(recipient)
			if err != nil {
				return err
			}
			if err := a.confirm(fmt.Sprintf("release version %d of key %s to the holder of %s: it cannot be taken back", n, args[0], recipient)); err != nil {
				return err
			}
			s, err := a.connect()
			if err != nil {
				return err
			}
			defer s.close()
			m, err := message(s.keys.Export(c.Context(), request(&rotorv1.ExportKeyRequest{Key: a.ref(args[0]), Version: n, Transport: transport, Recipient: public})))
			if err != nil {
				return err
			}
			if err := os.WriteFile(out, m.GetSealed(), 0o600); err != nil {
				return fmt.Errorf("write sealed key: %w", err)
			}
			return a.show(struct {
				File string `json:"file"`
			}{out}, table{rows: [][]string{{args[0], number(n), out}}})
		},
	}
	c.Flags().StringVar(&recipient, "recipient", "", "file with the recipient's public key, PEM or DER")
	c.Flags().StringVar(&transport, "transport", string(suite.Transports()[0]), "how it travels; it has to fit the key")
	c.Flags().StringVar(&out, "out", "", "file for the sealed material")
	return a.changes(c)
}
