package cli

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/identity"
	"github.com/rotorkms/rotor/internal/sealing"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// connectSealed is connect for a server that may be sealed, which then shows a certificate that is not the server's. What it is asked is about that one
// server, in whose memory shares are collected, so it is one that is named.
func (a *app) connectSealed() (*api, error) {
	if a.authority != "" {
		return a.connectCustodian()
	}
	if a.sessionPath() != "" {
		return a.connect()
	}
	dir, err := a.readIdentity()
	if fault.CodeOf(err) == fault.NotFound {
		return nil, fault.New(fault.NotFound, "identity "+a.identityPath()).WithHint("name one with --identity or %s; without one: --address and --ca-file (ca.pem in the server's directory)", envIdentity)
	}
	if err != nil {
		return nil, err
	}
	address, err := a.serverAddress(dir)
	if err != nil {
		return nil, err
	}
	if strings.Contains(address, ",") {
		return nil, usage("--address", "one server: shares, sealing and what opens are asked of each one by itself")
	}
	return newAPI(dir.PeerClient(dir.ClientTLS(func(id string) bool { return id != "" && (id == dir.ServerID() || id == dir.SealedID()) })), address), nil
}

// connectCustodian connects as nobody to the one server that is named, which the certificate of the cluster's authority proves.
func (a *app) connectCustodian() (*api, error) {
	address := cmp.Or(a.address, os.Getenv(envAddress))
	if servers, err := identity.Addresses(address); err != nil || len(servers) != 1 {
		return nil, usage("--address", "host:port of the one server that is meant")
	}
	f, err := os.Open(a.authority)
	if err != nil {
		return nil, fault.Wrap(fault.NotFound, "certificate "+a.authority, err).WithHint("rotor server init left it in the server's directory as ca.pem, and rotor server ca prints it")
	}
	defer func() { _ = f.Close() }() // only read
	text, err := readAll(f, maxSession, "certificate "+a.authority)
	if err != nil {
		return nil, err
	}
	h, err := identity.CustodianClient(text)
	if err != nil {
		return nil, err
	}
	return newAPI(h, address), nil
}

// byAuthority adds the flag by which a server is known without an identity.
func (a *app) byAuthority(c *cobra.Command) {
	c.Flags().StringVar(&a.authority, "ca-file", "", "PEM file of the cluster's authority (ca.pem in the server's directory, rotor server ca), instead of an identity; with --address")
}

// withSeal calls the server, sealed or not.
func withSeal[T any](a *app, call func(*api) (T, error)) (T, error) {
	s, err := a.connectSealed()
	if err != nil {
		var zero T
		return zero, err
	}
	defer s.close()
	return call(s)
}

// sharesView is how far a collection of shares is.
type sharesView struct {
	Set       string   `json:"set"`
	Have      uint32   `json:"have"`
	Threshold uint32   `json:"threshold"`
	Total     uint32   `json:"total"`
	Shares    []uint32 `json:"shares"`
	Attempt   string   `json:"attempt,omitempty"`
	Done      bool     `json:"done"`
}

func viewShares(p *rotorv1.SealProgress) sharesView {
	return sharesView{p.GetSet(), p.GetHave(), p.GetThreshold(), p.GetTotal(), p.GetIndexes(), p.GetAttempt(), p.GetDone()}
}

func (v sharesView) table() table {
	t := table{rows: [][]string{{"set", v.Set}, {"shares", fmt.Sprintf("%d of %d", v.Have, v.Threshold)}}}
	if v.Attempt != "" {
		t.add("attempt", v.Attempt)
	}
	return t
}

