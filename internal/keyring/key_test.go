package keyring_test

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/suite"
)

const (
	oup = 24 * time.Hour
	rup = 72 * time.Hour
)

func TestPeriods(t *testing.T) {
	k := keyIn(suite.Encrypt, keyring.Active, keyring.PhasePrimary)
	k.Periods = keyring.Periods{Originator: oup, Recipient: rup}
	for _, c := range []struct {
		at               time.Duration
		protect, process fault.Code
	}{
		{0, "", ""},
		{oup - 1, "", ""},
		{oup, fault.PeriodOver, ""},
		{rup - 1, fault.PeriodOver, ""},
		{rup, fault.PeriodOver, fault.PeriodOver},
		{10 * rup, fault.PeriodOver, fault.PeriodOver},
	} {
		now := t0.Add(c.at)
		if got := fault.CodeOf(k.MayProtect(k.At(0), now)); got != c.protect {
			t.Errorf("protect at %v: %q", c.at, got)
		}
		if got := fault.CodeOf(k.MayProcess(k.At(0), time.Time{}, now, false)); got != c.process {
			t.Errorf("process at %v: %q", c.at, got)
		}
	}
	s := k.Snapshot().Versions[0]
	if !s.NotAfter.Equal(t0.Add(oup)) || !s.Expires.Equal(t0.Add(rup)) {
		t.Errorf("snapshot says %v and %v", s.NotAfter, s.Expires)
	}
	if k.Periods = (keyring.Periods{}); k.MayProtect(k.At(0), t0.Add(1000*rup)) != nil || !k.Snapshot().Versions[0].NotAfter.IsZero() {
		t.Error("an unlimited period ends")
	}
	// No exception lifts the recipient-usage period.
	k.Periods = keyring.Periods{Originator: oup, Recipient: rup}
	for _, st := range []keyring.State{keyring.Suspended, keyring.Compromised, keyring.Deactivated} {
		v := keyIn(suite.Encrypt, st, keyring.PhaseDecryptOnly).At(0)
		if err := k.MayProcess(v, t0.Add(time.Minute), t0.Add(rup), true); fault.CodeOf(err) != fault.PeriodOver {
			t.Errorf("%s after its period: %v", st, err)
		}
	}
}

func TestResumeAfterTheOriginatorPeriodDeactivates(t *testing.T) {
	k := keyIn(suite.Encrypt, keyring.Suspended, keyring.PhasePrimary)
	k.Periods = keyring.Periods{Originator: oup, Recipient: rup}
	in, err := k.Apply(1, keyring.Resume, "", t0.Add(oup-1))
	if err != nil || in.At(0).State != keyring.Active || !in.At(0).Activated.Equal(t0) {
		t.Errorf("within: %+v, %v", in.At(0), err)
	}
	over, err := k.Apply(1, keyring.Resume, "", t0.Add(oup))
	if err != nil || over.At(0).State != keyring.Deactivated || !over.At(0).Deactivated.Equal(t0.Add(oup)) {
		t.Errorf("after: %+v, %v", over.At(0), err)
	}
}

// TestMayProcess is the whole table of state, phase and what is known about the data.
func TestMayProcess(t *testing.T) {
	before, after := t0.Add(time.Minute), t0.Add(90*time.Minute) // of the suspension, one hour after t0
	phases := []keyring.Phase{
		keyring.PhaseStaged, keyring.PhaseDistributed, keyring.PhasePrimary, keyring.PhaseDecryptOnly, keyring.PhaseRetired, keyring.PhaseDestroyed, "", "unheard of",
	}
	for _, st := range append(keyring.States(), "", "unheard of") {
		for _, ph := range phases {
			for _, protected := range []time.Time{{}, before, t0.Add(time.Hour), after} {
				for _, allowed := range []bool{false, true} {
					k := keyIn(suite.Encrypt, st, ph)
					got := fault.CodeOf(k.MayProcess(k.At(0), protected, t0.Add(2*time.Hour), allowed))
					if want := mayProcess(st, ph, protected.Equal(before), allowed); got != want {
						t.Errorf("%s and %s, protected at %v, compromised allowed %v: %q, want %q", st, ph, protected, allowed, got, want)
					}
				}
			}
		}
	}
}

