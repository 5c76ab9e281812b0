// Package cli is the command line: nouns and verbs over the server's API and the SDK. Each noun has its file. It prints plans
// before it changes anything, results on standard output, progress and errors on standard error, and ends with the exit status
// that fault.Explain gives.
package cli

import (
	"context"
	"io"

	"github.com/spf13/cobra"
)

// exitPlan is the status of a plan that has changes.
const exitPlan = 3

// app is one run of the command line.
type app struct {
	in       io.Reader
	out, err io.Writer

	format    string // -o: "", table, json, yaml
	identity  string
	session   string
	address   string
	namespace string
	yes       bool

	authority string // --ca-file of the cluster, for who has a share and no identity

	began bool // arguments and flags were fine: what fails from now on is not a usage error
	exit  int  // status of a run without an error
}

// Run runs one command and returns its exit status: 0 ok, 1 failed, 2 usage, 3 the plan has changes, 4 not authenticated or
// authorised, 5 integrity failure. The end of ctx interrupts the command, which leaves nothing half written.
func Run(ctx context.Context, args []string, in io.Reader, out, err io.Writer) int {
	a := &app{in: interruptible{ctx, in}, out: out, err: err}
	root := newRoot(a)
	root.SetArgs(args)
	root.SetIn(a.in)
	root.SetOut(out)
	root.SetErr(err)
	if c, e := root.ExecuteContextC(ctx); e != nil {
		if !a.began {
			e = usageOf(c, e)
		}
		return report(err, e)
	}
	return a.exit
}

// newRoot builds the command tree.
func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "rotor",
		Short: "Keys that rotate under load: make, use, rotate, retire and destroy them across a fleet",
		Long: `Rotor manages the keys that protect models, data and communication across a fleet.

Start with "rotor dev" in one terminal; it prints what to export in the other.

Results go to standard output, progress and errors to standard error. What changes state prints its plan and asks; --yes skips the
question, and is needed where standard input is no terminal. Exit status: 0 ok, 1 failed, 2 usage, 3 the plan has changes, 4 not
authenticated or authorised, 5 integrity failure.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			a.began = true
			return a.checkFormat()
		},
	}
	f := root.PersistentFlags()
	f.StringVarP(&a.format, "output", "o", "", "table, json or yaml (default: a table on a terminal, tab-separated lines elsewhere)")
	f.StringVar(&a.identity, "identity", "", "directory of the identity (default $ROTOR_IDENTITY, else $XDG_CONFIG_HOME/rotor/identity, else ./rotor-dev/admin)")
	f.StringVar(&a.session, "session", "", "file of a session that rotor login made, instead of an identity (default $ROTOR_SESSION, else, if there is no identity, $XDG_CONFIG_HOME/rotor/session)")
	f.StringVar(&a.address, "address", "", "host:port of the server, or several with commas between (default $ROTOR_ADDRESS, else what the identity knows)")
	f.StringVar(&a.namespace, "namespace", "", "namespace of the key (default: the server's)")
	root.AddCommand(
		newDev(a), newServer(a), newStatus(a), newKey(a), newEncrypt(a), newDecrypt(a), newFile(a), newRotate(a), newCensus(a), newCampaign(a),
		newDataset(a), newInstance(a), newToken(a), newSign(a), newVerify(a), newInventory(a), newLogin(a), newLogout(a), newWhoami(a), newSession(a), newCredential(a), newGrant(a), newAdmin(a),
		newAudit(a), newBackup(a), newImport(a), newExplain(a), newVersion(a),
	)
	root.AddCommand(newDoctor(a))
	return root
}

// newNoun makes a command that only groups verbs: alone it shows its help, with an unknown verb it is a usage error.
func newNoun(name, short string, verbs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: name + " VERB", Short: short, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(verbs...)
	return c
}

// changes adds --yes to a command that changes state.
func (a *app) changes(c *cobra.Command) *cobra.Command {
	c.Flags().BoolVar(&a.yes, "yes", false, "do it without asking")
	return c
}
