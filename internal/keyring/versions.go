package keyring

import (
	"cmp"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/rotorkms/rotor/internal/fault"
)

// Versions are the versions of a key, in the order of their numbers; there are gaps where a recovery lost some. They are kept in pages that never
// change: what puts a version or takes one away makes another page and another list of pages, and copies of a key share all the rest. So a step of a
// rotation costs the same whether the key has one version or ten thousand.
type Versions struct {
	pages   []*page // in the order of their numbers, none empty
	handles handles
	sums    sums
	paged   bool // they were read from more records than one, so servers that know of none are gone
}

// VersionsOf makes versions of a list in any order. Of two with the same number the later one stays.
func VersionsOf(list ...Version) Versions {
	var vs Versions
	for _, v := range list {
		vs = vs.put(v)
	}
	return vs
}

// All goes through the versions in the order of their numbers.
func (vs Versions) All() iter.Seq[Version] { return vs.those(func(*page) bool { return true }) }

// those goes through the versions of the pages that have something to look for.
func (vs Versions) those(has func(*page) bool) iter.Seq[Version] {
	return func(yield func(Version) bool) {
		for _, p := range vs.pages {
			if !has(p) {
				continue
			}
			for _, v := range p.list {
				if !yield(v.version()) {
					return
				}
			}
		}
	}
}

// Len is how many there are.
func (vs Versions) Len() int { return vs.sums.count }

// String lists them, for tests.
func (vs Versions) String() string { return fmt.Sprint(slices.Collect(vs.All())) }

// find returns a version, nil if there is none of the number, and the place of its page, or where that would be.
func (vs Versions) find(n uint32) (v *kept, at int, there bool) {
	at, there = slices.BinarySearchFunc(vs.pages, pageOf(n), func(p *page, want uint32) int { return cmp.Compare(p.index, want) })
	if there {
		v = vs.pages[at].find(n)
	}
	return v, at, there
}

func (vs Versions) put(v Version) Versions {
	old, at, there := vs.find(v.Number)
	next := vs
	next.pages = slices.Clone(vs.pages)
	if there {
		next.pages[at] = vs.pages[at].with(v)
	} else {
		next.pages = slices.Insert(next.pages, at, newPage(pageOf(v.Number), keep(v)))
	}
	if old == nil || old.handle != v.Handle {
		next.handles = vs.handles.with(handle{v.Handle, v.Number})
	}
	return next.summed()
}

func (vs Versions) without(n uint32) Versions {
	v, at, _ := vs.find(n)
	if v == nil {
		return vs
	}
	next := vs
	next.pages = slices.Clone(vs.pages)
	if p := vs.pages[at].without(n); len(p.list) > 0 {
		next.pages[at] = p
	} else {
		next.pages = slices.Delete(next.pages, at, at+1)
	}
	return next.summed()
}

// summed adds up what the pages say. Call it before the value is shared.
func (vs Versions) summed() Versions {
	vs.sums = sums{}
	for _, p := range vs.pages {
		vs.sums.add(p.sums)
	}
	return vs
}

// MarshalJSON writes a list.
func (vs Versions) MarshalJSON() ([]byte, error) {
	var list []*Version
	for _, p := range vs.pages {
		list = append(list, p.versions()...)
	}
	return json.Marshal(list)
}

// UnmarshalJSON reads a list whose numbers go up.
func (vs *Versions) UnmarshalJSON(b []byte) error {
	pages, err := readPages(b, false)
	if err != nil {
		return err
	}
	*vs = Versions{pages: pages, handles: handlesOf(pages)}.summed()
	return nil
}

// All goes through the versions of the key in the order of their numbers.
func (k Key) All() iter.Seq[Version] { return k.those(func(*page) bool { return true }) }

// those goes through the versions, as they stand, of the pages that have something to look for.
func (k Key) those(has func(*page) bool) iter.Seq[Version] {
	all := k.Versions.those(has)
	if !k.Deleted() {
		return all
	}
	return func(yield func(Version) bool) {
		for v := range all {
			if !yield(k.standing(v)) {
				return
			}
		}
	}
}

// Len is how many versions the key has.
func (k Key) Len() int { return k.Versions.Len() }

// Live is how many of its versions are neither retired nor destroyed.
func (k Key) Live() int {
	if k.Deleted() {
		return 0
	}
	return k.Versions.sums.live
}

// ChangedSince goes through the versions that are not in another state of the key as they are in this one, in the order of their numbers. It looks only
// at the pages that the two do not share.
func (k Key) ChangedSince(was Key) iter.Seq[Version] {
	if k.Deleted() != was.Deleted() {
		return k.All()
	}
	return func(yield func(Version) bool) {
		old := was.Versions.pages
		for _, p := range k.Versions.pages {
			for len(old) > 0 && old[0].index < p.index {
				old = old[1:]
			}
			var o *page
			if len(old) > 0 && old[0].index == p.index {
				o = old[0]
			}
			if o == p {
				continue
			}
			for _, v := range p.list {
				if o != nil && slices.Contains(o.list, v) {
					continue
				}
				if !yield(k.standing(v.version())) {
					return
				}
			}
		}
	}
}

