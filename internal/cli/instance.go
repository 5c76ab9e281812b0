package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/identity"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

func newInstance(a *app) *cobra.Command {
	return newNoun("instance", "Invite, list and remove the instances that hold keys",
		newInstanceList(a), newInstanceInvite(a), newInstanceJoin(a), newInstanceRemove(a))
}

// instanceView is a member as programs see it.
type instanceView struct {
	Name      string   `json:"name"`
	Connected bool     `json:"connected"`
	Heard     string   `json:"heard,omitempty"`
	Keys      []string `json:"keys"`
	Behind    []string `json:"behind,omitempty"` // keys whose newest state it has not acknowledged
}

func newInstanceList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the instances and the keys that they hold", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := a.connect()
			if err != nil {
				return err
			}
			defer s.close()
			m, err := message(s.fleet.Instances(c.Context(), request(&rotorv1.InstancesRequest{})))
			if err != nil {
				return err
			}
			views, t := []instanceView{}, table{header: []string{"name", "connected", "heard", "keys", "behind"}}
			for _, i := range m.GetInstances() {
				views = append(views, instanceView{i.GetName(), i.GetConnected(), moment(i.GetHeard()), list(i.GetKeys()), i.GetBehind()})
				t.add(i.GetName(), map[bool]string{true: "yes", false: "no"}[i.GetConnected()], moment(i.GetHeard()), names(i.GetKeys()), names(i.GetBehind()))
			}
			return a.show(views, t)
		},
	}
}

func newInstanceInvite(a *app) *cobra.Command {
	var ttl time.Duration
	c := &cobra.Command{
		Use:   "invite NAME",
		Short: "Make a join token and print it",
		Long: `Make a join token and print it on standard output. It is a secret: whoever uses it first becomes the instance. It is good for one
process and at most 10 minutes.`,
		Example: "  rotor instance invite worker-1 | ssh worker-1 rotor instance join --identity /var/lib/app/rotor",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if ttl > identity.MaxTTL {
				return usage("--ttl", "at most %s", identity.MaxTTL)
			}
			s, err := a.connect()
			if err != nil {
				return err
			}
			defer s.close()
			m, err := message(s.fleet.Invite(c.Context(), request(&rotorv1.InviteRequest{Name: args[0], TtlNs: int64(ttl)})))
			if err != nil {
				return err
			}
			return a.showText(m.GetToken(), struct {
				Instance string `json:"instance"`
				Token    string `json:"token"`
			}{args[0], m.GetToken()})
		},
	}
	c.Flags().Var(duration{&ttl}, "ttl", "how long it is good for (default and at most 10m)")
	return c
}

func newInstanceJoin(a *app) *cobra.Command {
	var tokenFile string
	c := &cobra.Command{
		Use:   "join --identity DIR",
		Short: "Become an instance with a join token from standard input or a file",
		Long: `Become an instance: makes a private key in DIR, which never leaves it, and exchanges the join token on standard input (or in
--token-file) for a certificate. Programs can do the same themselves with the SDK's Config.JoinToken.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if a.identity == "" {
				return usage("--identity", "name the directory for the new identity")
			}
			if have, err := identity.Read(a.identity); err == nil && have.Joined() {
				return fault.New(fault.Exists, "identity "+a.identity).WithHint("it has joined already; name another directory")
			}
			text, err := a.secretText(tokenFile, "join token")
			if err != nil {
				return err
			}
			return a.join(c.Context(), text)
		},
	}
	c.Flags().StringVar(&tokenFile, "token-file", "", "file that holds the join token")
	return c
}

func (a *app) join(ctx context.Context, text string) error {
	if _, err := identity.ParseJoinToken(text); err != nil {
		return err // before a directory is made
	}
	client, err := rotor.Dial(ctx, rotor.Config{Identity: a.identity, JoinToken: text, Address: a.address, Log: quiet()})
	if err != nil {
		return err
	}
	name, ns := client.Instance(), client.Namespace()
	if err := client.Close(); err != nil {
		return err
	}
	v := struct {
		Instance  string `json:"instance"`
		Namespace string `json:"namespace"`
		Identity  string `json:"identity"`
	}{name, ns, a.identity}
	return a.show(v, table{rows: [][]string{{"instance", name}, {"namespace", ns}, {"identity", a.identity}}})
}

func newInstanceRemove(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "remove NAME",
		Short: "Deny an instance at once and take it out of the fleet",
		Long: `Deny an instance at once: its certificate is refused from now on and no rotation waits for it. What it held it may still hold: rotate the
keys that it had if you do not trust it.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			plan := fmt.Sprintf("remove instance %s: its certificate is refused from now on; what it held it may still hold", args[0])
			if err := a.confirmName(plan, args[0]); err != nil {
				return err
			}
			s, err := a.connect()
			if err != nil {
				return err
			}
			defer s.close()
			if _, err := message(s.fleet.Remove(c.Context(), request(&rotorv1.RemoveRequest{Name: args[0]}))); err != nil {
				return err
			}
			return a.show(map[string]string{"removed": args[0]}, table{rows: [][]string{{"removed", args[0]}}})
		},
	}
	return a.changes(c)
}