func newServerUnseal(a *app) *cobra.Command {
	var file, attempt, reset string
	c := &cobra.Command{
		Use: "unseal", Short: "Bring a custodian's share to a sealed server",
		Long: `Bring a custodian's share to a sealed server. The share is read from standard input, from a file, or at a prompt that does not show it, never from the
command line. It says how many are there; the last one that is needed opens the server. Beside a server that is open it proves that the shares would
open it, without anything else, and lets a sealer be removed within a quarter of an hour. Any identity of the cluster will do, because the share is the
credential. Without one, as before the first administrator can enrol, a sealed server is known by the certificate of its authority: --ca-file and --address.`,
		Example: "  rotor server unseal --share-file /media/stick/share.txt\n  rotor server unseal --address kms.example:7420 --ca-file ca.pem",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if reset != "" {
				return a.resetShares(c.Context(), reset)
			}
			share, err := a.secretText(file, "share")
			if err != nil {
				return err
			}
			p, err := withSeal(a, func(s *api) (*rotorv1.SealProgress, error) {
				return message(s.seal.Unseal(c.Context(), request(&rotorv1.UnsealRequest{Share: share, Attempt: attempt})))
			})
			if err != nil {
				return err
			}
			v := viewShares(p)
			return a.show(v, v.table())
		},
	}
	c.Flags().StringVar(&file, "share-file", "", "file that holds the share (default standard input or a prompt)")
	c.Flags().StringVar(&attempt, "attempt", "", "the collection that the share is meant for (default the one that goes on, or a new one)")
	c.Flags().StringVar(&reset, "reset", "", "forget the shares of this attempt, and bring none")
	a.byAuthority(c)
	return c
}

func (a *app) resetShares(ctx context.Context, attempt string) error {
	p, err := withSeal(a, func(s *api) (*rotorv1.SealProgress, error) {
		return message(s.seal.Reset(ctx, request(&rotorv1.UnsealResetRequest{Attempt: attempt})))
	})
	if err != nil {
		return err
	}
	v := viewShares(p)
	return a.show(v, v.table())
}

