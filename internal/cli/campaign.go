package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/rotorkms/rotor/internal/fault"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

func newCampaign(a *app) *cobra.Command {
	return newNoun("campaign", "Move data to another version of its key", newCampaignStart(a), newCampaignWatch(a))
}

// campaignView is a campaign as programs see it. Counts are of ciphertexts.
type campaignView struct {
	ID      string `json:"id"`
	Phase   string `json:"phase"`
	Scanned uint64 `json:"scanned"`
	Moved   uint64 `json:"moved"`
	Skipped uint64 `json:"skipped"` // were there already
	Lost    uint64 `json:"lost"`    // races that a writer won; seen again in the next pass
	Failed  uint64 `json:"failed"`
	Total   uint64 `json:"total"`
	Error   string `json:"error,omitempty"`
	Done    bool   `json:"done"`
}

func viewCampaign(m *rotorv1.Campaign) campaignView {
	return campaignView{
		m.GetId(), m.GetPhase(), m.GetScanned(), m.GetMoved(), m.GetSkipped(), m.GetLost(), m.GetFailed(), m.GetTotal(), m.GetError(), m.GetDone(),
	}
}

func (a *app) showCampaign(m *rotorv1.Campaign) error {
	v := viewCampaign(m)
	t := table{header: []string{"id", "phase", "scanned", "moved", "skipped", "lost", "failed", "total"}}
	t.add(v.ID, v.Phase, number(v.Scanned), number(v.Moved), number(v.Skipped), number(v.Lost), number(v.Failed), number(v.Total))
	return a.show(v, t)
}

func newCampaignStart(a *app) *cobra.Command {
	var (
		target string
		rate   uint64
		watch  bool
	)
	c := &cobra.Command{
		Use:   "start KEY",
		Short: "Re-encrypt every registered data set of a key to a version",
		Long: `Re-encrypt every registered data set of a key, while it is being read and written. Each record is replaced only if nobody wrote it
meanwhile. The campaign is the server's and goes on when the command ends.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			m := &rotorv1.CampaignRequest{Key: a.ref(args[0]), PerSecond: rate}
			to := "its primary version"
			if target != "" {
				n, err := parseVersion(target)
				if err != nil {
					return err
				}
				m.Target, to = n, "version "+number(n)
			}
			if err := a.confirm(fmt.Sprintf("move all data under key %s to %s", args[0], to)); err != nil {
				return err
			}
			return a.startCampaign(c.Context(), m, watch)
		},
	}
	c.Flags().StringVar(&target, "target", "", "version to move to (default: the primary)")
	c.Flags().Uint64Var(&rate, "rate", 0, "ciphertexts a second at most (default: as fast as it goes)")
	c.Flags().BoolVar(&watch, "watch", false, "wait for its end")
	return a.changes(c)
}

func (a *app) startCampaign(ctx context.Context, m *rotorv1.CampaignRequest, watch bool) error {
	s, err := a.connect()
	if err != nil {
		return err
	}
	defer s.close()
	got, err := message(s.data.StartCampaign(ctx, request(m)))
	if err != nil {
		return err
	}
	if watch {
		return a.watchCampaign(ctx, s, got.GetId())
	}
	return a.showCampaign(got)
}

func newCampaignWatch(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "watch ID", Short: "Follow a campaign to its end", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			s, err := a.connect()
			if err != nil {
				return err
			}
			defer s.close()
			return a.watchCampaign(c.Context(), s, args[0])
		},
	}
}

func (a *app) watchCampaign(ctx context.Context, s *api, id string) error {
	bar := &progress{w: a.err}
	defer bar.end()
	var pace pace
	for {
		m, err := message(s.data.GetCampaign(ctx, request(&rotorv1.CampaignRef{Id: id})))
		switch {
		case ctx.Err() != nil:
			return fault.New(fault.Canceled, "watching campaign "+id).WithHint("it goes on in the server: rotor campaign watch %s", id)
		case fault.CodeOf(err) == fault.Unavailable:
			bar.at("the server does not answer; trying again")
		case err != nil:
			return err
		default:
			v := viewCampaign(m)
			bar.at(fmt.Sprintf("%s: %d of %d scanned, %d moved, %d failed%s", v.Phase, v.Scanned, v.Total, v.Moved, v.Failed, pace.left(v, time.Now())))
			if v.Done {
				bar.end()
				return a.endCampaign(m)
			}
		}
		pause(ctx, pollEvery)
	}
}

// pace estimates when a campaign ends, from what was scanned since it has been watched.
type pace struct {
	began time.Time
	from  uint64
}

// left says how long the rest takes at the pace so far; nothing while that is unknown, as in a pass after the first.
func (p *pace) left(v campaignView, now time.Time) string {
	if p.began.IsZero() {
		p.began, p.from = now, v.Scanned
	}
	if v.Done || v.Scanned <= p.from || v.Scanned >= v.Total {
		return ""
	}
	rest := float64(now.Sub(p.began)) * float64(v.Total-v.Scanned) / float64(v.Scanned-p.from)
	if rest > float64(maxETA) {
		return ""
	}
	return ", " + max(time.Duration(rest).Round(time.Second), time.Second).String() + " to go"
}

// maxETA is the longest time that is told.
const maxETA = 1000 * 24 * time.Hour

// endCampaign shows how a campaign ended; one that did not move everything is an error.
func (a *app) endCampaign(m *rotorv1.Campaign) error {
	if err := a.showCampaign(m); err != nil {
		return err
	}
	if m.GetError() == "" && m.GetFailed() == 0 {
		return nil
	}
	return fault.New(fault.InUse, "campaign "+m.GetId()).
		WithHint("%d ciphertexts could not be moved (%s); start it again once that is put right", m.GetFailed(), or(m.GetError(), "see the server's log"))
}
