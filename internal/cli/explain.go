package cli

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/suite"
)

func newExplain(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "explain [CODE]",
		Short: "Explain an error code; without one, list them all",
		Long:  `Explain an error code: what it means, what to do, and the exit status it ends with. "algorithms" lists the algorithms.`,
		Args:  cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return a.explainAll()
			}
			if args[0] == "algorithms" {
				return a.explainAlgorithms()
			}
			code := fault.Code(args[0])
			if !slices.Contains(fault.Codes(), code) {
				return fault.New(fault.NotFound, "code "+args[0]).WithHint("rotor explain lists them all")
			}
			v := explain(code)
			return a.show(v, table{rows: [][]string{{"code", v.Code}, {"meaning", v.Meaning}, {"hint", v.Hint}, {"exit status", number(v.Exit)}}})
		},
	}
}

// codeView is an error code as programs see it.
type codeView struct {
	Code    string `json:"code"`
	Meaning string `json:"meaning"`
	Hint    string `json:"hint"`
	Exit    int    `json:"exit"`
}

func explain(c fault.Code) codeView {
	t := fault.Explain(c)
	return codeView{string(c), t.Meaning, t.Hint, t.Exit}
}

// allCodes are the codes by name.
func allCodes() []codeView {
	var out []codeView
	for _, c := range slices.Sorted(slices.Values(fault.Codes())) {
		out = append(out, explain(c))
	}
	return out
}

func (a *app) explainAll() error {
	t := table{header: []string{"code", "exit", "meaning"}}
	for _, v := range allCodes() {
		t.add(v.Code, number(v.Exit), v.Meaning)
	}
	return a.show(allCodes(), t)
}

// algorithmView is a row of the algorithm table as programs see it.
type algorithmView struct {
	ID       string   `json:"id"`
	Purposes []string `json:"purposes"`
	Status   string   `json:"status"`
	Bits     int      `json:"security_bits"`
	JWA      string   `json:"jws_alg,omitempty"`
}

func (a *app) explainAlgorithms() error {
	var views []algorithmView
	t := table{header: []string{"algorithm", "purposes", "status", "bits", "jws alg"}}
	for _, s := range suite.All() {
		v := algorithmView{ID: string(s.ID), Status: string(s.Status), Bits: s.Bits, JWA: s.JWA}
		for _, p := range s.Purposes {
			v.Purposes = append(v.Purposes, string(p))
		}
		views = append(views, v)
		t.add(v.ID, strings.Join(v.Purposes, " "), v.Status, number(v.Bits), v.JWA)
	}
	return a.show(views, t)
}
