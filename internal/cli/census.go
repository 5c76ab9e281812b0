package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// censusView is a census as programs see it.
type censusView struct {
	Key         string      `json:"key"`
	Versions    []countView `json:"versions"`
	Unreachable []string    `json:"unreachable,omitempty"` // data sets that could not be counted
	Unknown     uint64      `json:"unknown"`               // ciphertexts of no version of the key
	Settled     bool        `json:"settled"`               // began after the last use of older versions could have ended
}

type countView struct {
	Version     uint32 `json:"version"`
	Ciphertexts uint64 `json:"ciphertexts"`
}

func newCensus(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "census KEY",
		Short: "Count what is under which version of a key, in every registered data set",
		Long: `Count what is under which version of a key, in every registered data set. A census counts as evidence for a retirement when it is
settled and no data set was unreachable.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			s, err := a.connect()
			if err != nil {
				return err
			}
			defer s.close()
			m, err := message(s.data.Census(c.Context(), request(&rotorv1.CensusRequest{Key: a.ref(args[0])})))
			if err != nil {
				return err
			}
			v := censusView{Key: args[0], Versions: []countView{}, Unreachable: m.GetUnreachable(), Unknown: m.GetUnknown(), Settled: m.GetSettled()}
			t := table{header: []string{"version", "ciphertexts"}}
			for _, n := range m.GetCounts() {
				v.Versions = append(v.Versions, countView{n.GetVersion(), n.GetCiphertexts()})
				t.add(number(n.GetVersion()), number(n.GetCiphertexts()))
			}
			t.add("unknown", number(v.Unknown))
			facts := table{rows: [][]string{{"settled", map[bool]string{true: "yes", false: "no"}[v.Settled]}, {"unreachable", names(v.Unreachable)}}}
			if len(v.Versions) == 0 { // a census of nothing must not read as "nothing is left"
				fmt.Fprintln(a.err, a.counted(c.Context(), s, args[0]))
			}
			return a.show(v, t, facts)
		},
	}
}