// From goes through the versions with a number of at least n.
func (k Key) From(n uint32) iter.Seq[Version] {
	return func(yield func(Version) bool) {
		_, at, _ := k.Versions.find(n)
		for _, p := range k.Versions.pages[at:] {
			for _, v := range p.list {
				if v.number >= n && !yield(k.standing(v.version())) {
					return
				}
			}
		}
	}
}

// Newest is the number of the first of the so many newest versions; 0: there are no more than those.
func (k Key) Newest(n int) uint32 {
	if n >= k.Len() {
		return 0
	}
	for _, p := range slices.Backward(k.Versions.pages) {
		if n <= len(p.list) {
			return p.list[len(p.list)-n].number
		}
		n -= len(p.list)
	}
	return 0
}

// Ranges writes numbers that go up in few words, for example 1-5 7 8.
func Ranges(numbers iter.Seq[uint32]) string {
	var out strings.Builder
	var first, last uint32
	flush := func() {
		switch {
		case first == 0:
		case first == last:
			fmt.Fprintf(&out, " %d", first)
		case first+1 == last:
			fmt.Fprintf(&out, " %d %d", first, last)
		default:
			fmt.Fprintf(&out, " %d-%d", first, last)
		}
	}
	for n := range numbers {
		if n != last+1 || first == 0 {
			flush()
			first = n
		}
		last = n
	}
	flush()
	return strings.TrimPrefix(out.String(), " ")
}

// Unsettled goes through the versions that were demoted and are still active. It looks only where there are some.
func (k Key) Unsettled() iter.Seq[Version] {
	return filtered(k.those(func(p *page) bool { return p.sums.open > 0 }), func(v Version) bool { return unsettled(v.Phase, v.State) })
}

// Retired goes through the versions that are retired. It looks only where there are some.
func (k Key) Retired() iter.Seq[Version] {
	has := func(p *page) bool { return p.sums.retired > 0 || k.Deleted() && p.sums.live > 0 }
	return filtered(k.those(has), func(v Version) bool { return v.Phase == PhaseRetired })
}

func filtered(all iter.Seq[Version], is func(Version) bool) iter.Seq[Version] {
	return func(yield func(Version) bool) {
		for v := range all {
			if is(v) && !yield(v) {
				return
			}
		}
	}
}

// At is the version at a place, counted from 0, in the order of the numbers.
func (k Key) At(i int) Version {
	for _, p := range k.Versions.pages {
		if i < len(p.list) {
			return k.standing(p.list[i].version())
		}
		i -= len(p.list)
	}
	panic(fmt.Sprintf("keyring: no version at %d", i))
}

// Last is the version with the highest number; false when there is none.
func (k Key) Last() (Version, bool) {
	if k.Len() == 0 {
		return Version{}, false
	}
	p := k.Versions.pages[len(k.Versions.pages)-1]
	return k.standing(p.list[len(p.list)-1].version()), true
}

// Version finds a version by number. fault.UnknownVersion.
func (k Key) Version(n uint32) (Version, error) {
	v, _, _ := k.Versions.find(n)
	if v == nil {
		return Version{}, fault.New(fault.UnknownVersion, k.versionName(n)).WithHint("rotor key show %s lists its versions", k.Name)
	}
	return k.standing(v.version()), nil
}

// ByHandle finds a version by its handle. fault.UnknownVersion.
func (k Key) ByHandle(h uint32) (Version, error) {
	for n := range k.Versions.handles.numbers(h) {
		if v, _, _ := k.Versions.find(n); v != nil && v.handle == h {
			return k.standing(v.version()), nil
		}
	}
	return Version{}, fault.New(fault.UnknownVersion, "key "+k.Name)
}

// NextNumber is the number of the next version: above every one that there is or may have been.
func (k Key) NextNumber() uint32 {
	last, _ := k.Last()
	return max(k.Above, last.Number) + 1
}

// Put is the key with v in place of the version of its number, if there is one.
func (k Key) Put(v Version) Key {
	if old, _, _ := k.Versions.find(v.Number); old != nil {
		k.Versions = k.Versions.put(v)
	}
	return k
}

// Append is the key with a version that it did not have.
func (k Key) Append(v Version) Key {
	k.Versions = k.Versions.put(v)
	return k
}

// Without is the key without a version.
func (k Key) Without(n uint32) Key {
	k.Versions = k.Versions.without(n)
	return k
}

// Edit is the key with a version changed by f, which leaves the number as it is.
func (k Key) Edit(n uint32, f func(*Version)) Key {
	v, err := k.Version(n)
	if err != nil {
		return k
	}
	f(&v)
	return k.Put(v)
}
