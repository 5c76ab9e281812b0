package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

func newKey(a *app) *cobra.Command {
	return newNoun("key", "Make keys, see them, and change the state of their versions",
		newKeyCreate(a), newKeyList(a), newKeyShow(a), newKeySuspend(a), newKeyResume(a), newKeyCompromise(a), newKeyRetire(a), newKeyDestroy(a), newKeySchedule(a), newKeyCertificate(a),
		newKeyAlgorithms(a), newKeyPublic(a), newKeyImportParams(a), newKeyImport(a), newKeyExport(a), newKeyBackup(a), newKeyRestore(a), newKeyUndelete(a))
}

// keySpec is what a caller chooses about a new key.
type keySpec struct {
	purpose, custody, algorithm, owner, silence    string
	labels                                         []string
	originator, recipient                          time.Duration
	maxStale, maxWait, window, destroyWait, margin time.Duration
	approvals                                      uint32
	exportable                                     bool
	schedule                                       scheduleFlags
}

func newKeyCreate(a *app) *cobra.Command {
	var s keySpec
	c := &cobra.Command{
		Use:   "create NAME --purpose PURPOSE",
		Short: "Make a key with its first version",
		Long: `Make a key with its first version, which is primary at once. Purpose, custody and algorithm of a version never change. With custody
"server" the material never leaves the server; with "fleet" it is delivered to the instances that hold the key, so that they use it
without the network; with "hsm" it is made in a PKCS #11 token and never leaves it, and the server has it used there.`,
		Example: "  rotor key create records --purpose encrypt --custody fleet\n  rotor key create models --purpose wrap --label team=vision\n" +
			"  rotor key create tokens --purpose sign --margin 5m",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return a.createKey(c, args[0], s) },
	}
	f := c.Flags()
	f.StringVar(&s.purpose, "purpose", "", "encrypt (data), wrap (the data keys of files), sign (tokens, messages), mac; of key pairs decrypt (what others encrypt) or decapsulate (shared secrets); transit: of Vault's clients, and named MOUNT/NAME")
	f.BoolVar(&s.exportable, "exportable", false, "versions may leave sealed to a recipient, where rules allow it; never changes")
	f.StringVar(&s.custody, "custody", "", "server, fleet or hsm (default server)")
	f.StringVar(&s.algorithm, "algorithm", "", "algorithm (default: the purpose's; rotor key algorithms)")
	f.StringVar(&s.owner, "owner", "", "who answers for it (default: the caller)")
	f.StringArrayVar(&s.labels, "label", nil, "name=value, which rules may select by; may be repeated")
	f.StringVar(&s.silence, "silence", "", "what a rotation does about a silent instance: block waits for it, fence goes on at the end of its lease (default block)")
	f.Var(duration{&s.originator}, "protect-for", "originator-usage period: how long a version may protect (default unlimited)")
	f.Var(duration{&s.recipient}, "process-for", "recipient-usage period: how long a version may process (default unlimited)")
	f.Var(duration{&s.maxStale}, "max-stale", "an instance unheard of for so long stops using the key (default 25h)")
	f.Var(duration{&s.maxWait}, "max-wait", "a rotation that waits longer for an instance is shown as paused; it goes on once the instance is there (default 1h)")
	f.Var(duration{&s.window}, "window", "how long a promotion can be rolled back (default 1d)")
	f.Var(duration{&s.destroyWait}, "destroy-wait", "time between retirement and destruction (default 7d)")
	f.Var(duration{&s.margin}, "margin", "keys that sign, and keys of purpose transit: how long a new version is shown before it protects, for strangers who cache public keys (default 0s)")
	f.Uint32Var(&s.approvals, "destroy-approvals", 0, "distinct callers that must ask for a destruction (default 2)")
	s.schedule.add(f)
	return a.changes(c)
}

func (s keySpec) message(ns, name string) (*rotorv1.Key, error) {
	if s.purpose == "" {
		return nil, usage("--purpose", "one of encrypt, wrap, sign, mac, decrypt, decapsulate")
	}
	labels, err := parsePairs("label", s.labels)
	if err != nil {
		return nil, err
	}
	schedule, err := s.schedule.message()
	return &rotorv1.Key{
		Namespace: ns, Name: name, Purpose: s.purpose, Custody: s.custody, Algorithm: s.algorithm, Owner: s.owner, Labels: labels, Exportable: s.exportable,
		OriginatorNs: int64(s.originator), RecipientNs: int64(s.recipient),
		Rotation: &rotorv1.Rotation{
			Silence: s.silence, MaxStaleNs: int64(s.maxStale), MaxWaitNs: int64(s.maxWait), WindowNs: int64(s.window),
			DestroyWaitNs: int64(s.destroyWait), MarginNs: int64(s.margin), DestroyApprovals: s.approvals,
		},
		Schedule: schedule,
	}, err
}

