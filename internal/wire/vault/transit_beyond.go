package vault

import (
	"context"
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/lenient"
	"github.com/rotorkms/rotor/internal/policy"
)

// What Vault has no words for, at its paths: single versions, and schedules that say more than a time.

// Fields of schedules.
var (
	fieldJitter  = field{"auto_rotate_jitter", "int", "Percent of auto_rotate_period, at most 50, by which a rotation is due earlier at most.", false}
	fieldMaxUses = field{"auto_rotate_max_uses", "int", "The key rotates, too, when its latest version has protected so often; 0: not by uses.", false}
	fieldWindows = field{"auto_rotate_windows", "list", `In which a rotation by schedule may begin, such as "Sat,Sun 02:00-05:00 Europe/Berlin"; in one text with ; between. Empty: always.`, false}
	fieldMargin  = field{"rotation_margin", "duration", "How long a new version is shown before it protects (staged), so that readers who cache public keys have it; 0: it protects at once. A version that is staged already goes by it, too.", false}
	fieldReason  = field{"reason", "string", "Why; kept with the version.", false}
	fieldNumber  = field{"version", "int", "Number of the version.", true}
)

// versionRoutes change one version of a key.
func versionRoutes(c Config) []route {
	change := func(e keyring.Event, a policy.Action, doc string) route {
		return route{
			pattern: "keys/:name/versions/:version/" + string(e), doc: doc, fields: []field{fieldName, fieldNumber, fieldReason},
			ops:     map[operation]handler{opUpdate: func(ctx context.Context, r *request) (*response, error) { return c.changeVersion(ctx, r, e) }},
			needs:   every(key(a)),
			differs: "Vault does not have it.",
		}
	}
	return []route{
		change(keyring.Suspend, policy.ActSuspend, "Suspends one version: it is refused until it is resumed, and the others go on."),
		change(keyring.Resume, policy.ActSuspend, "Takes a suspended version up again."),
		change(keyring.Compromise, policy.ActCompromise, "Revokes one version for good: what it protected is refused, and if it was the latest another takes its place at once. The others go on."),
	}
}

func (c Config) changeVersion(ctx context.Context, r *request, e keyring.Event) (*response, error) {
	n, err := strconv.ParseUint(r.vars["version"], 10, 32)
	if err != nil {
		return nil, bad("the version is a number from 1 on")
	}
	k, err := c.KMS.Change(stays(ctx), r.caller, r.named(), uint32(n), e, r.str("reason"))
	if err != nil {
		return nil, noKey(err)
	}
	return &response{data: c.keyData(k, k.NextNumber()-min(k.NextNumber(), rotatedVersions))}, nil
}

// scheduled are the members of a request that say when a key rotates by itself.
func (r *request) scheduled() (ch kms.ScheduleChange, err error) {
	if r.has("auto_rotate_period") {
		every, err := r.period()
		if err != nil {
			return ch, err
		}
		ch.Every = &every
	}
	if r.has("auto_rotate_jitter") {
		n, err := r.whole("auto_rotate_jitter", 0)
		if err != nil || n < 0 || n > keyring.MaxJitter {
			return ch, bad("auto_rotate_jitter is 0 to %d percent", keyring.MaxJitter)
		}
		percent := int(n)
		ch.Jitter = &percent
	}
	if r.has("auto_rotate_max_uses") {
		n, err := r.whole("auto_rotate_max_uses", 0)
		if err != nil || n < 0 {
			return ch, bad("auto_rotate_max_uses is a number of uses, or 0")
		}
		uses := uint64(n)
		ch.MaxUses = &uses
	}
	if r.has("auto_rotate_windows") {
		ch.Windows, err = r.windows()
	}
	return ch, err
}

// period is the time between two rotations that a request asks for.
func (r *request) period() (time.Duration, error) {
	d, err := r.span("auto_rotate_period")
	if err == nil && d%time.Second != 0 {
		err = bad("auto rotate period must be 0 to disable or at least a second")
	}
	return d, err
}

// margin is how long a request wants new versions to be shown before they protect; nil when it does not say.
func (r *request) margin() (*time.Duration, error) {
	if !r.has("rotation_margin") {
		return nil, nil
	}
	d, err := r.span("rotation_margin")
	if err != nil || d < 0 || d%time.Second != 0 {
		return nil, bad("rotation_margin is a duration in whole seconds, or 0")
	}
	return &d, nil
}

// windows are a list or one text, which has a semicolon between them: days have commas.
func (r *request) windows() (*[]keyring.Window, error) {
	var texts []lenient.Text
	if b := r.body["auto_rotate_windows"]; len(b) > 0 && b[0] == '[' {
		if err := json.Unmarshal(b, &texts); err != nil {
			return nil, bad("auto_rotate_windows is a list of texts")
		}
	} else {
		if strings.Count(r.str("auto_rotate_windows"), ";") >= maxElements {
			return nil, bad("auto_rotate_windows has at most %d windows", keyring.MaxWindows)
		}
		for one := range strings.SplitSeq(r.str("auto_rotate_windows"), ";") {
			texts = append(texts, lenient.Text(one))
		}
	}
	out := []keyring.Window{}
	for _, one := range texts {
		if one = lenient.Text(strings.TrimSpace(string(one))); one == "" {
			continue
		}
		if len(out) == keyring.MaxWindows {
			return nil, bad("auto_rotate_windows has at most %d windows", keyring.MaxWindows)
		}
		w, err := keyring.ParseWindow(string(one))
		if err != nil {
			return nil, err
		}
		out = append(out, w)
	}
	return &out, nil
}

// scheduleData adds when a key rotates by itself.
func scheduleData(s keyring.Schedule, data map[string]any) {
	windows := make([]string, 0, len(s.Windows))
	for _, w := range s.Windows {
		windows = append(windows, w.String())
	}
	data["auto_rotate_period"], data["auto_rotate_jitter"] = int64(s.Every/time.Second), s.Jitter
	data["auto_rotate_max_uses"], data["auto_rotate_windows"] = s.MaxUses, windows
}
