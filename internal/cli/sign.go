package cli

import (
	"encoding/base64"
	"strings"

	"github.com/spf13/cobra"

	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// signatureView is what sign answers.
type signatureView struct {
	Signature string `json:"signature"` // base64url without padding
	Version   uint32 `json:"version"`
}

func newSign(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "sign KEY",
		Short: "Sign standard input, or authenticate it with a MAC key",
		Long: `Sign standard input with the primary version of a signing key, or make its authentication code with a MAC key. Prints the signature in base64url and the
version, which verify needs. Signatures have the form that JWS uses: r and s of ECDSA one after the other; ML-DSA as in FIPS 204 with an empty context.`,
		Example: "  rotor sign releases < model.onnx.sha256",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			msg, err := readAll(a.in, maxText, "standard input")
			if err != nil {
				return err
			}
			s, err := a.connect()
			if err != nil {
				return err
			}
			defer s.close()
			m, err := message(s.keys.Sign(c.Context(), request(&rotorv1.SignRequest{Key: a.ref(args[0]), Message: msg})))
			if err != nil {
				return err
			}
			v := signatureView{base64.RawURLEncoding.EncodeToString(m.GetSignature()), m.GetVersion()}
			return a.show(v, table{rows: [][]string{{"signature", v.Signature}, {"version", number(v.Version)}}})
		},
	}
}

func newVerify(a *app) *cobra.Command {
	var signature, version string
	c := &cobra.Command{
		Use:     "verify KEY --signature SIGNATURE --version VERSION",
		Short:   "Verify a signature or authentication code of standard input",
		Long:    `Verify what sign made of standard input. It ends with status 4 and token_invalid when the signature does not match.`,
		Example: "  rotor verify releases --signature oYdZ… --version 1 < model.onnx.sha256",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			n, err := parseVersion(version)
			if err != nil {
				return err
			}
			sig, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(signature, "="))
			if err != nil || len(sig) == 0 {
				return usage("--signature", "base64url, as rotor sign prints it")
			}
			msg, err := readAll(a.in, maxText, "standard input")
			if err != nil {
				return err
			}
			s, err := a.connect()
			if err != nil {
				return err
			}
			defer s.close()
			m := &rotorv1.VerifyRequest{Key: a.ref(args[0]), Message: msg, Signature: sig, Version: n}
			if _, err := message(s.keys.Verify(c.Context(), request(m))); err != nil {
				return err
			}
			return a.show(struct {
				Valid bool `json:"valid"`
			}{true}, table{rows: [][]string{{args[0], number(n), "valid"}}})
		},
	}
	c.Flags().StringVar(&signature, "signature", "", "the signature in base64url")
	c.Flags().StringVar(&version, "version", "", "the version that made it")
	return c
}
