package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

func newGrant(a *app) *cobra.Command {
	return newNoun("grant", "Let another caller use a key for a while", newGrantCreate(a), newGrantList(a), newGrantRevoke(a))
}

// grantView is a grant as programs see it.
type grantView struct {
	ID        string            `json:"id"`
	Grantor   string            `json:"grantor"`
	Grantee   string            `json:"grantee"`
	Namespace string            `json:"namespace"`
	Key       string            `json:"key"`
	Actions   []string          `json:"actions"`
	Context   map[string]string `json:"context,omitempty"`
	Uses      uint32            `json:"uses"`
	Used      uint32            `json:"used"`
	Created   string            `json:"created"`
	Expires   string            `json:"expires"`
}

func viewOfGrant(g *rotorv1.Grant) grantView {
	return grantView{
		g.GetId(), g.GetGrantor(), g.GetGrantee(), g.GetKey().GetNamespace(), g.GetKey().GetName(), list(g.GetActions()), g.GetContext(), g.GetUses(),
		g.GetUsed(), moment(g.GetCreated()), moment(g.GetExpires()),
	}
}

func newGrantCreate(a *app) *cobra.Command {
	m := &rotorv1.CreateGrantRequest{}
	var ttl time.Duration
	c := &cobra.Command{
		Use:   "create KEY --to CALLER --action ACTION",
		Short: "Let a caller do with a key what the rules let you do",
		Long: `Let a caller do with a key what the rules let you do with it: only uses (encrypt, decrypt, wrap, unwrap, rewrap, sign, verify, mac) and
key.show can be granted. A grant is good as long as the rules let you do the same and grant it.`,
		Example: "  rotor grant create records --to token/github/repo:acme/train:environment:eval --action decrypt --context job=eval-7 --ttl 2h",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if m.Grantee == "" || len(m.Actions) == 0 {
				return usage("--to and --action", "say who may do what")
			}
			m.Key, m.TtlNs = a.ref(args[0]), int64(ttl)
			if err := a.confirm(fmt.Sprintf("grant %s on key %s to %s for %s", strings.Join(m.Actions, ", "), args[0], m.Grantee, ends(ttl))); err != nil {
				return err
			}
			s, err := a.connect()
			if err != nil {
				return err
			}
			defer s.close()
			g, err := message(s.auth.CreateGrant(c.Context(), request(m)))
			if err != nil {
				return err
			}
			v := viewOfGrant(g)
			return a.show(v, table{rows: [][]string{{"grant", v.ID}, {"expires", v.Expires}}})
		},
	}
	flags := c.Flags()
	flags.StringVar(&m.Grantee, "to", "", "name of the caller, as rotor whoami shows it")
	flags.StringSliceVar(&m.Actions, "action", nil, "what it may do; may be repeated")
	flags.StringToStringVar(&m.Context, "context", nil, "part of the associated data, or of a file's encryption context, that must be there: label=value; may be repeated")
	flags.Uint32Var(&m.Uses, "uses", 0, "how often it may be used (default: any number)")
	flags.Var(duration{&ttl}, "ttl", "how long it is good for (default 24h, at most 90 days)")
	return a.changes(c)
}

func newGrantList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the grants that you made or were given, or all if you may see them", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := a.connect()
			if err != nil {
				return err
			}
			defer s.close()
			m, err := message(s.auth.Grants(c.Context(), request(&rotorv1.GrantsRequest{})))
			if err != nil {
				return err
			}
			views, t := []grantView{}, table{header: []string{"id", "key", "actions", "to", "by", "used", "context", "expires"}}
			for _, e := range m.GetGrants() {
				v := viewOfGrant(e)
				views = append(views, v)
				t.add(v.ID, v.Key, names(v.Actions), v.Grantee, v.Grantor, number(v.Used), names(pairs(v.Context)), v.Expires)
			}
			return a.show(views, t)
		},
	}
}

func newGrantRevoke(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "revoke ID", Short: "End a grant at once", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := a.confirm("revoke grant " + args[0]); err != nil {
				return err
			}
			s, err := a.connect()
			if err != nil {
				return err
			}
			defer s.close()
			if _, err := message(s.auth.RevokeGrant(c.Context(), request(&rotorv1.RevokeGrantRequest{Id: args[0]}))); err != nil {
				return err
			}
			return a.show(map[string]string{"revoked": args[0]}, table{rows: [][]string{{"revoked", args[0]}}})
		},
	}
	return a.changes(c)
}