func (a *app) createKey(c *cobra.Command, name string, s keySpec) error {
	m, err := s.message(a.namespace, name)
	if err != nil {
		return err
	}
	plan := fmt.Sprintf("create key %s: purpose %s and custody %s, which never change; algorithm %s", name, s.purpose, or(s.custody, "server"), or(s.algorithm, "the default"))
	if err := a.confirm(plan); err != nil {
		return err
	}
	api, err := a.connect()
	if err != nil {
		return err
	}
	defer api.close()
	k, err := message(api.keys.Create(c.Context(), request(&rotorv1.CreateRequest{Key: m})))
	if err != nil {
		return err
	}
	return a.showKey(k)
}

func newKeyList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the keys that you may see", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			api, err := a.connect()
			if err != nil {
				return err
			}
			defer api.close()
			keys, err := api.listKeys(c.Context(), a.namespace)
			if err != nil {
				return err
			}
			views, t := []keyView{}, table{header: []string{"name", "purpose", "custody", "algorithm", "primary", "versions", "owner"}}
			for _, k := range keys {
				v := viewKey(k)
				views = append(views, v)
				t.add(v.Name, v.Purpose, v.Custody, v.Algorithm, number(v.Primary), number(v.Count), v.Owner)
			}
			return a.show(views, t)
		},
	}
}

func newKeyShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show a key and its versions", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			api, err := a.connect()
			if err != nil {
				return err
			}
			defer api.close()
			k, err := message(api.keys.Get(c.Context(), request(a.ref(args[0]))))
			if err == nil {
				err = api.whole(c.Context(), k)
			}
			if err != nil {
				return err
			}
			return a.showKey(k)
		},
	}
}

func newKeySuspend(a *app) *cobra.Command {
	return a.newKeyChange("suspend", "Suspend a version: it is refused everywhere until it is resumed",
		"suspend version %d of key %s: nothing can use it until it is resumed", a.confirmPlain)
}

func newKeyResume(a *app) *cobra.Command {
	return a.newKeyChange("resume", "Bring a suspended version back", "resume version %d of key %s", a.confirmPlain)
}

func newKeyCompromise(a *app) *cobra.Command {
	return a.newKeyChange("compromise", "Mark a version as compromised: it never protects again, and processes only where that is allowed",
		"mark version %d of key %s as compromised", a.confirmName)
}

func (a *app) confirmPlain(plan, _ string) error { return a.confirm(plan) }

// newKeyChange makes a verb that sends an event of the same name about a version.
func (a *app) newKeyChange(event, short, plan string, confirm func(plan, name string) error) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: event + " NAME VERSION", Short: short, Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			n, err := parseVersion(args[1])
			if err != nil {
				return err
			}
			if err := confirm(fmt.Sprintf(plan, n, args[0]), args[0]); err != nil {
				return err
			}
			api, err := a.connect()
			if err != nil {
				return err
			}
			defer api.close()
			m := &rotorv1.ChangeRequest{Key: a.ref(args[0]), Version: n, Event: event, Reason: reason}
			k, err := message(api.keys.Change(c.Context(), request(m)))
			if err != nil {
				return err
			}
			return a.showKey(k)
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why; kept with the version")
	return a.changes(c)
}

func newKeyRetire(a *app) *cobra.Command {
	var undo bool
	c := &cobra.Command{
		Use:   "retire NAME VERSION",
		Short: "Withdraw a version that nothing needs any more, or bring it back",
		Long: `Withdraw a version from every instance. It is refused while the census finds anything under it, a data set cannot be counted, or an
instance has not acknowledged that another version protects. Until it is destroyed --undo brings it back.`,
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error { return a.retire(c, args[0], args[1], undo) },
	}
	c.Flags().BoolVar(&undo, "undo", false, "bring a retired version back")
	return a.changes(c)
}

func (a *app) retire(c *cobra.Command, name, version string, undo bool) error {
	n, err := parseVersion(version)
	if err != nil {
		return err
	}
	api, err := a.connect()
	if err != nil {
		return err
	}
	defer api.close()
	plan := fmt.Sprintf("bring version %d of key %s back", n, name)
	if !undo {
		plan = fmt.Sprintf("retire version %d of key %s: it is refused everywhere; rotor key retire %s %d --undo brings it back until it is destroyed\n  %s",
			n, name, name, n, a.counted(c.Context(), api, name))
	}
	if err := a.confirm(plan); err != nil {
		return err
	}
	k, err := message(api.keys.Retire(c.Context(), request(&rotorv1.RetireRequest{Key: a.ref(name), Version: n, Undo: undo})))
	if err != nil {
		return err
	}
	return a.showKey(k)
}

