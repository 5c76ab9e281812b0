package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/suite"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// pollEvery is how often a rotation is looked at while it is watched.
const pollEvery = 200 * time.Millisecond

// levels are how far rotate can wait, in their order.
var levels = []string{"staged", "primary", "everywhere"}

// rotateFlags are the flags of rotate.
type rotateFlags struct {
	wait    string
	timeout time.Duration
	back    string
	plan    bool

	algorithm string
}

func newRotate(a *app) *cobra.Command {
	f := rotateFlags{timeout: 5 * time.Minute}
	c := &cobra.Command{
		Use:   "rotate KEY",
		Short: "Give a key a new primary version, or go back to an earlier one",
		Long: `Give a key a new primary version: shows the plan, asks, and watches. The new version protects nothing before every instance that holds
the key has acknowledged that it can use it; the old one goes on decrypting.

The rotation is the server's: it goes on when the command ends, and "rotor status KEY --watch" watches it again. --back-to gives up a
rotation in flight, or within the rollback window makes an earlier version primary again. The plan is applied to the state that it was made for; if the
key changed meanwhile, nothing happens.

With --algorithm the new version, and those after it, have another algorithm of the same purpose, which is not weaker. Older versions keep theirs and go on opening and
verifying what they protected. --back-to goes back to the algorithm as well.`,
		Example: "  rotor rotate records\n  rotor rotate records --yes --wait primary --timeout 5m\n  rotor rotate records --back-to 1\n  rotor rotate records --plan\n" +
			"  rotor rotate codes --algorithm ML-DSA-65",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return a.rotate(c.Context(), args[0], f) },
	}
	c.Flags().StringVar(&f.wait, "wait", "everywhere", "how far to wait: staged (durable in the server), primary (all acknowledged, it protects), everywhere (all protect with it)")
	c.Flags().Var(duration{&f.timeout}, "timeout", "how long to wait; the rotation goes on after it")
	c.Flags().StringVar(&f.back, "back-to", "", "version to go back to")
	c.Flags().StringVar(&f.algorithm, "algorithm", "", "algorithm of the new version and those after it (default: as before)")
	c.Flags().BoolVar(&f.plan, "plan", false, "only print the plan; exit status 3 when there is something to do")
	return a.changes(c)
}

// rotatePlan is what rotate would do.
type rotatePlan struct {
	Key     string   `json:"key"`
	Epoch   string   `json:"epoch"` // that the plan is for
	From    uint32   `json:"from"`
	To      uint32   `json:"to"`
	New     bool     `json:"new"`      // To is made by this rotation
	GivesUp uint32   `json:"gives_up"` // version in flight that is given up; 0: none
	Holders uint32   `json:"holders"`
	Behind  []string `json:"behind"` // holders that have not acknowledged the present state
	Gate    string   `json:"gate"`
	Changes bool     `json:"changes"`

	Algorithm string `json:"algorithm,omitempty"` // that the new version has instead of the key's; empty: the same
}

func (a *app) rotate(ctx context.Context, name string, f rotateFlags) error {
	if !slices.Contains(levels, f.wait) {
		return usage("--wait", "one of %s", strings.Join(levels, ", "))
	}
	back := uint32(0)
	if f.back != "" {
		var err error
		if back, err = parseVersion(f.back); err != nil {
			return err
		}
		if f.algorithm != "" {
			return usage("--algorithm", "a version that is there keeps its algorithm")
		}
	}
	s, err := a.connect()
	if err != nil {
		return err
	}
	defer s.close()
	p, err := message(s.keys.Progress(ctx, request(a.ref(name))))
	if err != nil {
		return err
	}
	plan, err := planRotation(p, back)
	if err != nil {
		return err
	}
	if f.algorithm != p.GetKey().GetAlgorithm() {
		plan.Algorithm = f.algorithm
	}
	if f.plan {
		return a.showPlan(plan)
	}
	if !plan.Changes {
		fmt.Fprintln(a.err, plan.text())
		return nil
	}
	if err := a.confirm(plan.text()); err != nil {
		return err
	}
	m := &rotorv1.RotateRequest{Key: a.ref(name), BackTo: back, ExpectedEpoch: p.GetKey().GetEpoch(), Algorithm: plan.Algorithm}
	k, err := message(s.keys.Rotate(ctx, request(m)))
	if err != nil {
		return startFault(err, name)
	}
	if plan.Algorithm != "" && k.GetAlgorithm() != plan.Algorithm {
		return fault.New(fault.Invalid, "--algorithm").WithHint("the server is older and has begun a rotation without it; rotor rotate %s --back-to %d gives it up", name, plan.From)
	}
	return a.watchRotation(ctx, s, plan, f)
}

// startFault says what is known when the answer to the request did not come.
func startFault(err error, name string) error {
	switch fault.CodeOf(err) {
	case fault.Canceled, fault.Unavailable, fault.OutcomeUnknown:
		return fault.Wrap(fault.OutcomeUnknown, "rotation of "+name, err).WithHint("rotor status %s says whether it began", name)
	}
	return err
}

