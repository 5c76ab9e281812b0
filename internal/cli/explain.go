package cli

import (
	"slices"

	"github.com/spf13/cobra"

	"github.com/rotorkms/rotor/internal/fault"
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
				return a.algorithms(false)
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
