package acl

import (
	"context"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/policy"
)

// defaultPolicy is the policy that every token has unless it says otherwise.
const defaultPolicy = "default"

// defaultText is that policy until somebody writes another: what a token may do about itself.
const defaultText = `# A token may look itself up, renew and revoke itself, and ask what it may do.
path "auth/token/lookup-self" { capabilities = ["read"] }
path "auth/token/renew-self" { capabilities = ["update"] }
path "auth/token/revoke-self" { capabilities = ["update"] }
path "sys/capabilities-self" { capabilities = ["update"] }
path "sys/internal/ui/resultant-acl" { capabilities = ["read"] }

# Leases are renewed and looked up by whoever knows them.
path "sys/renew" { capabilities = ["update"] }
path "sys/leases/renew" { capabilities = ["update"] }
path "sys/leases/lookup" { capabilities = ["update"] }

# A token has a place of its own, and may wrap answers and open what was wrapped for it.
path "cubbyhole/*" { capabilities = ["create", "read", "update", "delete", "list"] }
path "sys/wrapping/wrap" { capabilities = ["update"] }
path "sys/wrapping/lookup" { capabilities = ["update"] }
path "sys/wrapping/unwrap" { capabilities = ["update"] }

# Tools that touch no secret.
path "sys/tools/hash" { capabilities = ["update"] }
path "sys/tools/hash/*" { capabilities = ["update"] }
path "sys/tools/random" { capabilities = ["update"] }
path "sys/tools/random/*" { capabilities = ["update"] }
`

// wrappingText is what a wrapping token may do.
const wrappingText = `path "sys/wrapping/unwrap" { capabilities = ["update"] }
path "sys/wrapping/lookup" { capabilities = ["update", "read"] }
`

// Bounds of policies.
const maxStored = 1000 // policies of a namespace

// storedPolicy is the stored record.
type storedPolicy struct {
	Text string `json:"text"`
}

// policyName is what a policy can be called: it is a part of a path, and of a record's.
var policyName = regexp.MustCompile(`^[a-z0-9_]([a-z0-9_.@: -]{0,126}[a-z0-9_])?$`)

// builtIn are policies that cannot be written.
var builtIn = []string{policy.RootPolicy, "response-wrapping", "control-group"}

// text is the text of a policy. Call with mu held.
func (s *Service) text(ns, name string) (string, bool) {
	if r, ok := s.policies.Get(ns + "/" + name); ok {
		return r.Value.Text, true
	}
	switch name {
	case policy.RootPolicy:
		return "", true
	case defaultPolicy:
		return defaultText, true
	case "response-wrapping":
		return wrappingText, true
	}
	return "", false
}

// Policies lists the names of a namespace's policies. fault.Denied.
func (s *Service) Policies(ctx context.Context, c policy.Caller, ns string) ([]string, error) {
	if _, err := s.Guard.Admit(ctx, c, policy.ActPolicies, about(ns)); err != nil {
		return nil, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	set := map[string]bool{policy.RootPolicy: true, defaultPolicy: true}
	for id, r := range s.policies.Rows {
		if name, ok := strings.CutPrefix(id, ns+"/"); ok && !r.Deleted {
			set[name] = true
		}
	}
	return slices.Sorted(maps.Keys(set)), nil
}

// Policy is the text of a policy. fault.Denied, NotFound.
func (s *Service) Policy(ctx context.Context, c policy.Caller, ns, name string) (string, error) {
	if _, err := s.Guard.Admit(ctx, c, policy.ActPolicies, about(ns)); err != nil {
		return "", err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	text, ok := s.text(ns, strings.ToLower(name))
	if !ok {
		return "", fault.New(fault.NotFound, "policy "+name)
	}
	return text, nil
}

// WritePolicy stores a policy, which counts for the tokens that have it from the next request on. fault.Invalid, Denied, TooLarge.
func (s *Service) WritePolicy(ctx context.Context, c policy.Caller, ns, name, text string) error {
	p, err := s.Guard.Admit(ctx, c, policy.ActPolicyChange, about(ns))
	if err != nil {
		return err
	}
	name = strings.ToLower(name)
	switch {
	case slices.Contains(builtIn, name):
		return bad("cannot update %q policy", name)
	case !policyName.MatchString(name):
		return bad("a policy's name has at most 128 letters, digits, _ - . @ : and spaces, and begins and ends with a letter, digit or _")
	case strings.TrimSpace(text) == "":
		return bad("'policy' parameter not supplied or empty")
	}
	if _, err := policy.ParsePathPolicy(name, text); err != nil {
		return err
	}
	w, err := guard.Put(policyPrefix+ns+"/"+name, storedPolicy{text})
	if err != nil {
		return err
	}
	if err := s.roomFor(ns, name); err != nil {
		return err
	}
	return again(ctx, func() error {
		return s.commit(ctx, p, nil, []guard.Write{w}, map[string]string{"policy": name})
	})
}

// roomFor bounds the policies of a namespace. fault.TooLarge.
func (s *Service) roomFor(ns, name string) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	n := 0
	for id, r := range s.policies.Rows {
		if strings.HasPrefix(id, ns+"/") && !r.Deleted && id != ns+"/"+name {
			n++
		}
	}
	if n >= maxStored {
		return fault.New(fault.TooLarge, "policies").WithHint("at most %d in a namespace", maxStored)
	}
	return nil
}

// DeletePolicy forgets a policy; tokens that have it lose what it allowed at once. One that is not there is no error, as clients expect. fault.Denied, Invalid.
func (s *Service) DeletePolicy(ctx context.Context, c policy.Caller, ns, name string) error {
	p, err := s.Guard.Admit(ctx, c, policy.ActPolicyChange, about(ns))
	if err != nil {
		return err
	}
	if name = strings.ToLower(name); name == defaultPolicy || slices.Contains(builtIn, name) {
		return bad("cannot delete %s policy", name)
	}
	if !policyName.MatchString(name) {
		return nil
	}
	return s.remove(ctx, p, policyPrefix+ns+"/"+name, map[string]string{"policy": name, "event": "delete"})
}

// remove deletes a record that may not be there.
func (s *Service) remove(ctx context.Context, p *guard.Permit, path string, detail map[string]string) error {
	return again(ctx, func() error {
		r, err := s.Guard.Get(ctx, path)
		if fault.CodeOf(err) == fault.NotFound {
			return nil
		}
		if err != nil {
			return err
		}
		return s.commit(ctx, p, []guard.Cond{{Path: path, Rev: r.Rev}}, []guard.Write{{Path: path, Delete: true}}, detail)
	})
}

// Capabilities are what the policies of a caller's token give at some paths.
func (s *Service) Capabilities(c policy.Caller, ns string, paths []string) map[string][]string {
	out := map[string][]string{}
	for _, path := range paths {
		out[path] = c.ACL.Capabilities(ns, path)
	}
	return out
}