// counted says where a census of a key looks, because what is in no registered data set is not counted.
func (a *app) counted(ctx context.Context, s *api, name string) string {
	m, err := message(s.data.DataSets(ctx, request(&rotorv1.DataSetsRequest{})))
	if err != nil {
		return "which data sets are counted is unknown: " + err.Error()
	}
	var sets []string
	for _, d := range m.GetDataSets() {
		if d.GetKey().GetName() == name {
			sets = append(sets, d.GetName())
		}
	}
	if len(sets) == 0 {
		return "no data set is registered under this key: nothing is counted, so look for its ciphertexts yourself"
	}
	return "counted before: " + names(sets) + "; what is elsewhere is not counted"
}

// destroyView is what key destroy answers.
type destroyView struct {
	Destroyed bool    `json:"destroyed"`
	Waiting   string  `json:"waiting,omitempty"`
	Key       keyView `json:"key"`
}

func newKeyDestroy(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "destroy NAME VERSION",
		Short: "Ask for the destruction of a retired version",
		Long: `Ask for the destruction of a retired version. It happens when enough callers asked, the wait since the retirement is over, and a second
census is 0; until then the answer says what is missing. What is encrypted under a destroyed version is lost for ever.`,
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error { return a.destroy(c, args[0], args[1]) },
	}
	return a.changes(c)
}

func (a *app) destroy(c *cobra.Command, name, version string) error {
	n, err := parseVersion(version)
	if err != nil {
		return err
	}
	api, err := a.connect()
	if err != nil {
		return err
	}
	defer api.close()
	plan := fmt.Sprintf("destroy version %d of key %s: whatever is still under it is lost for ever\n  %s", n, name, a.counted(c.Context(), api, name))
	if err := a.confirmName(plan, name); err != nil {
		return err
	}
	m, err := message(api.keys.Destroy(c.Context(), request(&rotorv1.DestroyRequest{Key: a.ref(name), Version: n})))
	if err != nil {
		return err
	}
	v, outcome := destroyView{m.GetDestroyed(), m.GetWaiting(), viewKey(m.GetKey())}, "destroyed"
	if !v.Destroyed {
		outcome = "waiting for " + v.Waiting
	}
	return a.show(v, table{rows: [][]string{{name, number(n), outcome}}})
}

func or(s, instead string) string {
	if s == "" {
		return instead
	}
	return s
}

