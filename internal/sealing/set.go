// Package sealing is the root of trust in use: it makes the sealers that a store's wrap set names, collects the shares of custodians,
// changes the set, makes new shares, and watches whether the roots can still be reached.
package sealing

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/seal/every"
	"github.com/rotorkms/rotor/internal/seal/shamir"
)

// Set is the members of a wrap set that a server can ask, and why it cannot ask the others.
type Set struct {
	Automatic []seal.Sealer     // open by themselves
	People    []*shamir.Sealer  // collect shares, for a member of their own or for a composition
	Composed  []*every.Sealer   // of people and others
	Missing   map[string]string // ID of a member -> why this server cannot ask it
}

// Sealers are all of them in the order in which to try them: those that need nobody first.
func (s Set) Sealers() []seal.Sealer {
	all := slices.Clone(s.Automatic)
	for _, p := range s.Composed {
		all = append(all, p)
	}
	for _, p := range s.People {
		all = append(all, p)
	}
	return all
}

// find returns a sealer by ID.
func (s Set) find(id string) (seal.Sealer, bool) {
	all := s.Sealers()
	i := slices.IndexFunc(all, func(s seal.Sealer) bool { return s.ID() == id })
	if i < 0 {
		return nil, false
	}
	return all[i], true
}

// Members makes the sealers of the wraps that stand in a store, out of those that the configuration gives by name and of what the wraps
// themselves say: sets of shares and compositions need no configuration.
func Members(wraps map[string][]byte, named map[string]seal.Sealer) Set {
	set := Set{Missing: map[string]string{}}
	byID := map[string]seal.Sealer{}
	for _, s := range named {
		byID[s.ID()] = s
	}
	for _, id := range slices.Sorted(maps.Keys(wraps)) {
		switch {
		case byID[id] != nil:
			set.Automatic = append(set.Automatic, byID[id])
		case strings.HasPrefix(id, shamir.Prefix):
			if s, err := shamir.Open(wraps[id]); err == nil && s.ID() == id {
				set.People = append(set.People, s)
			} else {
				set.Missing[id] = "its wrap is damaged"
			}
		case strings.HasPrefix(id, every.Prefix):
			set.compose(id, wraps[id], byID)
		default:
			set.Missing[id] = "the configuration of this server does not name it"
		}
	}
	return set
}

// compose makes a composition of its wrap, which holds those of the parts in the order of their IDs.
func (s *Set) compose(id string, wrap []byte, byID map[string]seal.Sealer) {
	blobs, _, _, err := every.Split(wrap)
	ids := strings.Split(strings.TrimSuffix(strings.TrimPrefix(id, every.Prefix), ")"), " & ")
	if err != nil || len(blobs) != len(ids) {
		s.Missing[id] = "its wrap is damaged"
		return
	}
	var parts []seal.Sealer
	var people []*shamir.Sealer
	for i, part := range ids {
		if known := byID[part]; known != nil {
			parts = append(parts, known)
			continue
		}
		collected, err := shamir.Open(blobs[i])
		if err != nil || collected.ID() != part {
			s.Missing[id] = "the configuration of this server does not name its part " + part
			return
		}
		parts, people = append(parts, collected), append(people, collected)
	}
	composed, err := every.New(parts...)
	if err != nil || composed.ID() != id {
		s.Missing[id] = "its wrap is damaged"
		return
	}
	if len(people) == 0 {
		s.Automatic = append(s.Automatic, composed)
		return
	}
	s.Composed, s.People = append(s.Composed, composed), append(s.People, people...)
}

// New makes the sealer that a specification asks for: names of the configuration and at most one THRESHOLD/TOTAL after "shamir:", joined
// by "+" if all of them are to be needed. people is nil without shares. fault.Invalid.
func New(spec string, named map[string]seal.Sealer) (s seal.Sealer, people *shamir.Sealer, shares []shamir.Share, err error) {
	var parts []seal.Sealer
	for part := range strings.SplitSeq(spec, "+") {
		sizes, ok := strings.CutPrefix(part, shamir.Prefix)
		switch {
		case !ok && named[part] == nil:
			return nil, nil, nil, fault.New(fault.Invalid, fmt.Sprintf("sealer %q", part)).
				WithHint("a name of the configuration (%s), or shamir:THRESHOLD/TOTAL", cmp.Or(strings.Join(slices.Sorted(maps.Keys(named)), ", "), "local, where it has none"))
		case !ok:
			parts = append(parts, named[part])
			continue
		case people != nil:
			return nil, nil, nil, fault.New(fault.Invalid, "sealer "+spec).WithHint("one set of shares")
		}
		k, n, err := shamir.ParseSizes(sizes)
		if err == nil {
			people, shares, err = shamir.New(k, n)
		}
		if err != nil {
			return nil, nil, nil, err
		}
		parts = append(parts, people)
	}
	if len(parts) == 1 {
		return parts[0], people, shares, nil
	}
	composed, err := every.New(parts...)
	return composed, people, shares, err
}

// Alone says whether a member of a wrap set, named by its ID, opens without people.
func Alone(ids []string) bool {
	return slices.ContainsFunc(ids, func(id string) bool { return !strings.Contains(id, shamir.Prefix) })
}

// kind is what stands before the first colon of an ID, or all.
func kind(id string) string {
	if strings.HasPrefix(id, every.Prefix) {
		return "all"
	}
	k, _, _ := strings.Cut(id, ":")
	return k
}

// strength orders kinds by what somebody has to get to open a copy of the store: a file of the server, a credential of a service that can
// refuse and keeps a log, a token that does not give its key away, people who meet. A kind that is not named counts as such a service. A composition is stronger than its strongest part.
func strength(id string) int {
	if k := kind(id); k != "all" {
		return 2 * cmp.Or(map[string]int{"local": 1, "transit": 2, "pkcs11": 3, "shamir": 4}[k], 2)
	}
	best := 0
	for part := range strings.SplitSeq(strings.TrimSuffix(strings.TrimPrefix(id, every.Prefix), ")"), " & ") {
		best = max(best, strength(part))
	}
	return best + 1
}

// Weakest is the member that a set is as weak as, because any one opens.
func Weakest(wraps map[string][]byte) string {
	ids := slices.Sorted(maps.Keys(wraps))
	if len(ids) == 0 {
		return ""
	}
	return slices.MinFunc(ids, func(a, b string) int { return cmp.Compare(strength(a), strength(b)) })
}
