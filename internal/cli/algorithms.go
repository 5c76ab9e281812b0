package cli

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/rotorkms/rotor/internal/suite"
)

// algorithmView is a row of the algorithm table as programs see it.
type algorithmView struct {
	ID         string   `json:"id"`
	Purposes   []string `json:"purposes"`
	Status     string   `json:"status"`
	Standard   string   `json:"standard"`
	Bits       int      `json:"security_bits"`
	Quantum    int      `json:"quantum_category"` // 0: broken by a quantum computer
	FIPS       bool     `json:"fips"`             // runs in FIPS mode
	Token      bool     `json:"token"`            // runs in a PKCS #11 token, for keys of custody hsm
	JWA        string   `json:"jws_alg,omitempty"`
	MaxUses    uint64   `json:"max_uses,omitempty"`
	Deprecated string   `json:"deprecated_after,omitempty"`
	Disallowed string   `json:"disallowed_after,omitempty"`
	Source     string   `json:"sunset_source,omitempty"`
}

func newKeyAlgorithms(a *app) *cobra.Command {
	var fips bool
	c := &cobra.Command{
		Use: "algorithms", Short: "List the algorithms: what each is for, how strong it is, and until when", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return a.algorithms(fips) },
	}
	c.Flags().BoolVar(&fips, "fips", false, "those alone that run in FIPS mode")
	return c
}

func viewAlgorithm(s suite.Spec) algorithmView {
	v := algorithmView{
		ID: string(s.ID), Status: string(s.Status), Standard: s.Standard, Bits: s.Bits, Quantum: s.Quantum, FIPS: s.FIPS, Token: s.Token(), JWA: s.JWA, MaxUses: s.MaxUses,
		Deprecated: s.Sunset.Deprecated, Disallowed: s.Sunset.Disallowed, Source: s.Sunset.Source,
	}
	for _, p := range s.Purposes {
		v.Purposes = append(v.Purposes, string(p))
	}
	return v
}

func (a *app) algorithms(fips bool) error {
	var views []algorithmView
	t := table{header: []string{"algorithm", "purposes", "status", "bits", "quantum", "fips", "token", "disallowed after", "standard"}}
	for _, s := range suite.All() {
		if fips && !s.FIPS {
			continue
		}
		v := viewAlgorithm(s)
		views = append(views, v)
		t.add(v.ID, strings.Join(v.Purposes, " "), v.Status, number(v.Bits), number(v.Quantum), yesNo(v.FIPS), yesNo(v.Token), or(v.Disallowed, "-"), v.Standard)
	}
	return a.show(views, t)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