func mayProcess(st keyring.State, ph keyring.Phase, before, allowed bool) fault.Code {
	switch {
	case st == keyring.Destroyed || ph == keyring.PhaseDestroyed:
		return fault.VersionDestroyed
	case ph == keyring.PhaseRetired:
		return fault.VersionRetired
	case ph != keyring.PhaseDistributed && ph != keyring.PhasePrimary && ph != keyring.PhaseDecryptOnly:
		return fault.WrongState
	case st == keyring.Active, st == keyring.Deactivated, st == keyring.Suspended && before, st == keyring.Compromised && allowed:
		return ""
	}
	return fault.WrongState
}

func TestMayProtectOnlyActivePrimary(t *testing.T) {
	for _, st := range append(keyring.States(), "") {
		for _, ph := range []keyring.Phase{keyring.PhaseStaged, keyring.PhaseDistributed, keyring.PhasePrimary, keyring.PhaseDecryptOnly, keyring.PhaseRetired, keyring.PhaseDestroyed, ""} {
			k := keyIn(suite.Sign, st, ph)
			err := k.MayProtect(k.At(0), t0)
			if want := st == keyring.Active && ph == keyring.PhasePrimary; (err == nil) != want {
				t.Errorf("%s and %s: %v", st, ph, err)
			}
		}
	}
}

