package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/identity"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

func newAdmin(a *app) *cobra.Command {
	return newNoun("admin", "Enrol, invite, list and remove administrators", newAdminEnrol(a), newAdminInvite(a), newAdminList(a), newAdminRemove(a))
}

func newAdminEnrol(a *app) *cobra.Command {
	var tokenFile string
	c := &cobra.Command{
		Use:   "enrol --identity DIR",
		Short: "Become an administrator with an enrolment token from standard input or a file",
		Long: `Become an administrator: makes a private key in DIR, which never leaves it, and exchanges the enrolment token on standard input (or in
--token-file) for a certificate. The first token is printed by rotor server init, others by rotor admin invite.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if a.identity == "" {
				return usage("--identity", "name the directory for the new identity")
			}
			if have, err := identity.Read(a.identity); err == nil && have.Joined() {
				return fault.New(fault.Exists, "identity "+a.identity).WithHint("it has a certificate already; name another directory")
			}
			text, err := a.secretText(tokenFile, "enrolment token")
			if err != nil {
				return err
			}
			k, err := identity.ParseJoinToken(text)
			if err != nil {
				return err // before a directory is made
			}
			if !k.IsAdmin() {
				return fault.New(fault.Invalid, "enrolment token").WithHint("it is the join token of an instance: rotor instance join")
			}
			client, err := rotor.Dial(c.Context(), rotor.Config{Identity: a.identity, JoinToken: text, Address: a.address, Log: quiet()})
			if err != nil {
				return err
			}
			if err := client.Close(); err != nil {
				return err
			}
			v := struct {
				Admin    string `json:"admin"`
				Identity string `json:"identity"`
			}{"admin/" + k.Instance, a.identity}
			return a.show(v, table{rows: [][]string{{"admin", v.Admin}, {"identity", v.Identity}}})
		},
	}
	c.Flags().StringVar(&tokenFile, "token-file", "", "file that holds the enrolment token")
	return c
}

func newAdminInvite(a *app) *cobra.Command {
	var ttl time.Duration
	c := &cobra.Command{
		Use:   "invite NAME",
		Short: "Make an enrolment token for an administrator and print it",
		Long: `Make an enrolment token and print it on standard output. It is a secret: whoever uses it first becomes admin/NAME. It is good once and for
at most an hour. An administrator enrols again under the same name to renew a certificate, which is good for a year.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			s, err := a.connect()
			if err != nil {
				return err
			}
			defer s.close()
			m, err := message(s.auth.InviteAdmin(c.Context(), request(&rotorv1.InviteAdminRequest{Name: args[0], TtlNs: int64(ttl)})))
			if err != nil {
				return err
			}
			return a.showText(m.GetToken(), struct {
				Admin string `json:"admin"`
				Token string `json:"token"`
			}{args[0], m.GetToken()})
		},
	}
	c.Flags().Var(duration{&ttl}, "ttl", "how long it is good for (default and at most 1h)")
	return c
}

// adminView is an administrator as programs see it.
type adminView struct {
	Name    string `json:"name"`
	Created string `json:"created"`
	Removed string `json:"removed,omitempty"`
}

func newAdminList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the administrators, also those that were removed", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := a.connect()
			if err != nil {
				return err
			}
			defer s.close()
			m, err := message(s.auth.Admins(c.Context(), request(&rotorv1.AdminsRequest{})))
			if err != nil {
				return err
			}
			views, t := []adminView{}, table{header: []string{"name", "created", "removed"}}
			for _, e := range m.GetAdmins() {
				v := adminView{e.GetName(), moment(e.GetCreated()), moment(e.GetRemoved())}
				views = append(views, v)
				t.add(v.Name, v.Created, v.Removed)
			}
			return a.show(views, t)
		},
	}
}

func newAdminRemove(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "remove NAME",
		Short: "Deny an administrator at once",
		Long:  "Deny an administrator at once: every certificate, enrolment token, session and grant of the name. The last one cannot be removed.",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := a.confirmName(fmt.Sprintf("remove administrator %s: every certificate of it is refused from now on", args[0]), args[0]); err != nil {
				return err
			}
			s, err := a.connect()
			if err != nil {
				return err
			}
			defer s.close()
			if _, err := message(s.auth.RemoveAdmin(c.Context(), request(&rotorv1.RemoveAdminRequest{Name: args[0]}))); err != nil {
				return err
			}
			return a.show(map[string]string{"removed": args[0]}, table{rows: [][]string{{"removed", args[0]}}})
		},
	}
	return a.changes(c)
}
