package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/server"
)

// copyView is what server copy answers.
type copyView struct {
	Records int    `json:"records"`
	Bytes   int64  `json:"bytes"`
	SHA256  string `json:"sha256"`
	Resumed int    `json:"resumed"`
}

func newServerCopy(a *app) *cobra.Command {
	var f server.CopyConfig
	var abort bool
	c := &cobra.Command{
		Use:   "copy --from URL --to URL",
		Short: "Move the store to another engine, verified record by record",
		Long: `Move the store to another engine: write every record to the target, read both again, and compare keys and SHA-256 of values. It needs no seal.

Stop the servers first; one that still runs on the source stops by itself when the copy begins, and the copy then asks to be run again. No server starts on
the source from the first step on, and none on the target until the last: two servers on copies of one store would make two truths of it. So
the source stays refused (store_moved) when the copy has ended; keep it as evidence, or delete it. What was interrupted goes on with the same command.
--abort gives up a copy that has not ended.`,
		Example: "  rotor server copy --dir /var/lib/rotor --from bolt: --to 'etcd://127.0.0.1:2379/rotor'",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if f.From == "" || f.To == "" && !abort || f.To != "" && abort {
				return fault.New(fault.Invalid, "from, to").WithHint("name both stores, or with --abort the source alone")
			}
			if abort {
				if err := a.confirm("give up the copy: servers may run on the source again, the target stays refused"); err != nil {
					return err
				}
				return server.AbortCopy(c.Context(), f)
			}
			if err := a.confirm("move the store: servers on the source stop, and none starts on it again"); err != nil {
				return err
			}
			bar := &progress{w: a.err}
			defer bar.end()
			f.Progress = func(done, all int) { bar.at(fmt.Sprintf("%d of %d records", done, all)) }
			r, err := server.Copy(c.Context(), f)
			if err != nil {
				return err
			}
			bar.end()
			v := copyView{r.Records, r.Bytes, r.Digest, r.Resumed}
			return a.show(v, table{rows: [][]string{
				{"records", fmt.Sprint(v.Records)}, {"bytes", fmt.Sprint(v.Bytes)}, {"sha256", v.SHA256}, {"resumed", fmt.Sprint(v.Resumed)},
			}})
		},
	}
	c.Flags().StringVar(&f.Dir, "dir", "", "directory of the server, for the store bolt:")
	c.Flags().StringVar(&f.From, "from", "", "URL of the store that moves")
	c.Flags().StringVar(&f.To, "to", "", "URL of an empty store, or of one that the same copy has begun")
	c.Flags().BoolVar(&abort, "abort", false, "give up a copy that has not ended")
	return a.changes(c)
}