func TestValidate(t *testing.T) {
	valid := func() keyring.Key {
		return keyring.Key{
			Name: "records", Namespace: "default", Purpose: suite.Encrypt, Custody: keyring.CustodyFleet, Algorithm: suite.XAES256GCM,
			Owner: "Team A, ü", Labels: map[string]string{"team": "a", "empty": ""},
			Periods: keyring.Periods{Originator: oup, Recipient: oup}, Rotation: keyring.Rotation{Silence: keyring.Fence, Approvals: 16},
		}
	}
	if err := valid().Validate(); err != nil {
		t.Fatal(err)
	}
	many := map[string]string{}
	for i := range keyring.MaxLabels + 1 {
		many[fmt.Sprint(i)] = ""
	}
	long := strings.Repeat("x", keyring.MaxLabel+1)
	for name, c := range map[string]struct {
		spoil func(*keyring.Key)
		code  fault.Code
		field string
	}{
		"no name":            {func(k *keyring.Key) { k.Name = "" }, fault.Invalid, "name"},
		"name with a slash":  {func(k *keyring.Key) { k.Name = "a/b" }, fault.Invalid, "name"},
		"name of dots":       {func(k *keyring.Key) { k.Name = ".." }, fault.Invalid, "name"},
		"name, upper case":   {func(k *keyring.Key) { k.Name = "A" }, fault.Invalid, "name"},
		"name, NUL":          {func(k *keyring.Key) { k.Name = "a\x00b" }, fault.Invalid, "name"},
		"long name":          {func(k *keyring.Key) { k.Name = strings.Repeat("a", keyring.MaxName+1) }, fault.Invalid, "name"},
		"bad namespace":      {func(k *keyring.Key) { k.Namespace = "a/b" }, fault.Invalid, "namespace"},
		"no namespace":       {func(k *keyring.Key) { k.Namespace = "" }, fault.Invalid, "namespace"},
		"long owner":         {func(k *keyring.Key) { k.Owner = long }, fault.Invalid, "owner"},
		"owner, escape":      {func(k *keyring.Key) { k.Owner = "\x1b[2J" }, fault.Invalid, "owner"},
		"owner, no UTF-8":    {func(k *keyring.Key) { k.Owner = "\xff" }, fault.Invalid, "owner"},
		"many labels":        {func(k *keyring.Key) { k.Labels = many }, fault.Invalid, "labels"},
		"label without name": {func(k *keyring.Key) { k.Labels = map[string]string{"": "x"} }, fault.Invalid, "labels"},
		"long label":         {func(k *keyring.Key) { k.Labels = map[string]string{long: ""} }, fault.Invalid, "labels"},
		"long value":         {func(k *keyring.Key) { k.Labels = map[string]string{"a": long} }, fault.Invalid, "labels"},
		"label, new line":    {func(k *keyring.Key) { k.Labels = map[string]string{"a\nb": ""} }, fault.Invalid, "labels"},
		"value, no UTF-8":    {func(k *keyring.Key) { k.Labels = map[string]string{"a": "\xc3"} }, fault.Invalid, "labels"},
		"no purpose":         {func(k *keyring.Key) { k.Purpose = "" }, fault.Invalid, "purpose"},
		"unknown purpose":    {func(k *keyring.Key) { k.Purpose = "mine" }, fault.Invalid, "purpose"},
		"unknown algorithm":  {func(k *keyring.Key) { k.Algorithm = "ROT13" }, fault.AlgorithmForbidden, "algorithm"},
		"wrong algorithm":    {func(k *keyring.Key) { k.Algorithm = suite.Ed25519 }, fault.AlgorithmForbidden, "algorithm"},
		"unknown custody":    {func(k *keyring.Key) { k.Custody = "mine" }, fault.Invalid, "custody"},
		"no custody":         {func(k *keyring.Key) { k.Custody = "" }, fault.Invalid, "custody"},
		"fleet of signers":   {func(k *keyring.Key) { k.Purpose, k.Algorithm = suite.Sign, suite.Ed25519 }, fault.Invalid, "custody"},
		"fleet of wrappers":  {func(k *keyring.Key) { k.Purpose = suite.Wrap }, fault.Invalid, "custody"},
		"negative period":    {func(k *keyring.Key) { k.Periods.Originator = -1 }, fault.Invalid, "periods"},
		"short recipient":    {func(k *keyring.Key) { k.Periods.Recipient = oup - 1 }, fault.Invalid, "periods"},
		"recipient alone":    {func(k *keyring.Key) { k.Periods = keyring.Periods{Recipient: oup} }, fault.Invalid, "periods"},
		"unknown silence":    {func(k *keyring.Key) { k.Rotation.Silence = "shout" }, fault.Invalid, "rotation.silence"},
		"negative wait":      {func(k *keyring.Key) { k.Rotation.Wait = -1 }, fault.Invalid, "rotation"},
		"negative window":    {func(k *keyring.Key) { k.Rotation.Window = -1 }, fault.Invalid, "rotation"},
		"negative max stale": {func(k *keyring.Key) { k.Rotation.MaxStale = -1 }, fault.Invalid, "rotation"},
		"negative max wait":  {func(k *keyring.Key) { k.Rotation.MaxWait = -1 }, fault.Invalid, "rotation"},
		"negative margin":    {func(k *keyring.Key) { k.Rotation.Margin = -1 }, fault.Invalid, "rotation"},
		"negative approvals": {func(k *keyring.Key) { k.Rotation.Approvals = -1 }, fault.Invalid, "rotation.destroy_approvals"},
		"many approvals":     {func(k *keyring.Key) { k.Rotation.Approvals = 17 }, fault.Invalid, "rotation.destroy_approvals"},
	} {
		k := valid()
		c.spoil(&k)
		err := k.Validate()
		if fault.CodeOf(err) != c.code || !strings.Contains(err.Error(), "("+c.field) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestVersionAndHandle(t *testing.T) {
	k := threeVersions()
	for n := range uint32(5) {
		v, err := k.Version(n)
		if ok := n >= 1 && n <= 3; ok != (err == nil) || ok && v.Number != n {
			t.Errorf("version %d: %+v, %v", n, v, err)
		}
		if err != nil && fault.CodeOf(err) != fault.UnknownVersion {
			t.Errorf("version %d: %v", n, err)
		}
	}
	if _, err := k.Version(1 << 31); fault.CodeOf(err) != fault.UnknownVersion {
		t.Errorf("a huge number: %v", err)
	}
	for v := range k.All() {
		if got, err := k.ByHandle(v.Handle); err != nil || got.Number != v.Number {
			t.Errorf("handle %x: %+v, %v", v.Handle, got, err)
		}
	}
	if _, err := k.ByHandle(0); fault.CodeOf(err) != fault.UnknownVersion {
		t.Errorf("handle 0: %v", err)
	}
}

// threeVersions is a key in the middle of a rotation, whose first version was destroyed.
func threeVersions() keyring.Key {
	k := keyIn(suite.Sign, keyring.Destroyed, keyring.PhaseDestroyed)
	k = k.Append(
		keyring.Version{Number: 2, Handle: 22, Algorithm: suite.Ed25519, State: keyring.Active, Phase: keyring.PhasePrimary, Public: []byte{2}, Activated: t0}).Append(
		keyring.Version{Number: 3, Handle: 33, Algorithm: suite.ES256, State: keyring.PreActivation, Phase: keyring.PhaseStaged, Public: []byte{3}})
	k.Primary, k.Target, k.Epoch = 2, 3, keyring.Epoch{Incarnation: 1, Counter: 7}
	return k
}

func TestSnapshot(t *testing.T) {
	k := threeVersions()
	k.Periods = keyring.Periods{Originator: oup}
	want := keyring.Snapshot{
		Key: "k", Namespace: "default", Name: "k", Purpose: suite.Sign, Custody: keyring.CustodyServer, Silence: keyring.Block, MaxStale: 25 * time.Hour,
		Epoch: keyring.Epoch{Incarnation: 1, Counter: 7}, Primary: 2,
		Versions: []keyring.SnapshotVersion{
			{Number: 1, Handle: 0xabcd, Algorithm: suite.Ed25519, Phase: keyring.PhaseDestroyed, State: keyring.Destroyed, NotAfter: t0.Add(oup)},
			{Number: 2, Handle: 22, Algorithm: suite.Ed25519, Phase: keyring.PhasePrimary, State: keyring.Active, Public: []byte{2}, NotAfter: t0.Add(oup)},
		},
	}
	if diff := cmp.Diff(want, k.Snapshot()); diff != "" {
		t.Error("the staged version is not in it, the tombstone is:", diff)
	}
	for ph, live := range map[keyring.Phase]bool{
		keyring.PhaseStaged: false, keyring.PhaseDistributed: true, keyring.PhasePrimary: true, keyring.PhaseDecryptOnly: true,
		keyring.PhaseRetired: false, keyring.PhaseDestroyed: false, "": false,
	} {
		if got := (keyring.SnapshotVersion{Phase: ph}).Live(); got != live {
			t.Errorf("%s is live: %v", ph, got)
		}
	}
}

func TestCloneIsDeep(t *testing.T) {
	k := threeVersions()
	k.Labels = map[string]string{"a": "b"}
	k = k.Edit(1, func(v *keyring.Version) { v.Approved = []string{"x"} })
	c := k.Clone()
	c.Labels["a"] = "z"
	c = c.Edit(2, func(v *keyring.Version) { v.State = keyring.Compromised }).Edit(1, func(v *keyring.Version) { v.Approved = nil }).Without(3)
	if k.Labels["a"] != "b" || k.Len() != 3 || k.At(1).State != keyring.Active || k.At(0).Approved[0] != "x" || c.Len() != 2 || c.At(1).State != keyring.Compromised {
		t.Errorf("the original changed: %+v", k)
	}
}

func TestEpochs(t *testing.T) {
	e := func(i uint32, c uint64) keyring.Epoch { return keyring.Epoch{Incarnation: i, Counter: c} }
	ordered := []keyring.Epoch{{}, e(1, 0), e(1, 1), e(1, 1<<40), e(2, 0), e(2, 5)}
	for i, a := range ordered {
		for j, b := range ordered {
			if a.Less(b) != (i < j) || a.Compare(b) == 0 != (i == j) {
				t.Errorf("%v and %v", a, b)
			}
		}
	}
	if e(3, 4).Next() != e(3, 5) {
		t.Error("the next epoch is of the same incarnation")
	}
}

// TestMachine drives one key with random events, and holds the invariants of the standard after each.
func TestMachine(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := keyIn(rapid.SampledFrom(purposes).Draw(t, "purpose"), keyring.PreActivation, keyring.PhasePrimary)
		k.Periods = rapid.SampledFrom([]keyring.Periods{{}, {Originator: oup}, {Originator: oup, Recipient: rup}}).Draw(t, "periods")
		now, was := t0, k
		order := map[keyring.State]int{keyring.PreActivation: 0, keyring.Active: 1, keyring.Suspended: 1, keyring.Deactivated: 2, keyring.Compromised: 3, keyring.Destroyed: 4}
		t.Repeat(map[string]func(*rapid.T){
			"event": func(t *rapid.T) {
				e := rapid.SampledFrom(keyring.Events()).Draw(t, "event")
				next, err := k.Apply(1, e, "", now)
				if err != nil && next.At(0).State != k.At(0).State {
					t.Fatal("a refused event moved the version")
				}
				was, k = k, next
			},
			"time": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.Int64Range(0, int64(rup)).Draw(t, "step")))
			},
			"": func(t *rapid.T) {
				v, old := k.At(0), was.At(0)
				if order[v.State] < order[old.State] {
					t.Fatalf("%s came after %s", v.State, old.State)
				}
				if v.Number != 1 || v.Handle != old.Handle || !v.Created.Equal(old.Created) || !old.Activated.IsZero() && !v.Activated.Equal(old.Activated) {
					t.Fatalf("%+v after %+v", v, old)
				}
				if k.MayProtect(v, now) == nil && (v.State != keyring.Active || k.Periods.Originator > 0 && now.Sub(v.Activated) >= k.Periods.Originator) {
					t.Fatalf("protects: %+v at %v", v, now)
				}
				if k.MayProtect(v, now) == nil && k.MayProcess(v, time.Time{}, now, false) != nil {
					t.Fatalf("protects what it does not process: %+v", v)
				}
				if k.MayProcess(v, now, now, true) == nil && (v.State == keyring.Destroyed || v.State == keyring.PreActivation ||
					k.Periods.Recipient > 0 && !v.Activated.IsZero() && now.Sub(v.Activated) >= k.Periods.Recipient) {
					t.Fatalf("processes: %+v at %v", v, now)
				}
			},
		})
	})
}

