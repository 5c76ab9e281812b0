package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/rotorkms/rotor/internal/fault"
)

// Bounds of a rules file.
const (
	maxFile  = 1 << 20
	maxRules = 1000
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
	Callers []string `yaml:"callers"`
	Actions []string `yaml:"actions"`
	Keys    *keys    `yaml:"keys"`
}

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

func (r rule) check() error {
	switch {
	case r.Name == "":
		return errors.New("a rule needs a name")
	case len(r.Callers) == 0 || len(r.Actions) == 0:
		return errors.New("a rule needs callers and actions")
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

// Allows finds the first rule that allows it. Nobody is allowed nothing, and there are no rules that deny.
func (r *Rules) Allows(c Caller, a Action, res Resource) (string, bool) {
	if r == nil || c.IsZero() {
		return "", false
	}
	for _, rule := range r.rules {
		if rule.covers(c, a, res) {
			return rule.Name, true
		}
	}
	return "", false
}

func (r rule) covers(c Caller, a Action, res Resource) bool {
	if !slices.Contains(r.Actions, string(a)) && !slices.Contains(r.Actions, "*") {
		return false
	}
	if !matchAny(r.Callers, c.Name) {
		return false
	}
	if res.Key == "" {
		return true // about no key
	}
	return r.Keys != nil && r.Keys.cover(res)
}

func (k keys) cover(res Resource) bool {
	if !Match(k.Namespace, res.Namespace) || !matchAny(k.Names, res.Key) {
		return false
	}
	for name, want := range k.Labels {
		if got, ok := res.Labels[name]; !ok || !Match(want, got) {
			return false
		}
	}
	return true
}

func matchAny(patterns []string, s string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return Match(p, s) })
}

// Match compares with a glob: * stands for any run of characters but "/", ** for any run. Everything else is literal and
// case counts.
func Match(pattern, s string) bool {
	for pattern != "" {
		star := strings.IndexByte(pattern, '*')
		if star < 0 {
			return pattern == s
		}
		if !strings.HasPrefix(s, pattern[:star]) {
			return false
		}
		s, pattern = s[star:], pattern[star+1:]
		deep := strings.HasPrefix(pattern, "*")
		pattern = strings.TrimLeft(pattern, "*")
		for i := 0; ; i++ {
			if Match(pattern, s[i:]) {
				return true
			}
			if i == len(s) || s[i] == '/' && !deep {
				return false
			}
		}
	}
	return s == ""
}

// Actions returns every action that a rule may name.
func Actions() []Action {
	return []Action{
		ActCreate, ActShow, ActEncrypt, ActDecrypt, ActWrap, ActUnwrap, ActRewrap, ActSign, ActVerify, ActMAC, ActDeliver,
		ActRotate, ActRollback, ActSuspend, ActCompromise, ActRetire, ActDestroy, ActCampaign, ActDataset, ActCensus,
		ActInstances, ActInvite, ActRemove, ActIssue, ActAudit, ActStatus,
	}
}
