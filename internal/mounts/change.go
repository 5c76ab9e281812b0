package mounts

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
)

// Change is what Tune sets; nil leaves what is there.
type Change struct {
	Description *string
	Options     map[string]string // replaces all
	Settings    func(*Settings)   // changes what it is given
}

// clean is a path with one slash at its end and none before it.
func clean(path string) string { return strings.Trim(path, "/") + "/" }

// ValidPath says whether something can be mounted there: at most MaxPath bytes and 8 segments of letters, digits, "_", "-" and ".", none of them "." or "..".
func ValidPath(path string) bool {
	segments := strings.Split(strings.Trim(path, "/"), "/")
	if len(path) > MaxPath || len(segments) > maxSegments {
		return false
	}
	for _, s := range segments {
		odd := strings.ContainsFunc(s, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' && r != '-' && r != '.'
		})
		if strings.Trim(s, ".") == "" || odd {
			return false
		}
	}
	return true
}

// Types are those that can be mounted.
func Types(auth bool) []string {
	if auth {
		return []string{AppRole, Userpass, JWT, Kubernetes, Cert}
	}
	return []string{Transit}
}

// reserved are the first segments below which no secret engine is mounted.
var reserved = []string{"sys/", "auth/", "audit/", "cubbyhole/", "identity/"}

// Enable mounts something. Its path, type, description, options and settings are the caller's; accessor and UUID are made. fault.Invalid, Exists,
// NotBuilt for a type that there is not, TooLarge, Denied, NotFound when there is no such namespace.
func (s *Service) Enable(ctx context.Context, c policy.Caller, ns keyring.Namespace, m Mount) (Mount, error) {
	p, err := s.admit(ctx, c, ns)
	if err != nil {
		return Mount{}, err
	}
	m.Path, m.BuiltIn = clean(m.Path), false
	if err := m.mountable(); err != nil {
		return Mount{}, err
	}
	if err := s.ofNamespace(ns, m); err != nil {
		return Mount{}, err
	}
	m.Accessor, m.UUID = accessor(m, random(4)), uuid(random(16))
	err = s.change(ctx, p, ns, map[string]string{"event": "enable", "mount": m.Full(), "type": m.Type}, func(all []Mount) ([]Mount, error) {
		if other, ok := m.clash(append(s.builtIn(ns), all...)); ok {
			return nil, fault.New(fault.Exists, "path is already in use at "+other)
		}
		if len(all) >= MaxMounts {
			return nil, fault.New(fault.TooLarge, "mounts").WithHint("at most %d in a namespace", MaxMounts)
		}
		return append(all, m), nil
	})
	return m, err
}

// clash finds the path of another mount, or one that it is on its way to, that lies below or above this mount's.
func (m Mount) clash(all []Mount) (path string, ok bool) {
	for _, o := range all {
		if o.Accessor == m.Accessor {
			continue
		}
		for _, path := range []string{o.Path, o.To} {
			full := Mount{Path: path, Auth: o.Auth}.Full()
			if path != "" && (strings.HasPrefix(full, m.Full()) || strings.HasPrefix(m.Full(), full)) {
				return path, true
			}
		}
	}
	return "", false
}

func (m Mount) mountable() error {
	switch {
	case !ValidPath(m.Path):
		return fault.New(fault.Invalid, fmt.Sprintf("path %.100q", m.Path)).WithHint("at most %d bytes, %d segments of letters, digits, _, - and .", MaxPath, maxSegments)
	case !m.Auth && slices.ContainsFunc(reserved, func(r string) bool { return strings.HasPrefix(m.Path, r) }):
		return fault.New(fault.Invalid, fmt.Sprintf("cannot mount %q", m.Path))
	case m.Type == "":
		return fault.New(fault.Invalid, "backend type must be specified as a string")
	case m.Type == Token || m.Type == System || m.Type == Cubbyhole || m.Type == Identity:
		return fault.New(fault.Invalid, fmt.Sprintf("mount type of %q is not mountable", m.Type))
	case !slices.Contains(Types(m.Auth), m.Type):
		return fault.New(fault.NotBuilt, fmt.Sprintf("plugin not found in the catalog: %.64s", m.Type)).WithHint("there are %s", strings.Join(Types(m.Auth), ", "))
	}
	return m.check()
}

