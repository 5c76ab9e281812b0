package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/rotorkms/rotor/internal/fault"
)

// Bounds of a rules file.
const (
	maxFile  = 1 << 20
	maxRules = 1000
	// maxFields bounds the fields of one map, in practice the labels of a selector.
	maxFields = 100
)

// Rules is a parsed rules file. A nil *Rules denies everything.
type Rules struct {
	rules []rule
}

// document is the YAML form.
type document struct {
	Version int    `yaml:"version"`
	Rules   []rule `yaml:"rules"`
}

type rule struct {
	Name    string   `yaml:"name"`
	Effect  string   `yaml:"effect"` // "" or allow, or deny
	Callers []string `yaml:"callers"`
	Actions []string `yaml:"actions"`
	Keys    *keys    `yaml:"keys"`

	// Attributes are patterns of what the caller's credential must say of it; all have to fit.
	Attributes map[string]string `yaml:"attributes"`
}

// Effects of a rule.
const (
	effectAllow = "allow"
	effectDeny  = "deny"
)

// keys selects resources. Without it a rule covers only actions that are about no key.
type keys struct {
	Namespace string            `yaml:"namespace"`
	Names     []string          `yaml:"names"`
	Labels    map[string]string `yaml:"labels"`
}

// Parse reads a rules file strictly: an unknown field or action is an error that names file and line. fault.Invalid.
func Parse(name string, data []byte) (*Rules, error) {
	if len(data) > maxFile {
		return nil, fault.New(fault.TooLarge, name)
	}
	if err := plain(data); err != nil {
		return nil, fault.New(fault.Invalid, name).WithHint("%s", strings.TrimPrefix(err.Error(), "yaml: "))
	}
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.KnownFields(true)
	var doc document
	if err := d.Decode(&doc); err != nil && !errors.Is(err, io.EOF) {
		return nil, fault.New(fault.Invalid, name).WithHint("%s", strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if doc.Version != 1 {
		return nil, fault.New(fault.Invalid, name).WithHint("version: 1 is the only one that is known")
	}
	if len(doc.Rules) > maxRules {
		return nil, fault.New(fault.TooLarge, name).WithHint("at most %d rules", maxRules)
	}
	seen := map[string]bool{}
	for i, r := range doc.Rules {
		if err := r.check(); err != nil {
			return nil, fault.New(fault.Invalid, name).WithHint("rule %d (%q): %s", i+1, r.Name, err.Error())
		}
		if seen[r.Name] {
			return nil, fault.New(fault.Invalid, name).WithHint("rule name %q stands twice", r.Name)
		}
		seen[r.Name] = true
	}
	return &Rules{doc.Rules}, nil
}

// plain refuses, before anything is decoded, what rules have no use for and what costs the decoder more than its length: a second
// document, aliases, and maps with many fields, whose names it compares each with each.
func plain(data []byte) error {
	d := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	if err := d.Decode(&doc); errors.Is(err, io.EOF) {
		return nil
	} else if err != nil {
		return err
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return errors.New("a second document follows, which would not count")
	}
	return plainNode(&doc)
}

func plainNode(n *yaml.Node) error {
	switch {
	case n.Kind == yaml.AliasNode:
		return fmt.Errorf("line %d: aliases are not allowed", n.Line)
	case n.Kind == yaml.MappingNode && len(n.Content) > 2*maxFields:
		return fmt.Errorf("line %d: more than %d fields", n.Line, maxFields)
	}
	for _, c := range n.Content {
		if err := plainNode(c); err != nil {
			return err
		}
	}
	return nil
}

func (r rule) check() error {
	switch {
	case r.Name == "":
		return errors.New("a rule needs a name")
	case r.Effect != "" && r.Effect != effectAllow && r.Effect != effectDeny:
		return fmt.Errorf("effect %q is not known: allow or deny", r.Effect)
	case len(r.Callers) == 0 || len(r.Actions) == 0:
		return errors.New("a rule needs callers and actions")
	case slices.Contains(r.Callers, ""), r.Keys != nil && slices.Contains(r.Keys.Names, ""):
		return errors.New("an empty pattern covers nothing")
	case slices.Contains(slices.Collect(maps.Keys(r.Attributes)), ""):
		return errors.New("an attribute needs a name")
	case r.Keys != nil && (r.Keys.Namespace == "" || len(r.Keys.Names) == 0):
		return errors.New("keys needs namespace and names")
	}
	for _, a := range r.Actions {
		if a != "*" && !slices.Contains(Actions(), Action(a)) {
			return fmt.Errorf("action %q is not known", a)
		}
	}
	return nil
}

// Allows finds the first rule that allows it, unless one denies it. Nobody is allowed nothing.
func (r *Rules) Allows(c Caller, a Action, res Resource) (string, bool) {
	if r == nil || c.IsZero() || !slices.Contains(Actions(), a) {
		return "", false
	}
	if _, denied := r.Denies(c, a, res); denied {
		return "", false
	}
	return r.first(c, a, res, false)
}

// Denies finds the first rule that denies it, whatever else would allow it.
func (r *Rules) Denies(c Caller, a Action, res Resource) (string, bool) {
	if r == nil {
		return "", false
	}
	return r.first(c, a, res, true)
}

// first finds the first rule of an effect that covers something.
func (r *Rules) first(c Caller, a Action, res Resource, deny bool) (string, bool) {
	for _, rule := range r.rules {
		if (rule.Effect == effectDeny) == deny && rule.covers(c, a, res) {
			return rule.Name, true
		}
	}
	return "", false
}

func (r rule) covers(c Caller, a Action, res Resource) bool {
	if !slices.Contains(r.Actions, string(a)) && !slices.Contains(r.Actions, "*") {
		return false
	}
	if !r.names(c) {
		return false
	}
	if res.Key == "" { // about no key: "*" beside chosen keys means every action on those keys, not the whole cluster's
		return r.Keys == nil || r.Keys.everything() || slices.Contains(r.Actions, string(a))
	}
	return r.Keys != nil && r.Keys.cover(res)
}

// names says whether the rule is about a caller. One that denies is also about whatever tokens that caller has made: nobody gets around it by a child.
func (r rule) names(c Caller) bool {
	fits := func(name string, attributes map[string]string) bool {
		return matchAny(r.Callers, name) && has(r.Attributes, attributes)
	}
	if fits(c.Name, c.Attributes) {
		return true
	}
	return r.Effect == effectDeny && slices.ContainsFunc(c.Makers, func(m Maker) bool { return fits(m.Name, m.Attributes) })
}

func (k keys) everything() bool {
	return strings.Trim(k.Namespace, "*") == "" && slices.ContainsFunc(k.Names, func(n string) bool { return strings.Trim(n, "*") == "" }) && len(k.Labels) == 0
}

func (k keys) cover(res Resource) bool {
	if !Match(k.Namespace, res.Namespace) || !matchAny(k.Names, res.Key) {
		return false
	}
	return has(k.Labels, res.Labels)
}

// has says whether every named value is there and fits its pattern.
func has(patterns, values map[string]string) bool {
	for name, want := range patterns {
		if got, ok := values[name]; !ok || !Match(want, got) {
			return false
		}
	}
	return true
}

func matchAny(patterns []string, s string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return Match(p, s) })
}