// planRotation makes a plan of the state of a key. fault.RotationInFlight, UnknownVersion.
func planRotation(p *rotorv1.ProgressResponse, back uint32) (rotatePlan, error) {
	k := p.GetKey()
	plan := rotatePlan{
		Key: k.GetName(), Epoch: fmt.Sprintf("%d.%d", k.GetIncarnation(), k.GetEpoch()), From: k.GetPrimary(), To: back, Holders: p.GetMembers(),
		Behind: list(p.GetBehind()), Changes: true,
	}
	switch {
	case back != 0 && !mayHave(k, back):
		return plan, fault.New(fault.UnknownVersion, fmt.Sprintf("key %s, version %d", k.GetName(), back)).WithHint("rotor key show %s lists its versions", k.GetName())
	case back != 0 && k.GetTarget() != 0:
		plan.GivesUp = k.GetTarget()
	case back != 0:
		plan.Changes = back != k.GetPrimary()
	case k.GetTarget() != 0:
		return plan, fault.New(fault.RotationInFlight, "key "+k.GetName()).
			WithHint("watch it with rotor status %s --watch, or give it up with rotor rotate %s --back-to %d", k.GetName(), k.GetName(), k.GetPrimary())
	default:
		plan.To, plan.New = max(k.GetNext(), uint32(len(k.GetVersions()))+1), true // a server that is older does not say the next
	}
	plan.Gate = gate(k, plan)
	return plan, nil
}

// mayHave says whether a key has a version, as far as its message tells.
func mayHave(k *rotorv1.Key, n uint32) bool {
	has := slices.ContainsFunc(k.GetVersions(), func(v *rotorv1.Version) bool { return v.GetNumber() == n })
	return has || int(k.GetVersionCount()) > len(k.GetVersions()) && n < k.GetVersions()[0].GetNumber()
}

// gate says in words what the promotion waits for.
func gate(k *rotorv1.Key, p rotatePlan) string {
	var waits []string
	if p.GivesUp == 0 && p.Holders > 0 {
		waits = append(waits, fmt.Sprintf("%d holders have acknowledged it (%s)", p.Holders, k.GetRotation().GetSilence()))
	}
	if m := k.GetRotation().GetMarginNs(); m > 0 && p.New {
		waits = append(waits, fmt.Sprintf("strangers' key sets are younger than it (%s)", nanos(m)))
	}
	if len(waits) == 0 {
		return "none"
	}
	return "until " + strings.Join(waits, " and ")
}

func (p rotatePlan) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "key %s at epoch %s: version %d is primary, %d holders", p.Key, p.Epoch, p.From, p.Holders)
	if len(p.Behind) > 0 {
		fmt.Fprintf(&b, "\n  behind: %s", names(p.Behind))
	}
	switch {
	case !p.Changes:
		fmt.Fprintf(&b, "\n  nothing to do: version %d is primary already", p.To)
	case p.GivesUp != 0:
		fmt.Fprintf(&b, "\n  give up version %d, which is in flight; version %d stays primary", p.GivesUp, p.From)
	case p.New:
		with := ""
		if p.Algorithm != "" {
			with = " with " + p.Algorithm
			if s, err := suite.Lookup(suite.Algorithm(p.Algorithm)); err == nil && s.JWA == "" && slices.Contains(s.Purposes, suite.Sign) {
				with += " (no tokens can be issued under it)"
			}
		}
		fmt.Fprintf(&b, "\n  make version %d%s and deliver it\n  gate: %s\n  then version %d protects and version %d goes on decrypting", p.To, with, p.Gate, p.To, p.From)
	default:
		fmt.Fprintf(&b, "\n  gate: %s\n  then version %d protects again and version %d goes on decrypting", p.Gate, p.To, p.From)
	}
	return b.String()
}

func (a *app) showPlan(p rotatePlan) error {
	if p.Changes {
		a.exit = exitPlan
	}
	if a.format == "json" || a.format == "yaml" {
		return a.show(p)
	}
	_, err := fmt.Fprintln(a.out, p.text())
	return err
}

// watchRotation follows a rotation to the level that the caller waits for.
func (a *app) watchRotation(ctx context.Context, s *api, plan rotatePlan, f rotateFlags) error {
	limited, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	bar := &progress{w: a.err}
	defer bar.end()
	var last *rotorv1.ProgressResponse
	for {
		p, err := message(s.keys.Progress(limited, request(a.ref(plan.Key))))
		switch {
		case limited.Err() != nil:
			return leftBehind(ctx, plan, last)
		case fault.CodeOf(err) == fault.Unavailable:
			bar.at("the server does not answer; trying again")
		case err != nil:
			return err
		default:
			last = p
			bar.at(stateOf(p))
			done, err := reached(p, plan, f.wait)
			if err != nil {
				return err
			}
			if done {
				bar.end()
				return a.showProgress(p)
			}
		}
		if !pause(limited, pollEvery) {
			return leftBehind(ctx, plan, last)
		}
	}
}

// reached says whether the rotation is as far as the caller waits for. fault.Conflict when somebody else turned it elsewhere.
func reached(p *rotorv1.ProgressResponse, plan rotatePlan, level string) (bool, error) {
	k := p.GetKey()
	if k.GetTarget() != plan.To && k.GetPrimary() != plan.To {
		return false, fault.New(fault.Conflict, "rotation of "+plan.Key).WithHint("somebody else turned it meanwhile; see rotor status %s", plan.Key)
	}
	switch level {
	case "staged":
		return true, nil
	case "primary":
		return k.GetPrimary() == plan.To, nil
	}
	return k.GetPrimary() == plan.To && len(p.GetBehind()) == 0, nil
}

// leftBehind is the error of a watch that ended before the rotation: interrupted, or out of time.
func leftBehind(ctx context.Context, plan rotatePlan, last *rotorv1.ProgressResponse) error {
	code, state := fault.GateClosed, "unknown"
	if ctx.Err() != nil {
		code = fault.Canceled
	}
	if last != nil {
		state = stateOf(last)
	}
	return fault.New(code, fmt.Sprintf("watching the rotation of %s (%s)", plan.Key, state)).
		WithHint("the rotation goes on in the server: rotor status %s --watch watches it, rotor rotate %s --back-to %d turns it back", plan.Key, plan.Key, plan.From)
}

// pause returns true after d, false when ctx ends before.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