// check bounds what clients set.
func (m Mount) check() error {
	c := m.Settings
	for name, list := range map[string][]string{
		"audit_non_hmac_request_keys": c.AuditNonHMACRequest, "audit_non_hmac_response_keys": c.AuditNonHMACResponse, "passthrough_request_headers": c.PassthroughHeaders,
		"allowed_response_headers": c.AllowedResponseHeaders, "allowed_managed_keys": c.AllowedManagedKeys, "options": slices.Concat(slices.Collect(maps.Keys(m.Options)), slices.Collect(maps.Values(m.Options))),
		"description": {m.Description},
	} {
		text := strings.Join(list, "")
		if len(list) > 2*maxElements || len(text) > maxText {
			return fault.New(fault.TooLarge, name).WithHint("at most %d elements, %d bytes", maxElements, maxText)
		}
		if !utf8.ValidString(text) {
			return fault.New(fault.Invalid, name).WithHint("UTF-8 is needed")
		}
	}
	bad := func(name, hint string) error { return fault.New(fault.Invalid, name).WithHint("%s", hint) }
	for _, seconds := range []int64{c.DefaultLease, c.MaxLease, c.UserLockoutDuration, c.UserLockoutCounterReset} {
		if seconds < 0 || seconds > int64(maxLease/time.Second) {
			return bad("lease", "0 to 10 years")
		}
	}
	switch {
	case c.MaxLease > 0 && c.DefaultLease > c.MaxLease:
		return fault.New(fault.Invalid, fmt.Sprintf("backend max lease TTL of %d would be less than backend default lease TTL of %d", c.MaxLease, c.DefaultLease))
	case !slices.Contains([]string{"", "hidden", "unauth"}, c.ListingVisibility):
		return fault.New(fault.Invalid, "listing_visibility").WithHint("hidden or unauth")
	case !slices.Contains([]string{"", "default-service", "default-batch", "service", "batch"}, c.TokenType):
		return fault.New(fault.Invalid, "token_type").WithHint("default-service, default-batch, service or batch")
	}
	return nil
}

// Disable unmounts something, with what is below it. One that is not there is no error, as clients expect. What came below it between the look at it
// and the end of the mount stays in the store, unseen, and is there again with a mount of that path: nothing is lost. fault.Invalid, Denied, InUse.
func (s *Service) Disable(ctx context.Context, c policy.Caller, ns keyring.Namespace, auth bool, path string) error {
	p, m, ok, err := s.admitAt(ctx, c, ns, auth, path)
	if err != nil {
		return err
	}
	switch {
	case !ok:
		return nil
	case m.BuiltIn && auth:
		return fault.New(fault.Invalid, "token credential backend cannot be disabled")
	case m.BuiltIn:
		return fault.New(fault.Invalid, fmt.Sprintf("cannot unmount %q", m.Path))
	}
	if s.Clear != nil {
		if err := s.Clear(ctx, c, ns, m); err != nil {
			return err
		}
	}
	return s.change(ctx, p, ns, map[string]string{"event": "disable", "mount": m.Full()}, func(all []Mount) ([]Mount, error) {
		return slices.DeleteFunc(all, func(o Mount) bool { return o.Full() == m.Full() && o.Accessor == m.Accessor }), nil
	})
}

// Tune changes what can be changed of a mount. fault.NotFound, Invalid, TooLarge, Denied.
func (s *Service) Tune(ctx context.Context, c policy.Caller, ns keyring.Namespace, auth bool, path string, change Change) error {
	p, m, ok, err := s.admitAt(ctx, c, ns, auth, path)
	if err != nil {
		return err
	}
	switch {
	case !ok:
		return fault.New(fault.NotFound, fmt.Sprintf("tune of path %q failed: no mount entry found", clean(path)))
	case m.BuiltIn && !auth:
		return fault.New(fault.Invalid, fmt.Sprintf("cannot tune %q", m.Path))
	}
	return s.change(ctx, p, ns, map[string]string{"event": "tune", "mount": m.Full()}, func(all []Mount) ([]Mount, error) {
		i := slices.IndexFunc(all, func(o Mount) bool { return o.Full() == m.Full() })
		if i < 0 && !m.BuiltIn {
			return nil, fault.New(fault.NotFound, fmt.Sprintf("tune of path %q failed: no mount entry found", m.Path))
		}
		if i < 0 {
			all, i = append(all, m), len(all)
		}
		if change.Description != nil {
			all[i].Description = *change.Description
		}
		if change.Options != nil {
			all[i].Options = change.Options
		}
		if change.Settings != nil {
			change.Settings(&all[i].Settings)
		}
		return all, all[i].check()
	})
}

