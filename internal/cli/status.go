package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rotorkms/rotor/internal/fault"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// maxNames bounds how many instances are named on one line.
const maxNames = 8

func newStatus(a *app) *cobra.Command {
	var watch bool
	c := &cobra.Command{
		Use:   "status [KEY]",
		Short: "Say how far rotations are, and whom they wait for",
		Long: `Say how far rotations are, of one key or of all, and whom they wait for. With --watch each change is shown: of one key until its rotation is
everywhere, of all until the command is interrupted.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			s, err := a.connect()
			if err != nil {
				return err
			}
			defer s.close()
			if watch {
				return a.watchStatus(c.Context(), s, args)
			}
			if len(args) == 1 {
				p, err := message(s.keys.Progress(c.Context(), request(a.ref(args[0]))))
				if err != nil {
					return err
				}
				return a.showProgress(p)
			}
			return a.showAll(c.Context(), s)
		},
	}
	c.Flags().BoolVar(&watch, "watch", false, "go on and show each change")
	return c
}

// progressView is the state of a key's rotation as programs see it.
type progressView struct {
	Key     string   `json:"key"`
	Epoch   string   `json:"epoch"`
	Primary uint32   `json:"primary"`
	Target  uint32   `json:"target,omitempty"`
	Step    string   `json:"step,omitempty"` // distribute, wait, promote, settle
	Holders uint32   `json:"holders"`
	Waiting []string `json:"waiting,omitempty"` // that have not acknowledged the target
	Behind  []string `json:"behind,omitempty"`  // that have not acknowledged the primary
	Paused  bool     `json:"paused"`            // waited for longer than the key's max_wait
	Next    string   `json:"next,omitempty"`    // when the key's schedule begins its next rotation by time
	Refused string   `json:"refused,omitempty"` // why a rotation that is due by it has not begun
	Retry   string   `json:"retry,omitempty"`   // when it is tried again
}

func viewProgress(p *rotorv1.ProgressResponse) progressView {
	k := p.GetKey()
	return progressView{
		k.GetName(), fmt.Sprintf("%d.%d", k.GetIncarnation(), k.GetEpoch()), k.GetPrimary(), k.GetTarget(), p.GetStep(), p.GetMembers(),
		p.GetWaiting(), p.GetBehind(), p.GetPaused(), moment(p.GetDue()), p.GetRefused(), moment(p.GetRetry()),
	}
}

// stateOf says in one line where a rotation is.
func stateOf(p *rotorv1.ProgressResponse) string {
	v := viewProgress(p)
	switch {
	case v.Target != 0 && len(v.Waiting) > 0 && v.Paused:
		return fmt.Sprintf("%s: version %d is paused, it waited too long for %s", v.Key, v.Target, names(v.Waiting))
	case v.Target != 0 && len(v.Waiting) > 0:
		return fmt.Sprintf("%s: version %d waits for %s", v.Key, v.Target, names(v.Waiting))
	case v.Target != 0:
		return fmt.Sprintf("%s: version %d is on its way to %d holders", v.Key, v.Target, v.Holders)
	case len(v.Behind) > 0:
		return fmt.Sprintf("%s: version %d is primary, not yet at %s", v.Key, v.Primary, names(v.Behind))
	}
	everywhere := fmt.Sprintf("%s: version %d is primary everywhere (%d holders)", v.Key, v.Primary, v.Holders)
	switch {
	case v.Refused != "" && v.Retry != "":
		return fmt.Sprintf("%s; a rotation is due and refused, to be tried again at %s: %s", everywhere, v.Retry, v.Refused)
	case v.Refused != "":
		return fmt.Sprintf("%s; a rotation is due and refused: %s", everywhere, v.Refused)
	case v.Next != "":
		return fmt.Sprintf("%s; the next rotation begins at %s", everywhere, v.Next)
	}
	return everywhere
}

// names lists instances, at most maxNames of them.
func names(all []string) string {
	if len(all) <= maxNames {
		return strings.Join(all, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(all[:maxNames], ", "), len(all)-maxNames)
}

func (a *app) showProgress(p *rotorv1.ProgressResponse) error {
	v := viewProgress(p)
	return a.show(v, progressTable([]progressView{v}))
}

func progressTable(all []progressView) table {
	t := table{header: []string{"key", "primary", "target", "step", "holders", "waiting", "behind"}}
	for _, v := range all {
		target := ""
		if v.Target != 0 {
			target = number(v.Target)
		}
		step := v.Step
		switch {
		case v.Paused:
			step = "paused"
		case v.Refused != "":
			step = "refused: " + v.Refused
		case step == "" && v.Next != "":
			step = "next " + v.Next
		}
		t.add(v.Key, number(v.Primary), target, step, number(v.Holders), names(v.Waiting), names(v.Behind))
	}
	return t
}

func (a *app) showAll(ctx context.Context, s *api) error {
	all, err := a.allProgress(ctx, s)
	if err != nil {
		return err
	}
	views := []progressView{}
	for _, p := range all {
		views = append(views, viewProgress(p))
	}
	return a.show(views, progressTable(views))
}

func (a *app) allProgress(ctx context.Context, s *api) ([]*rotorv1.ProgressResponse, error) {
	keys, err := s.listKeys(ctx, a.namespace)
	if err != nil {
		return nil, err
	}
	var all []*rotorv1.ProgressResponse
	for _, k := range keys {
		p, err := message(s.keys.Progress(ctx, request(a.ref(k.GetName()))))
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

// watchStatus shows each change. Of one key it ends when nothing is left to wait for.
func (a *app) watchStatus(ctx context.Context, s *api, args []string) error {
	last := map[string]string{}
	for {
		all, err := a.look(ctx, s, args)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // the caller has seen enough
		}
		if err != nil && fault.CodeOf(err) != fault.Unavailable {
			return err
		}
		if err != nil {
			fmt.Fprintln(a.err, "the server does not answer; trying again")
		}
		for _, p := range all {
			if err := a.showChange(p, last); err != nil {
				return err
			}
		}
		if len(args) == 1 && len(all) == 1 && settled(all[0]) || !pause(ctx, pollEvery) {
			return nil
		}
	}
}

func (a *app) look(ctx context.Context, s *api, args []string) ([]*rotorv1.ProgressResponse, error) {
	if len(args) == 0 {
		return a.allProgress(ctx, s)
	}
	p, err := message(s.keys.Progress(ctx, request(a.ref(args[0]))))
	if err != nil {
		return nil, err
	}
	return []*rotorv1.ProgressResponse{p}, nil
}

func (a *app) showChange(p *rotorv1.ProgressResponse, last map[string]string) error {
	name, state := p.GetKey().GetName(), stateOf(p)
	if last[name] == state {
		return nil
	}
	last[name] = state
	if a.format == "json" || a.format == "yaml" {
		return a.showProgress(p)
	}
	_, err := fmt.Fprintln(a.out, printable(state))
	return err
}

func settled(p *rotorv1.ProgressResponse) bool {
	return p.GetKey().GetTarget() == 0 && len(p.GetBehind()) == 0
}
