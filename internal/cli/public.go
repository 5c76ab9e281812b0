package cli

import (
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/suite"
	"github.com/rotorkms/rotor/internal/token"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// pemHPKE is the PEM type of public keys in the encoding of HPKE: hybrids have no PKIX form yet.
const pemHPKE = "HPKE PUBLIC KEY"

func newKeyPublic(a *app) *cobra.Command {
	var version, form string
	c := &cobra.Command{
		Use:   "public NAME",
		Short: "Print the public half of a version",
		Long: `Print the public half of a version, by default the primary: as PEM (PKIX; of the hybrid HPKE keys, which have no such form yet, "HPKE PUBLIC KEY" with the bytes of
RFC 9180), as a JWK (RSA, ECDSA, Ed25519), or as the bare bytes in base64.`,
		Example: "  rotor key public inbox > inbox.pem\n  rotor key public tokens --version 2 --form jwk",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			s, err := a.connect()
			if err != nil {
				return err
			}
			defer s.close()
			k, err := message(s.keys.Get(c.Context(), request(a.ref(args[0]))))
			if err == nil {
				err = s.whole(c.Context(), k)
			}
			if err != nil {
				return err
			}
			n := k.GetPrimary()
			if version != "" {
				if n, err = parseVersion(version); err != nil {
					return err
				}
			}
			return a.public(k, n, form)
		},
	}
	c.Flags().StringVar(&version, "version", "", "the version (default: the primary)")
	c.Flags().StringVar(&form, "form", "pem", "pem, jwk or raw")
	return c
}

func (a *app) public(k *rotorv1.Key, n uint32, form string) error {
	for _, v := range k.GetVersions() {
		if v.GetNumber() != n {
			continue
		}
		if len(v.GetPublic()) == 0 {
			return fault.New(fault.WrongPurpose, "key "+k.GetName()).WithHint("%s has no public half", v.GetAlgorithm())
		}
		text, err := publicText(k, v, form)
		if err != nil {
			return err
		}
		return a.showText(strings.TrimSuffix(text, "\n"), struct {
			Algorithm string `json:"algorithm"`
			Version   uint32 `json:"version"`
			Public    string `json:"public"`
		}{v.GetAlgorithm(), n, text})
	}
	return fault.New(fault.UnknownVersion, fmt.Sprintf("key %s, version %d", k.GetName(), n))
}

func publicText(k *rotorv1.Key, v *rotorv1.Version, form string) (string, error) {
	switch form {
	case "pem":
		kind := "PUBLIC KEY"
		if a := suite.Algorithm(v.GetAlgorithm()); a == suite.HPKEXWing || a == suite.HPKEMLKEM768P256 {
			kind = pemHPKE
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: v.GetPublic()})), nil
	case "jwk":
		b, err := token.EncodeKey(token.Key{ID: fmt.Sprintf("%s-%08x", k.GetNamespace(), v.GetHandle()), Algorithm: suite.Algorithm(v.GetAlgorithm()), Public: v.GetPublic()})
		return string(b), err
	case "raw":
		return base64.StdEncoding.EncodeToString(v.GetPublic()), nil
	}
	return "", usage("--form", "pem, jwk or raw")
}

// readPublic reads a public key from a PEM file, of any type of block, or a file with its bare bytes.
func readPublic(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read public key: %w", err)
	}
	defer func() { _ = f.Close() }() // only read
	b, err := readAll(f, maxSecret, "public key")
	if err != nil {
		return nil, err
	}
	if block, _ := pem.Decode(b); block != nil {
		return block.Bytes, nil
	}
	return b, nil
}