// Match compares with a glob: * stands for any run of characters but "/", ** (or more) for any run. Everything else is literal and
// case counts. It takes at most len(pattern) x len(s) steps, whatever the pattern.
func Match(pattern, s string) bool {
	// reached[i]: the pattern so far matches s[:i].
	reached := make([]bool, len(s)+1)
	reached[0] = true
	for pattern != "" {
		run := len(pattern) - len(strings.TrimLeft(pattern, "*"))
		if run == 0 {
			literal, rest := pattern, ""
			if star := strings.IndexByte(pattern, '*'); star >= 0 {
				literal, rest = pattern[:star], pattern[star:]
			}
			for i := len(s); i >= 0; i-- {
				reached[i] = i >= len(literal) && reached[i-len(literal)] && s[i-len(literal):i] == literal
			}
			pattern = rest
			continue
		}
		for i := 1; i <= len(s); i++ {
			reached[i] = reached[i] || reached[i-1] && (run > 1 || s[i-1] != '/')
		}
		pattern = pattern[run:]
	}
	return reached[len(s)]
}

// Actions returns every action that a rule may name.
func Actions() []Action {
	return []Action{
		ActCreate, ActShow, ActEncrypt, ActDecrypt, ActWrap, ActUnwrap, ActRewrap, ActSign, ActVerify, ActMAC, ActDeliver,
		ActRotate, ActRollback, ActSuspend, ActCompromise, ActRetire, ActDestroy, ActCampaign, ActDataset, ActCensus,
		ActInstances, ActInvite, ActRemove, ActIssue, ActEncapsulate, ActDecapsulate, ActImport, ActExport, ActKeyBackup, ActKeyRestore, ActConfigure, ActDelete, ActReadSuspect, ActAudit, ActStatus, ActSeal, ActMetrics, ActProfile,
		ActRotateRoot, ActShred, ActBackup, ActRecover, ActGrant, ActGrants, ActAdmins, ActAdminInvite, ActAdminRemove,
		ActCredentials, ActCredentialCreate, ActCredentialChange, ActSessions, ActSessionRevoke,
		ActPolicies, ActPolicyChange, ActTokens, ActTokenCreate, ActTokenRevoke, ActUnwrapAnswer, ActAuthShow, ActAuthChange,
		ActTools, ActMounts, ActMountChange, ActNamespaces, ActNamespaceCreate, ActNamespaceDelete,
	}
}
