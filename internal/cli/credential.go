package cli

import (
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

func newCredential(a *app) *cobra.Command {
	return newNoun("credential", "Make, list, unlock and revoke credentials: an ID and a secret for who has nothing better",
		newCredentialCreate(a), newCredentialList(a), newCredentialChange(a, "revoke", "Deny a credential and end its sessions at once"),
		newCredentialChange(a, "unlock", "Let a credential that was locked after failures be used again"))
}

// credentialView is a credential as programs see it.
type credentialView struct {
	ID         string            `json:"id"`
	Name       string            `json:"name"`
	State      string            `json:"state"` // active, revoked, locked, used up, expired
	CIDRs      []string          `json:"cidrs"`
	Attributes map[string]string `json:"attributes,omitempty"`
	Uses       uint32            `json:"uses"`
	Used       uint32            `json:"used"`
	Failures   uint32            `json:"failures"`
	Created    string            `json:"created"`
	Expires    string            `json:"expires"`
	Maker      string            `json:"maker"`
}

func credentialOf(c *rotorv1.Credential) credentialView {
	state := "active"
	switch {
	case c.GetRevoked():
		state = "revoked"
	case !c.GetExpires().AsTime().After(time.Now()):
		state = "expired"
	case c.GetLocked():
		state = "locked"
	case c.GetUses() > 0 && c.GetUsed() >= c.GetUses():
		state = "used up"
	}
	return credentialView{
		c.GetId(), c.GetName(), state, list(c.GetCidrs()), c.GetAttributes(), c.GetUses(), c.GetUsed(), c.GetFailures(), moment(c.GetCreated()),
		moment(c.GetExpires()), c.GetMaker(),
	}
}

func newCredentialCreate(a *app) *cobra.Command {
	m := &rotorv1.CreateCredentialRequest{}
	var ttl time.Duration
	c := &cobra.Command{
		Use:   "create NAME",
		Short: "Make a credential and print it, once",
		Long: `Make a credential and print it on standard output. It is a secret that nobody can see again. Whoever has it logs in as credential/NAME;
several credentials may have one name, so that one can be exchanged without a gap.`,
		Example: "  rotor credential create backup --cidr 10.1.0.0/16 --ttl 720h > credential",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			m.Name, m.TtlNs = args[0], int64(ttl)
			s, err := a.connect()
			if err != nil {
				return err
			}
			defer s.close()
			r, err := message(s.auth.CreateCredential(c.Context(), request(m)))
			if err != nil {
				return err
			}
			return a.showText(r.GetText(), struct {
				credentialView
				Credential string `json:"credential"`
			}{credentialOf(r.GetCredential()), r.GetText()})
		},
	}
	flags := c.Flags()
	flags.StringSliceVar(&m.Cidrs, "cidr", nil, "network that it is good from; may be repeated (default: any)")
	flags.Uint32Var(&m.Uses, "uses", 0, "how many logins it is good for (default: any number)")
	flags.Var(duration{&ttl}, "ttl", "how long it is good for (default 90 days, at most 366)")
	flags.StringToStringVar(&m.Attributes, "attribute", nil, "attribute of the caller for the rules: name=value; may be repeated")
	return c
}

func newCredentialList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List credentials without their secrets", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := a.connect()
			if err != nil {
				return err
			}
			defer s.close()
			m, err := message(s.auth.Credentials(c.Context(), request(&rotorv1.CredentialsRequest{})))
			if err != nil {
				return err
			}
			views, t := []credentialView{}, table{header: []string{"id", "name", "state", "used", "failures", "expires", "cidrs"}}
			for _, e := range m.GetCredentials() {
				v := credentialOf(e)
				views = append(views, v)
				t.add(v.ID, v.Name, v.State, number(v.Used), number(v.Failures), v.Expires, names(v.CIDRs))
			}
			return a.show(views, t)
		},
	}
}

func newCredentialChange(a *app, event, short string) *cobra.Command {
	c := &cobra.Command{
		Use: event + " ID", Short: short, Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := a.confirm(event + " credential " + args[0]); err != nil {
				return err
			}
			s, err := a.connect()
			if err != nil {
				return err
			}
			defer s.close()
			m, err := message(s.auth.ChangeCredential(c.Context(), request(&rotorv1.ChangeCredentialRequest{Id: args[0], Event: event})))
			if err != nil {
				return err
			}
			v := credentialOf(m)
			return a.show(v, table{rows: [][]string{{v.ID, v.Name, v.State}}})
		},
	}
	return a.changes(c)
}

// pairs are the entries of a map as name=value, sorted.
func pairs(m map[string]string) (out []string) {
	for _, name := range slices.Sorted(maps.Keys(m)) {
		out = append(out, name+"="+m[name])
	}
	return out
}
