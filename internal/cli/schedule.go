package cli

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/rotorkms/rotor/internal/keyring"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// scheduleFlags say when a key rotates by itself.
type scheduleFlags struct {
	every     time.Duration
	jitter    percent
	afterUses uint64
	windows   []string
}

func (s *scheduleFlags) add(f *pflag.FlagSet) {
	f.Var(duration{&s.every}, "rotate-every", "rotate by itself so long after the primary version was made: 90d, 36h, 30s (default never)")
	f.Var(&s.jitter, "rotate-jitter", "up to so much of that time earlier, the same at each server, so that keys of one age do not rotate together: 10%, at most 50%")
	f.Uint64Var(&s.afterUses, "rotate-after-uses", 0, "rotate by itself as soon as the primary version has protected so often at servers (default never)")
	f.StringArrayVar(&s.windows, "rotate-window", nil, `when such a rotation may begin: "Sat,Sun 02:00-05:00 Europe/Berlin", days and time zone can be left out; may be repeated (default always)`)
}

func (s *scheduleFlags) message() (*rotorv1.Schedule, error) {
	m := &rotorv1.Schedule{EveryNs: int64(s.every), JitterPercent: uint32(s.jitter), MaxUses: s.afterUses}
	for _, text := range s.windows {
		w, err := keyring.ParseWindow(text)
		if err != nil {
			return nil, err
		}
		m.Windows = append(m.Windows, w.String())
	}
	if m.EveryNs == 0 && m.MaxUses == 0 && (len(m.Windows) > 0 || m.JitterPercent > 0) {
		return nil, usage("--rotate-every", "say after how long, or with --rotate-after-uses after how many uses, a rotation is due")
	}
	return m, nil
}

// percent is a flag of whole percents: 10%.
type percent uint32

// String implements pflag.Value.
func (p *percent) String() string {
	if *p == 0 {
		return ""
	}
	return fmt.Sprintf("%d%%", *p)
}

// Type implements pflag.Value.
func (*percent) Type() string { return "percent" }

// Set implements pflag.Value.
func (p *percent) Set(s string) error {
	n, err := strconv.ParseUint(strings.TrimSuffix(s, "%"), 10, 7)
	if err != nil || n > keyring.MaxJitter {
		return fmt.Errorf("whole percents, from 0%% to %d%%", keyring.MaxJitter)
	}
	*p = percent(n)
	return nil
}

func newKeySchedule(a *app) *cobra.Command {
	var s scheduleFlags
	var off bool
	var margin time.Duration
	c := &cobra.Command{
		Use:   "schedule NAME",
		Short: "Say when a key rotates by itself, and how long a new version is shown first",
		Long: `Say when a key rotates by itself, in place of what was said before. A rotation that is due begins by itself, in a window if there are any, and
goes through the same gates as one that somebody asks for. What stands against it is shown by rotor status, and it is tried again.

With --margin alone the schedule stays. A version that is shown already goes by the new margin: with a shorter one it protects sooner.`,
		Example: "  rotor key schedule records --rotate-every 90d --rotate-jitter 10% --rotate-window \"Sat,Sun 02:00-05:00 Europe/Berlin\"\n" +
			"  rotor key schedule sessions --rotate-after-uses 1000000\n  rotor key schedule records --off\n  rotor key schedule tokens --margin 5m",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			r := &rotorv1.SetScheduleRequest{Key: a.ref(args[0])}
			if c.Flags().Changed("margin") {
				ns := int64(margin)
				r.MarginNs = &ns
			}
			return a.setSchedule(c, r, s, off)
		},
	}
	s.add(c.Flags())
	c.Flags().Var(duration{&margin}, "margin", "how long a new version is shown before it protects, for strangers who cache public keys (default as it was)")
	c.Flags().BoolVar(&off, "off", false, "do not rotate by itself any more")
	return a.changes(c)
}

func (a *app) setSchedule(c *cobra.Command, to *rotorv1.SetScheduleRequest, s scheduleFlags, off bool) error {
	m, err := s.message()
	if err != nil {
		return err
	}
	switch none := m.GetEveryNs() == 0 && m.GetMaxUses() == 0; {
	case none == off:
		to.Schedule = m
	case off || to.MarginNs == nil:
		return usage("--off", "say when the key rotates, or that it does not")
	}
	api, err := a.connect()
	if err != nil {
		return err
	}
	defer api.close()
	k, err := message(api.keys.Get(c.Context(), request(to.GetKey())))
	if err != nil {
		return err
	}
	if err := a.confirm(paceText(k, to)); err != nil {
		return err
	}
	if _, err := message(api.keys.SetSchedule(c.Context(), request(to))); err != nil {
		return err
	}
	if k, err = message(api.keys.Get(c.Context(), request(to.GetKey()))); err != nil { // with its next due time
		return err
	}
	return a.showKey(k)
}

// paceText says what of when a key rotates is about to change.
func paceText(k *rotorv1.Key, to *rotorv1.SetScheduleRequest) string {
	var lines []string
	if to.Schedule != nil {
		lines = append(lines, fmt.Sprintf("key %s rotates by itself: %s\n  before: %s", k.GetName(), scheduleText(to.GetSchedule()), scheduleText(k.GetSchedule())))
	}
	if to.MarginNs != nil {
		lines = append(lines, fmt.Sprintf("key %s shows a new version before it protects: %s\n  before: %s", k.GetName(), nanos(to.GetMarginNs()), nanos(k.GetRotation().GetMarginNs())))
	}
	return strings.Join(lines, "\n")
}

// scheduleView is when a key rotates by itself, as programs see it.
type scheduleView struct {
	Every     string   `json:"every,omitempty"`
	Jitter    uint32   `json:"jitter_percent,omitempty"`
	AfterUses uint64   `json:"after_uses,omitempty"`
	Windows   []string `json:"windows,omitempty"`
	Next      string   `json:"next,omitempty"` // when the next rotation begins by time
}

func viewSchedule(k *rotorv1.Key) *scheduleView {
	s := k.GetSchedule()
	if s == nil {
		return nil
	}
	return &scheduleView{limited(s.GetEveryNs()), s.GetJitterPercent(), s.GetMaxUses(), s.GetWindows(), moment(k.GetDue())}
}

// scheduleText says in one line when a key rotates by itself.
func scheduleText(m *rotorv1.Schedule) string {
	s := keyring.Schedule{Every: time.Duration(m.GetEveryNs()), Jitter: int(m.GetJitterPercent()), MaxUses: m.GetMaxUses()}
	for _, text := range m.GetWindows() {
		if w, err := keyring.ParseWindow(text); err == nil { // of a newer server with newer zones
			s.Windows = append(s.Windows, w)
		}
	}
	return s.String()
}