func newServerSeal(a *app) *cobra.Command {
	return a.changes(&cobra.Command{
		Use: "seal", Short: "Seal the server: it drops its keys and answers nothing until it is unsealed",
		Long: `Seal the server: it ends its requests, drops its keys and answers nothing but shares. It opens by shares, or when its process is started again and a
root of trust opens by itself. Of several servers this seals the one that answers.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := a.confirm("The server stops serving, until custodians bring shares or it is started again."); err != nil {
				return err
			}
			_, err := withSeal(a, func(s *api) (*rotorv1.SealStatus, error) {
				return message(s.seal.Seal(c.Context(), request(&rotorv1.SealRequest{})))
			})
			if err != nil {
				return err
			}
			return a.showText("sealed", map[string]bool{"sealed": true})
		},
	})
}

// sealView is the root of trust as programs see it.
type sealView struct {
	Sealed  bool         `json:"sealed"`
	Reason  string       `json:"reason,omitempty"`
	Weakest string       `json:"weakest,omitempty"`
	Warning string       `json:"warning,omitempty"`
	Members []memberView `json:"members"`
	Shares  []sharesView `json:"shares,omitempty"`
	Rekey   string       `json:"rekey,omitempty"`
}

type memberView struct {
	ID        string `json:"id"`
	Kind      string `json:"kind"`
	Here      bool   `json:"here"`
	Automatic bool   `json:"automatic"`
	Opened    string `json:"opened,omitempty"`
	Error     string `json:"error,omitempty"`
}

func (a *app) showSeal(m *rotorv1.SealStatus) error {
	v := sealView{Sealed: m.GetSealed(), Reason: m.GetReason(), Weakest: m.GetWeakest(), Warning: m.GetWarning(), Members: []memberView{}}
	if phase := m.GetRekey().GetPhase(); phase != "none" && phase != "" {
		v.Rekey = phase + " at " + m.GetRekey().GetServer()
	}
	facts := table{rows: [][]string{{"sealed", fmt.Sprint(v.Sealed)}}}
	if v.Reason != "" {
		facts.add("because", sealReason(v.Reason))
	}
	for _, p := range m.GetShares() {
		v.Shares = append(v.Shares, viewShares(p))
		facts.add("shares of set "+p.GetSet(), fmt.Sprintf("%d of %d", p.GetHave(), p.GetThreshold()))
	}
	if v.Weakest != "" {
		facts.add("as weak as", v.Weakest)
	}
	if v.Warning != "" {
		facts.add("warning", v.Warning)
	}
	if v.Rekey != "" {
		facts.add("rekey", v.Rekey)
	}
	t := table{header: []string{"SEALER", "OPENS", "LAST OPENED", "PROBLEM"}}
	for _, p := range m.GetMembers() {
		member := memberView{ID: p.GetId(), Kind: p.GetKind(), Here: p.GetHere(), Automatic: p.GetAutomatic(), Error: p.GetError()}
		if p.GetOpened() != nil {
			member.Opened = moment(p.GetOpened())
		}
		how := "with people"
		if member.Automatic {
			how = "by itself"
		} else if !member.Here {
			how = "not from here"
		}
		v.Members = append(v.Members, member)
		t.add(member.ID, how, member.Opened, member.Error)
	}
	return a.show(v, facts, t)
}

// sealReason explains why a server is sealed.
func sealReason(reason string) string {
	hint := sealing.Reason(reason).Fault().HintText()
	if hint == "" {
		return printable(reason)
	}
	return reason + ": " + hint
}

func newServerSealer(a *app) *cobra.Command {
	list := &cobra.Command{
		Use: "list", Short: "Show what opens the server, and whether the server is sealed", Args: cobra.NoArgs,
		Long: `Show what opens the server. Any one member of the set does, so the set is as weak as its weakest member, which is named. A member that opens by itself
is made to every minute.`,
		RunE: func(c *cobra.Command, _ []string) error {
			m, err := withSeal(a, func(s *api) (*rotorv1.SealStatus, error) {
				return message(s.seal.Status(c.Context(), request(&rotorv1.SealStatusRequest{})))
			})
			if err != nil {
				return err
			}
			return a.showSeal(m)
		},
	}
	a.byAuthority(list)
	add := a.sealerCommand("add", "add SEALER", "Add a sealer to what opens the server",
		`Add a sealer: a name of the configuration, or several joined by + that are all needed. The root is wrapped and the wrap opened before it counts. New shares
are made by "rotor server rekey".`, "SEALER can open the server from then on, by itself.")
	remove := a.sealerCommand("remove", "remove SEALER", "Take a sealer out of what opens the server",
		`Take a sealer, by name or ID, out of what opens the server. Another one has to open now; if only shares are left, bring enough of them first (rotor server
unseal). Copies of the store from before can still be opened with it, until a shred has it forget: keep it in the configuration until then.`, "SEALER does not open the server any more.")
	rotate := a.sealerCommand("rotate", "rotate SEALER", "Wrap the root anew under a new key of a sealer",
		`Wrap the root anew under a new key of a sealer, by name or ID. The old key stays until a shred, because copies of the store need it.`, "SEALER gets a new key.")
	gone := a.sealerCommand("gone", "gone SEALER", "Note that nobody has a sealer any more that was removed",
		`Note that nobody has a sealer any more that was taken out of what opens the server: its key file or its shares were destroyed, everywhere. No shred waits for it
then. It is your word alone that stands in the log: who keeps it opens copies of the store from before all the same.`, "No shred waits for SEALER any more.")
	return newNoun("sealer", "See and change what opens the server", list, add, remove, rotate, gone)
}

func (a *app) sealerCommand(change, use, short, long, plan string) *cobra.Command {
	return a.changes(&cobra.Command{
		Use: use, Short: short, Long: long, Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := a.confirm(strings.ReplaceAll(plan, "SEALER", printable(args[0]))); err != nil {
				return err
			}
			m, err := withSeal(a, func(s *api) (*rotorv1.SealStatus, error) {
				return message(s.seal.Change(c.Context(), request(&rotorv1.SealChangeRequest{Change: change, Sealer: args[0]})))
			})
			if err != nil {
				return err
			}
			return a.showSeal(m)
		},
	})
}

// rekeyView is how far new shares are.
type rekeyView struct {
	Phase    string      `json:"phase"`
	Attempt  string      `json:"attempt,omitempty"`
	Progress *sharesView `json:"progress,omitempty"`
	Sealer   string      `json:"sealer,omitempty"`
	Server   string      `json:"server,omitempty"`
	Shares   []string    `json:"shares,omitempty"`
}

func (a *app) showRekey(m *rotorv1.RekeyProgress) error {
	v := rekeyView{Phase: m.GetPhase(), Attempt: m.GetAttempt(), Sealer: m.GetSealer(), Server: m.GetServer(), Shares: m.GetShares()}
	t := table{rows: [][]string{{"phase", v.Phase}}}
	if p := viewShares(m.GetProgress()); p.Threshold > 0 && v.Phase != "done" {
		v.Progress = &p
		t.add("shares of set "+p.Set, fmt.Sprintf("%d of %d", p.Have, p.Threshold))
	}
	if v.Sealer != "" {
		t.add("sealer", v.Sealer)
	}
	if v.Attempt != "" {
		t.add("attempt", v.Attempt)
	}
	if v.Server != "" {
		t.add("server", v.Server)
	}
	for i, s := range v.Shares {
		t.add(fmt.Sprintf("share %d of %d", i+1, len(v.Shares)), s)
	}
	return a.show(v, t)
}

func newServerRekey(a *app) *cobra.Command {
	c := newNoun("rekey", "Make new shares for custodians",
		newRekeyStart(a), newRekeyShare(a), newRekeyAbort(a))
	c.Long = `Make new shares for custodians. "start" begins; enough of the old shares have to agree, if there are any ("share"); then the new shares are printed, once;
and enough of them have to come back ("share" again), which proves that they were written down right, before they take the place of the old ones. Until
then the old shares open the server. It is kept in the server's memory: a restart, like "abort", gives it up.`
	return c
}

func newRekeyStart(a *app) *cobra.Command {
	var with string
	c := &cobra.Command{
		Use: "start THRESHOLD/TOTAL", Short: "Begin to make new shares", Args: cobra.ExactArgs(1), Example: "  rotor server rekey start 3/5",
		Long: `Begin to make new shares. If the server has no shares yet they are printed at once, and have to come back before they count.`,
		RunE: func(c *cobra.Command, args []string) error {
			if err := a.confirm("New shares, any " + printable(args[0]) + " of which open the server, are made once enough of the old ones agree."); err != nil {
				return err
			}
			m, err := withSeal(a, func(s *api) (*rotorv1.RekeyProgress, error) {
				return message(s.seal.StartRekey(c.Context(), request(&rotorv1.StartRekeyRequest{Shares: args[0], With: with})))
			})
			if err != nil {
				return err
			}
			return a.showRekey(m)
		},
	}
	c.Flags().StringVar(&with, "with", "", `sealers that are needed beside the shares, joined by + (default: those that are needed now; "none")`)
	return a.changes(c)
}

func newRekeyShare(a *app) *cobra.Command {
	var file, attempt string
	c := &cobra.Command{
		Use: "share", Short: "Give an old share that agrees, or a new one that was written down", Args: cobra.NoArgs,
		Long: `Give an old share that agrees, or a new one that was written down, from standard input, a file or a prompt.`,
		RunE: func(c *cobra.Command, _ []string) error {
			share, err := a.secretText(file, "share")
			if err != nil {
				return err
			}
			m, err := withSeal(a, func(s *api) (*rotorv1.RekeyProgress, error) {
				return message(s.seal.Rekey(c.Context(), request(&rotorv1.RekeyRequest{Share: share, Attempt: attempt})))
			})
			if err != nil {
				return err
			}
			return a.showRekey(m)
		},
	}
	c.Flags().StringVar(&file, "share-file", "", "file that holds the share (default standard input or a prompt)")
	c.Flags().StringVar(&attempt, "attempt", "", "the rekey that the share is meant for (default the one that goes on)")
	return c
}

func newRekeyAbort(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "abort", Short: "Give up new shares that do not count yet", Args: cobra.NoArgs,
		Long: `Give up new shares that do not count yet. They open nothing then; the old ones go on to.`,
		RunE: func(c *cobra.Command, _ []string) error {
			m, err := withSeal(a, func(s *api) (*rotorv1.RekeyProgress, error) {
				return message(s.seal.AbortRekey(c.Context(), request(&rotorv1.AbortRekeyRequest{})))
			})
			if err != nil {
				return err
			}
			return a.showRekey(m)
		},
	}
}
