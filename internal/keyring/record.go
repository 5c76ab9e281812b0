package keyring

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/rotorkms/rotor/internal/pack"
)

// A key is stored as a head, which has its settings and its last page, and the pages before that in records of their own. A change writes the head and
// those of the other pages that it touches. Pages that have not got a record of their own yet, as servers of before there were any wrote none, are in
// the head too, until changes have written them bit by bit. A page that is in the head is the one that counts.

// PagesAtOnce is how many pages one change writes beside the head.
const PagesAtOnce = 4

// maxPage bounds a page in bytes: no store takes a longer record, so none was ever written.
const maxPage = 1 << 20

// Page is the record of a page.
type Page struct {
	Index uint32
	Value []byte
}

// head is the record of a key.
type head struct {
	Key
	Versions []*Version `json:"versions"`        // in place of the key's
	Paged    int        `json:"paged,omitempty"` // how many versions are in records of pages
}

// ErrPages is that the pages of a key are not the ones that its head speaks of.
var ErrPages = errors.New("keyring: pages are missing")

// Record returns what is to be written of a key that was read and changed: its head, and at most so many of the pages that have changed since; those
// that are too many are in the head. Pages are packed if everybody who may read them knows how to unpack them; nothing secret is in them.
func (k Key) Record(most int, packed bool) (record []byte, changed []Page, err error) {
	h := head{Key: k}
	for i, p := range k.Versions.pages {
		switch last := i == len(k.Versions.pages)-1; {
		case !last && p.stored:
			h.Paged += len(p.list)
		case last || len(changed) == most:
			h.Versions = append(h.Versions, p.versions()...)
		default:
			value, err := json.Marshal(p.versions())
			if err != nil {
				return nil, nil, fmt.Errorf("encode page %d of key %s: %w", p.index, k.ID, err)
			}
			if packed && len(value) <= maxPage {
				value = pack.Pack(value)
			}
			changed = append(changed, Page{p.index, value})
			h.Paged += len(p.list)
		}
	}
	if record, err = json.Marshal(h); err != nil {
		return nil, nil, fmt.Errorf("encode key %s: %w", k.ID, err)
	}
	return record, changed, nil
}

// InPages says whether a key was read from pages: then every server on the store knows them.
func (k Key) InPages() bool { return k.Versions.paged }

// Changed says whether what Record writes can be different from what it wrote of an earlier state: false is certain.
func (k Key) Changed(was Key) bool {
	if k.Epoch != was.Epoch || k.Len() != was.Len() {
		return true
	}
	for v := range k.ChangedSince(was) {
		old, err := was.Version(v.Number)
		if err != nil || !same(v, old) {
			return true
		}
	}
	k.Versions, was.Versions = Versions{}, Versions{}
	return !same(k, was)
}

func same(a, b any) bool {
	x, err := json.Marshal(a)
	y, yerr := json.Marshal(b)
	return err == nil && yerr == nil && string(x) == string(y)
}

// Read makes a key of its head and of pages; was is an earlier state of it, which has the pages that have not changed since. ErrPages when some are
// missing.
func Read(record []byte, pages []Page, was Key) (Key, error) {
	k, count, err := read(record, pages, was)
	if err == nil && k.Len() != count {
		err = ErrPages
	}
	return k, err
}

// Salvage is Read of a key some of whose pages may be lost for good, and says how many versions are missing.
func Salvage(record []byte, pages []Page) (k Key, missing int, err error) {
	k, count, err := read(record, pages, Key{})
	return k, count - k.Len(), err
}

// read returns a key and how many versions its head says that it has.
func read(record []byte, pages []Page, was Key) (k Key, count int, err error) {
	var h head
	if err := json.Unmarshal(record, &h); err != nil {
		return k, 0, err
	}
	own, err := pagesOf(h.Versions, false)
	if err != nil {
		return k, 0, err
	}
	k = h.Key
	k.Versions, err = was.Versions.assemble(own, pages, h.Paged > 0)
	return k, h.Paged + len(h.Versions), err
}

// WithPages is the key with the contents of pages that were written without its head, as when they are sealed again.
func (k Key) WithPages(pages []Page) (Key, error) {
	var own []*page
	for _, p := range k.Versions.pages {
		if !p.stored {
			own = append(own, p)
		}
	}
	vs, err := k.Versions.assemble(own, pages, true)
	if err == nil && vs.Len() != k.Len() {
		err = ErrPages
	}
	k.Versions = vs
	return k, err
}

// assemble puts versions together: the pages of a head, and if there are others beside it those that were read and those of vs that are stored.
func (vs Versions) assemble(own []*page, read []Page, others bool) (Versions, error) {
	taken, fresh := map[uint32]bool{}, slices.Clone(own)
	for _, p := range own {
		taken[p.index] = true
	}
	for _, r := range read {
		if !others || taken[r.Index] {
			continue // written before the head that has it
		}
		pages, err := readPages(r.Value, true)
		if err != nil {
			return vs, err
		}
		if len(pages) != 1 || pages[0].index != r.Index {
			return vs, fmt.Errorf("page %d of a key has versions of others", r.Index)
		}
		taken[r.Index], fresh = true, append(fresh, pages[0])
	}
	all := slices.Clone(fresh)
	for _, p := range vs.pages {
		if others && p.stored && !taken[p.index] {
			all = append(all, p)
		}
	}
	slices.SortFunc(all, func(a, b *page) int { return cmp.Compare(a.index, b.index) })
	next := Versions{pages: all, paged: others}.summed()
	if len(vs.pages) == 0 {
		next.handles = handlesOf(all)
		return next, nil
	}
	next.handles = vs.handles
	for _, p := range fresh {
		for _, v := range p.list {
			next.handles = next.handles.with(handle{v.handle, v.number})
		}
	}
	return next, nil
}
