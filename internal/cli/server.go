package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/server"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

func newServer(a *app) *cobra.Command {
	return newNoun("server", "Set up and run a server", newServerInit(a), newServerRun(a), newServerStatus(a), newServerAdmin(a), newServerCA(a), newServerCopy(a),
		newServerRoots(a), newServerTurn(a, false), newServerTurn(a, true), newServerRecover(a), newServerApprove(a),
		newServerUnseal(a), newServerSeal(a), newServerRekey(a), newServerSealer(a))
}

// initView is what server init and server admin answer.
type initView struct {
	Cluster       string `json:"cluster"`
	CheckpointKey string `json:"checkpoint_key"`
	Identity      string `json:"identity,omitempty"`
	Enrolment     string `json:"enrolment,omitempty"`
	Authority     string `json:"authority,omitempty"`

	Shares []string `json:"shares,omitempty"`
}

func newServerInit(a *app) *cobra.Command {
	var f server.Config
	var load func() error
	var local bool
	c := &cobra.Command{
		Use:   "init",
		Short: "Make a new cluster: store, seal key, rules, certificate authority, first administrator",
		Long: `Make a new cluster in a directory that has none. It prints the checkpoint key, which pins the audit log: give it to whoever verifies
the log, and keep it somewhere else than the server.

It also prints, once, the enrolment token of the first administrator. It is a secret, good once and for an hour: once the server runs, whoever shall
administrate it gives it to "rotor admin enrol", where the private key is made and stays. If the hour passes, "rotor server admin" makes another
administrator while the server is stopped.

With --seal shamir:3/5 it also prints, once, the five shares, any three of which open the server. Give each to another custodian. They are kept nowhere.
The server then starts sealed: the custodians bring their shares ("rotor server unseal --ca-file ca.pem", the file that "authority" names), and then the
first administrator enrols.`,
		Example: "  rotor server init --dir /var/lib/rotor --listen 0.0.0.0:7420 --advertise kms.example:7420",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := load(); err != nil {
				return err
			}
			f.Enrol = !local
			made, err := server.Init(c.Context(), f)
			if err != nil {
				return err
			}
			return a.showInit(made)
		},
	}
	serverFlags(c, &f, "")
	c.Flags().BoolVar(&local, "local-admin", false, "make the first administrator's identity in DIR/admin instead of an enrolment token, as rotor dev does")
	c.Flags().StringArrayVar(&f.InitSeals, "seal", nil, `what opens the cluster: a name from the configuration, shamir:THRESHOLD/TOTAL for custodians' shares, or
several joined by + that are all needed; may be repeated, and then any one opens (default the first of the configuration: local)`)
	load = configFlag(c, &f)
	return c
}

func (a *app) showInit(made server.InitResult) error {
	v := initView{Cluster: made.ClusterID, CheckpointKey: made.CheckpointKey, Identity: made.AdminDir, Enrolment: made.Enrolment, Authority: made.Authority, Shares: made.Shares}
	t := table{rows: [][]string{{"cluster", v.Cluster}, {"checkpoint key", v.CheckpointKey}}}
	if v.Authority != "" {
		t.add("authority", v.Authority)
	}
	if v.Identity != "" {
		t.add("identity", v.Identity)
	}
	if v.Enrolment != "" {
		t.add("enrolment", v.Enrolment)
	}
	for i, s := range made.Shares {
		t.add(fmt.Sprintf("share %d of %d", i+1, len(made.Shares)), s)
	}
	return a.show(v, t)
}

func newServerRun(a *app) *cobra.Command {
	var f server.Config
	var load func() error
	c := &cobra.Command{
		Use:   "run",
		Short: "Run the server until SIGINT or SIGTERM",
		Long: `Run the server until SIGINT or SIGTERM. Once it answers it prints "listening on HOST:PORT" on standard output; its log goes to standard
error. SIGHUP reads configuration file and rules again; when anything is wrong everything stays as it was.`,
		Example: "  rotor server run --dir /var/lib/rotor --listen 0.0.0.0:7420",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := load(); err != nil {
				return err
			}
			f.Source = func() (server.Config, error) {
				err := load()
				return f, err
			}
			return a.serve(c.Context(), f, a.listening)
		},
	}
	serverFlags(c, &f, "")
	load = configFlag(c, &f)
	runFlags(c, &f)
	return c
}

func newServerAdmin(a *app) *cobra.Command {
	var f server.Config
	var out string
	var shareFiles []string
	var load func() error
	c := &cobra.Command{
		Use:   "admin NAME",
		Short: "Make an administrator's identity, or renew one, while the server is stopped",
		Long: `Make an administrator's identity, or renew one, while the server is stopped. It needs the store and the seal, so it is for whoever runs the
server and has lost every other way in; else see "rotor admin invite". Where custodians alone open the store, enough of them come to the machine (--share-file). The
certificate is good for a year; the rules see the caller as admin/NAME.`,
		Example: "  rotor server admin alice --dir /var/lib/rotor --out alice",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if out == "" {
				out = args[0]
			}
			if err := load(); err != nil {
				return err
			}
			shares, err := a.shareTexts(shareFiles)
			if err != nil {
				return err
			}
			made, err := server.NewAdmin(c.Context(), f, args[0], out, shares...)
			if err = needsShares(err); err != nil {
				return err
			}
			return a.showInit(made)
		},
	}
	serverFlags(c, &f, "")
	load = configFlag(c, &f)
	c.Flags().StringVar(&out, "out", "", "directory of the identity (default NAME)")
	offlineShares(c, &shareFiles)
	return c
}

func newServerCA(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "ca", Short: "Print the certificate of the cluster's authority", Args: cobra.NoArgs,
		Long: `Print the certificate of the cluster's authority, as the identity pinned it when it was made. It is no secret: "rotor login --ca-file" and others
who are no instances check the server with it.`,
		RunE: func(*cobra.Command, []string) error {
			dir, err := a.readIdentity()
			if err != nil {
				return err
			}
			return a.showText(strings.TrimSpace(string(dir.CAPEM())), map[string]string{"ca": string(dir.CAPEM())})
		},
	}
}

// awaitServer asks the server how it is, and again while it is being made or started, for as long as the caller has patience.
func (a *app) awaitServer(ctx context.Context, patience time.Duration) (*rotorv1.StatusResponse, error) {
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		m, err := a.askServer(ctx)
		switch fault.CodeOf(err) {
		case fault.NotFound, fault.Unauthenticated, fault.Unavailable, fault.Sealed: // no identity yet, one without a certificate yet, no listener yet, not all shares yet
			if pause(limited, pollEvery) {
				continue
			}
		}
		return m, err
	}
}

func (a *app) askServer(ctx context.Context) (*rotorv1.StatusResponse, error) {
	s, err := a.connect()
	if err != nil {
		return nil, err
	}
	defer s.close()
	return message(s.server.Status(ctx, request(&rotorv1.StatusRequest{})))
}
