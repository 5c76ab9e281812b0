package keyring

import (
	"cmp"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/rotorkms/rotor/internal/pack"
	"github.com/rotorkms/rotor/internal/suite"
)

// PageSize is how many numbers a page is for. A rotation writes the last page again, so a greater one costs time; a smaller one costs records.
const PageSize = 8

// pageOf is the index of the page that a number belongs to.
func pageOf(n uint32) uint32 { return (max(n, 1) - 1) / PageSize }

// page has the versions index*PageSize+1 to (index+1)*PageSize of a key, as far as there are some. Neither it nor its versions ever change.
type page struct {
	index  uint32
	list   []*kept // in the order of their numbers, at least one
	stored bool    // it was read from a record of its own, so it need not be written
	sums   sums
}

func newPage(index uint32, list ...*kept) *page {
	p := &page{index: index, list: list}
	for _, v := range list {
		p.sums.add(sumsOf(v))
	}
	return p
}

func (p *page) at(n uint32) (int, bool) {
	return slices.BinarySearchFunc(p.list, n, func(v *kept, n uint32) int { return cmp.Compare(v.number, n) })
}

func (p *page) find(n uint32) *kept {
	if i, ok := p.at(n); ok {
		return p.list[i]
	}
	return nil
}

// versions are those of the page, to be written.
func (p *page) versions() []*Version {
	out := make([]*Version, len(p.list))
	for i, k := range p.list {
		v := k.version()
		out[i] = &v
	}
	return out
}

// with is the page with a version, in place of the one of its number if there is one.
func (p *page) with(v Version) *page {
	list := slices.Clone(p.list)
	if i, ok := p.at(v.Number); ok {
		list[i] = keep(v)
	} else {
		list = slices.Insert(list, i, keep(v))
	}
	return newPage(p.index, list...)
}

func (p *page) without(n uint32) *page {
	return newPage(p.index, slices.DeleteFunc(slices.Clone(p.list), func(v *kept) bool { return v.number == n })...)
}

// sums are what loops over keys ask about their versions, so that they need not look at each.
type sums struct {
	count   int
	live    int       // neither retired nor destroyed
	retired int       // not destroyed yet
	open    int       // unsettled
	demoted time.Time // of the unsettled: the first time
}

func sumsOf(v *kept) sums {
	s := sums{count: 1}
	switch {
	case v.phase == PhaseRetired:
		s.retired = 1
	case v.phase != PhaseDestroyed:
		s.live = 1
	}
	if unsettled(v.phase, v.state) {
		s.open, s.demoted = 1, v.demoted.time()
	}
	return s
}

// unsettled says whether a version was demoted and is still active: within its rollback window, or about to be deactivated.
func unsettled(p Phase, s State) bool { return p == PhaseDecryptOnly && s == Active }

func (s *sums) add(o sums) {
	if o.open > 0 && (s.open == 0 || o.demoted.Before(s.demoted)) {
		s.demoted = o.demoted
	}
	s.count, s.live, s.retired, s.open = s.count+o.count, s.live+o.live, s.retired+o.retired, s.open+o.open
}

// FirstDemoted is when the first of the versions that Unsettled goes through was demoted; false when there is none.
func (k Key) FirstDemoted() (time.Time, bool) {
	return k.Versions.sums.demoted, k.Versions.sums.open > 0 && !k.Deleted()
}

// Retirements is how many versions Retired goes through.
func (k Key) Retirements() int {
	if k.Deleted() {
		return k.Versions.sums.retired + k.Versions.sums.live
	}
	return k.Versions.sums.retired
}

// handles finds numbers by handles: sorted runs, each at least twice as long as the next, so that there are few and one more handle moves few. They are
// shared by copies of a key and may name versions that a copy does not have; who asks looks.
type handles [][]handle

type handle struct{ handle, number uint32 }

// handlesOf are those of the versions of pages.
func handlesOf(pages []*page) handles {
	var run []handle
	for _, p := range pages {
		for _, v := range p.list {
			run = append(run, handle{v.handle, v.number})
		}
	}
	if len(run) == 0 {
		return nil
	}
	slices.SortFunc(run, handle.compare)
	return handles{run}
}

func (h handle) compare(o handle) int {
	return cmp.Or(cmp.Compare(h.handle, o.handle), cmp.Compare(h.number, o.number))
}

func (hs handles) with(v handle) handles {
	if hs.has(v) {
		return hs
	}
	run := []handle{v}
	rest := hs
	for len(rest) > 0 && len(rest[len(rest)-1]) < 2*len(run) {
		run, rest = merged(rest[len(rest)-1], run), rest[:len(rest)-1]
	}
	return append(slices.Clone(rest), run)
}

func merged(a, b []handle) []handle {
	out := make([]handle, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		if a[0].compare(b[0]) < 0 {
			out, a = append(out, a[0]), a[1:]
		} else {
			out, b = append(out, b[0]), b[1:]
		}
	}
	return append(append(out, a...), b...)
}

func (hs handles) has(v handle) bool {
	for n := range hs.numbers(v.handle) {
		if n == v.number {
			return true
		}
	}
	return false
}

// numbers are the numbers of versions that may have a handle.
func (hs handles) numbers(h uint32) iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		for _, run := range slices.Backward(hs) {
			i, _ := slices.BinarySearchFunc(run, handle{h, 0}, handle.compare)
			for ; i < len(run) && run[i].handle == h; i++ {
				if !yield(run[i].number) {
					return
				}
			}
		}
	}
}

// readPages reads a list of versions whose numbers go up into pages.
func readPages(b []byte, stored bool) ([]*page, error) {
	b, err := pack.Unpack(b, maxPage)
	if err != nil {
		return nil, err
	}
	var list []*Version
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, err
	}
	return pagesOf(list, stored)
}

func pagesOf(list []*Version, stored bool) (pages []*page, err error) {
	for i, v := range list {
		if v == nil || i > 0 && v.Number <= list[i-1].Number {
			return nil, fmt.Errorf("version %d of a list has the wrong number", i+1)
		}
		v.intern()
	}
	for len(list) > 0 {
		index, n := pageOf(list[0].Number), 1
		for n < len(list) && pageOf(list[n].Number) == index {
			n++
		}
		own := make([]*kept, n)
		for i, v := range list[:n] {
			own[i] = keep(*v)
		}
		p := newPage(index, own...)
		p.stored = stored
		pages, list = append(pages, p), list[n:]
	}
	return pages, nil
}

// intern makes the words of a version that was read share the memory of those that the program has.
func (v *Version) intern() {
	if i := slices.Index(States(), v.State); i >= 0 {
		v.State = States()[i]
	}
	if i := slices.Index(Phases(), v.Phase); i >= 0 {
		v.Phase = Phases()[i]
	}
	if spec, err := suite.Lookup(v.Algorithm); err == nil {
		v.Algorithm = spec.ID
	}
}