// FuzzValidName compares with the rule as a regular expression, and holds that a name is one harmless element of a path.
func FuzzValidName(f *testing.F) {
	for _, s := range []string{"a", "a-b", "-a", "a.", "a..b", "A", "", "a/b", "ä", "a\x00", strings.Repeat("a", 64), strings.Repeat("a", 65)} {
		f.Add(s)
	}
	rule := regexp.MustCompile(`\A[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?\z`)
	f.Fuzz(func(t *testing.T, s string) {
		if got := keyring.ValidName(s); got != rule.MatchString(s) {
			t.Errorf("%q: %v", s, got)
		}
		if keyring.ValidName(s) && (strings.ContainsAny(s, "/\\\x00*") || s == "." || s == "..") {
			t.Errorf("%q", s)
		}
	})
}

// TestVersionsAreAList: they are stored as a list whose numbers go up; anything else is refused.
func TestVersionsAreAList(t *testing.T) {
	for text, want := range map[string]int{
		`null`: 0, `[]`: 0, `[{"number":1},{"number":7}]`: 2, `[{"number":2},{"number":2}]`: -1, `[{"number":2},{"number":1}]`: -1, `{}`: -1,
	} {
		var vs keyring.Versions
		err := json.Unmarshal([]byte(text), &vs)
		if got := vs.Len(); (err != nil) != (want < 0) || err == nil && got != want {
			t.Errorf("%s: %d versions, %v", text, got, err)
		}
	}
}