// Remount moves a mount to another path, with what is below it, and returns it. From the first commit on nothing below it is served, until the last one, which
// gives it the new path; after a crash between them the same call goes on. What another server makes below the old path before it hears of the first is there again
// with a mount of that path. fault.NotFound, Exists, Invalid, Denied.
func (s *Service) Remount(ctx context.Context, c policy.Caller, ns keyring.Namespace, auth bool, from, to string) (Mount, error) {
	p, m, ok, err := s.admitAt(ctx, c, ns, auth, from)
	if err != nil {
		return Mount{}, err
	}
	switch {
	case !ok:
		return Mount{}, fault.New(fault.NotFound, fmt.Sprintf("no matching mount at %q", Mount{Path: clean(from), Auth: auth}.Full()))
	case m.BuiltIn:
		return Mount{}, fault.New(fault.Invalid, fmt.Sprintf("cannot remount %q", m.Full()))
	case m.To != "" && m.To != clean(to):
		return Mount{}, fault.New(fault.Exists, fmt.Sprintf("%q is on its way to %q", m.Path, m.To))
	}
	next := m
	next.Path, next.To = clean(to), ""
	if next.Moved = (Moved{m.Moved.ID, m.Path}); m.To == "" {
		next.Moved.ID = uuid(random(16))
	}
	if !auth && slices.ContainsFunc(reserved, func(r string) bool { return strings.HasPrefix(next.Path, r) }) {
		return Mount{}, fault.New(fault.Invalid, "cannot remount to destination "+next.Path)
	}
	if err := next.mountable(); err != nil {
		return Mount{}, err
	}
	if err := s.ofNamespace(ns, next); err != nil {
		return Mount{}, err
	}
	if m.Path == next.Path {
		return Mount{}, fault.New(fault.Exists, fmt.Sprintf("path already in use at %q", next.Full()))
	}
	moves := map[string]string{"event": "move", "mount": m.Full(), "to": next.Full()}
	edit := func(to Mount) error {
		return s.change(ctx, p, ns, moves, func(all []Mount) ([]Mount, error) {
			if other, ok := next.clash(append(s.builtIn(ns), all...)); ok {
				return nil, fault.New(fault.Exists, fmt.Sprintf("path already in use at %q", Mount{Path: other, Auth: auth}.Full()))
			}
			i := slices.IndexFunc(all, func(o Mount) bool { return o.Accessor == m.Accessor })
			if i < 0 {
				return nil, fault.New(fault.NotFound, fmt.Sprintf("no matching mount at %q", m.Full()))
			}
			all[i].Path, all[i].To, all[i].Moved = to.Path, to.To, to.Moved
			return all, nil
		})
	}
	away := next
	away.Path, away.To = m.Path, next.Path
	if err := edit(away); err != nil {
		return Mount{}, err
	}
	if s.Move != nil {
		if err := s.Move(ctx, c, ns, m, next.Path); err != nil {
			return Mount{}, errors.Join(err, edit(Mount{Path: m.Path})) // what has moved already is found by the next try
		}
	}
	return next, edit(next)
}

func (s *Service) admit(ctx context.Context, c policy.Caller, ns keyring.Namespace) (*guard.Permit, error) {
	p, err := s.Guard.Admit(ctx, c, policy.ActMountChange, policy.Resource{Namespace: string(ns)})
	if err != nil {
		return nil, err
	}
	if !s.Guard.HasNamespace(string(ns)) {
		return nil, fault.New(fault.NotFound, "namespace "+string(ns))
	}
	return p, nil
}

// admitAt is admit with what is mounted at a path now, also by another server.
func (s *Service) admitAt(ctx context.Context, c policy.Caller, ns keyring.Namespace, auth bool, path string) (p *guard.Permit, m Mount, ok bool, err error) {
	if p, err = s.admit(ctx, c, ns); err != nil {
		return nil, Mount{}, false, err
	}
	if err := s.Refresh(ctx, ns); err != nil {
		return nil, Mount{}, false, err
	}
	m, ok = s.Mounted(ns, auth, path)
	return p, m, ok, nil
}

// Refresh reads the mounts of a namespace anew, for whoever has to know what another server committed just now.
func (s *Service) Refresh(ctx context.Context, ns keyring.Namespace) error {
	r, err := s.Guard.Get(ctx, prefix+string(ns))
	if fault.CodeOf(err) == fault.NotFound {
		return nil
	}
	if err != nil {
		return err
	}
	return s.take(guard.Change{Record: r})
}

// change commits what edit makes of the mounts of a namespace, again while somebody else changes them.
func (s *Service) change(ctx context.Context, p *guard.Permit, ns keyring.Namespace, detail map[string]string, edit func([]Mount) ([]Mount, error)) error {
	path := prefix + string(ns)
	for {
		r, err := s.Guard.Get(ctx, path)
		if err != nil && fault.CodeOf(err) != fault.NotFound {
			return err
		}
		all, err := s.decode(ns, r.Value)
		if err != nil {
			return err
		}
		if all, err = edit(all); err != nil {
			return err
		}
		value, err := json.Marshal(record{all})
		if err != nil {
			return fmt.Errorf("encode mounts: %w", err)
		}
		if len(value) > maxRecord {
			return fault.New(fault.TooLarge, "mounts").WithHint("those of a namespace have at most %d bytes together", maxRecord)
		}
		rev, err := p.Commit(ctx, []guard.Cond{{Path: path, Rev: r.Rev}}, []guard.Write{{Path: path, Value: value}}, detail)
		if err == nil {
			return s.take(guard.Change{Record: guard.Record{Path: path, Value: value, Rev: rev}})
		}
		if fault.CodeOf(err) != fault.Conflict {
			return err
		}
		if err := ctx.Err(); err != nil {
			return fault.Wrap(fault.Canceled, "mounts", err)
		}
	}
}