// keyView is a key as programs see it. Durations are in Go's form, times in RFC 3339.
type keyView struct {
	ID         string            `json:"id"`
	Namespace  string            `json:"namespace"`
	Name       string            `json:"name"`
	Purpose    string            `json:"purpose"`
	Custody    string            `json:"custody"`
	Algorithm  string            `json:"algorithm"`
	Owner      string            `json:"owner,omitempty"`
	Exportable bool              `json:"exportable,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
	Epoch      string            `json:"epoch"`
	Primary    uint32            `json:"primary"`
	Target     uint32            `json:"target,omitempty"`
	ProtectFor string            `json:"protect_for,omitempty"`
	ProcessFor string            `json:"process_for,omitempty"`
	Rotation   rotationView      `json:"rotation"`
	Schedule   *scheduleView     `json:"schedule,omitempty"`          // when it rotates by itself
	Required   []string          `json:"rotation_required,omitempty"` // why its primary version should be rotated away from
	Created    string            `json:"created"`
	BackedUp   string            `json:"backed_up,omitempty"` // the last backup of this key alone
	Next       uint32            `json:"next"`                // number of the next version
	Transit    *transitView      `json:"transit,omitempty"`   // of a key of purpose transit
	Count      int               `json:"version_count"`
	Versions   []versionView     `json:"versions"` // of list and of changes the newest 500, of show all
}

type rotationView struct {
	Silence     string `json:"silence"`
	MaxStale    string `json:"max_stale"`
	MaxWait     string `json:"max_wait"`
	Window      string `json:"window"`
	DestroyWait string `json:"destroy_wait"`
	Margin      string `json:"margin"`
	Approvals   uint32 `json:"destroy_approvals"`
}

type versionView struct {
	Number    uint32 `json:"number"`
	Handle    string `json:"handle"`
	Algorithm string `json:"algorithm"`
	State     string `json:"state"`
	Phase     string `json:"phase"`
	Created   string `json:"created"`
	Activated string `json:"activated,omitempty"`
	Retired   string `json:"retired,omitempty"`
	Origin    string `json:"origin,omitempty"`
	Since     string `json:"originated,omitempty"`
	Reason    string `json:"reason,omitempty"`
	Approvals uint32 `json:"destroy_approvals,omitempty"`
	Public    []byte `json:"public,omitempty"`
	Attempts  uint64 `json:"attempts,omitempty"` // to use it while it was retired: at least so many
	Material  string `json:"material,omitempty"` // of a destroyed version: withdrawn, or erased and since when

	Protected     uint64 `json:"protected"` // uses at servers
	Processed     uint64 `json:"processed"`
	LastProtected string `json:"last_protected,omitempty"`
	LastProcessed string `json:"last_processed,omitempty"`
}

// lastUse is when a version was last used at a server.
func (v versionView) lastUse() string { return max(v.LastProtected, v.LastProcessed) }

// materialOf says what became of a destroyed version's material.
func materialOf(v *rotorv1.Version) string {
	switch {
	case v.GetErased() != nil:
		return "erased " + moment(v.GetErased())
	case v.GetState() == "destroyed":
		return "withdrawn"
	}
	return ""
}

func viewKey(k *rotorv1.Key) keyView {
	r := k.GetRotation()
	v := keyView{
		ID: k.GetId(), Namespace: k.GetNamespace(), Name: k.GetName(), Purpose: k.GetPurpose(), Custody: k.GetCustody(), Algorithm: k.GetAlgorithm(),
		Owner: k.GetOwner(), Exportable: k.GetExportable(), Labels: k.GetLabels(), Epoch: fmt.Sprintf("%d.%d", k.GetIncarnation(), k.GetEpoch()), Primary: k.GetPrimary(),
		Target: k.GetTarget(), Versions: []versionView{}, ProtectFor: limited(k.GetOriginatorNs()), ProcessFor: limited(k.GetRecipientNs()), Created: moment(k.GetCreated()), BackedUp: moment(k.GetBackedUp()), Next: k.GetNext(),
		Count: max(int(k.GetVersionCount()), len(k.GetVersions())), Schedule: viewSchedule(k), Required: k.GetRotationRequired(), Transit: viewTransit(k.GetTransit()),
		Rotation: rotationView{
			r.GetSilence(), nanos(r.GetMaxStaleNs()), nanos(r.GetMaxWaitNs()), nanos(r.GetWindowNs()), nanos(r.GetDestroyWaitNs()),
			nanos(r.GetMarginNs()), r.GetDestroyApprovals(),
		},
	}
	for _, n := range k.GetVersions() {
		v.Versions = append(v.Versions, versionView{
			n.GetNumber(), fmt.Sprintf("%08x", n.GetHandle()), n.GetAlgorithm(), n.GetState(), n.GetPhase(), moment(n.GetCreated()),
			moment(n.GetActivated()), moment(n.GetRetired()), n.GetOrigin(), moment(n.GetOriginated()), n.GetReason(), n.GetApprovals(), n.GetPublic(),
			n.GetAttempts(), materialOf(n), n.GetProtected(), n.GetProcessed(), moment(n.GetLastProtected()), moment(n.GetLastProcessed()),
		})
	}
	return v
}

func nanos(n int64) string { return days(time.Duration(n)) }

func limited(n int64) string {
	if n == 0 {
		return ""
	}
	return nanos(n)
}

func (a *app) showKey(k *rotorv1.Key) error {
	v := viewKey(k)
	facts := table{rows: [][]string{
		{"name", v.Name}, {"namespace", v.Namespace}, {"id", v.ID}, {"purpose", v.Purpose}, {"custody", v.Custody}, {"algorithm", v.Algorithm},
		{"owner", v.Owner}, {"labels", labelText(k.GetLabels())}, {"primary", number(v.Primary)}, {"epoch", v.Epoch},
		{"protects for", or(v.ProtectFor, "ever")}, {"processes for", or(v.ProcessFor, "ever")}, {"silence", v.Rotation.Silence}, {"rollback window", v.Rotation.Window},
		{"may be exported", yesNo(v.Exportable)}, {"backed up", or(v.BackedUp, "never")}, {"rotates by itself", scheduleText(k.GetSchedule())},
	}}
	if k.GetRotation().GetMarginNs() > 0 {
		facts.add("new versions wait", v.Rotation.Margin)
	}
	facts.rows = append(facts.rows, v.Transit.rows()...)
	if k.GetDue() != nil {
		facts.add("next rotation", moment(k.GetDue()))
	}
	for _, why := range v.Required {
		facts.add("rotation required", why)
	}
	versions := table{header: []string{"version", "phase", "state", "handle", "algorithm", "activated", "protected", "processed", "last use", "reason"}}
	for _, n := range v.Versions {
		state := n.State
		if n.Material != "" {
			state += ", " + n.Material
		}
		if n.Attempts > 0 {
			state += fmt.Sprintf(", %d attempts", n.Attempts)
		}
		versions.add(number(n.Number), n.Phase, state, n.Handle, n.Algorithm, n.Activated, fmt.Sprint(n.Protected), fmt.Sprint(n.Processed), n.lastUse(), n.Reason)
	}
	return a.show(v, facts, versions)
}

func labelText(labels map[string]string) string {
	var out []string
	for _, name := range sorted(labels) {
		out = append(out, name+"="+labels[name])
	}
	return strings.Join(out, " ")
}
