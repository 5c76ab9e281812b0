package keyring_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/pack"
	"github.com/rotorkms/rotor/internal/suite"
)

// paged is a key beside the list that it has to be, and beside the records that a store would have of it.
type paged struct {
	key   keyring.Key
	list  []keyring.Version
	head  []byte
	pages map[uint32][]byte
	read  keyring.Key // as a server has it that read the last change
}

func newPaged() *paged {
	return &paged{key: keyring.Key{ID: "k", Name: "k", Purpose: suite.Encrypt}, pages: map[uint32][]byte{}}
}

func (p *paged) place(n uint32) (int, bool) {
	return slices.BinarySearchFunc(p.list, n, func(v keyring.Version, n uint32) int { return int(v.Number) - int(n) })
}

func (p *paged) anyNumber(t *rapid.T) uint32 {
	if len(p.list) == 0 {
		return 1
	}
	return rapid.SampledFrom(p.list).Draw(t, "version").Number
}

func (p *paged) append(t *rapid.T) {
	n := p.key.NextNumber() + rapid.Uint32Range(0, 2).Draw(t, "gap")*rapid.Uint32Range(1, 40).Draw(t, "width")
	v := keyring.Version{Number: n, Handle: rapid.Uint32Range(1, 60).Draw(t, "handle"), State: keyring.Active, Phase: keyring.PhasePrimary, Algorithm: suite.XAES256GCM}
	if slices.ContainsFunc(p.list, func(o keyring.Version) bool { return o.Handle == v.Handle }) {
		return
	}
	p.key, p.list = p.key.Append(v), append(slices.Clone(p.list), v)
}

func (p *paged) change(t *rapid.T) {
	n := p.anyNumber(t)
	v := keyring.Version{
		State: rapid.SampledFrom(keyring.States()).Draw(t, "state"), Phase: rapid.SampledFrom(keyring.Phases()).Draw(t, "phase"),
		Demoted: time.Unix(rapid.Int64Range(0, 5).Draw(t, "demoted"), 0).UTC(), Algorithm: suite.XAES256GCM,
	}
	i, ok := p.place(n)
	if ok {
		v.Number, v.Handle = n, p.list[i].Handle
		p.list = slices.Clone(p.list)
		p.list[i] = v
	}
	p.key = p.key.Put(v)
}

func (p *paged) remove(t *rapid.T) {
	if len(p.list) < 2 || rapid.IntRange(0, 3).Draw(t, "seldom") > 0 {
		return
	}
	n := p.list[len(p.list)-1].Number
	if _, err := p.read.Version(n); err == nil {
		return // a restore takes back in memory what is not written yet; nothing else is ever taken away
	}
	p.key, p.list = p.key.Without(n), p.list[:len(p.list)-1]
}

// insert is what a restore does: a version comes back with a number below the highest.
func (p *paged) insert(t *rapid.T) {
	n := rapid.Uint32Range(1, p.key.NextNumber()).Draw(t, "number")
	i, ok := p.place(n)
	if ok {
		return
	}
	v := keyring.Version{Number: n, Handle: 1000 + n, State: keyring.Deactivated, Phase: keyring.PhaseDecryptOnly, Algorithm: suite.AES256GCM}
	p.key, p.list = p.key.Append(v), slices.Insert(slices.Clone(p.list), i, v)
}

// write is a commit; old: by a server that writes no pages.
func (p *paged) write(t *rapid.T) {
	if p.key.Len() == 0 {
		return
	}
	p.key.Epoch = p.key.Epoch.Next()
	var changed []keyring.Page
	var err error
	if rapid.IntRange(0, 9).Draw(t, "old") == 0 {
		p.head, err = json.Marshal(p.key)
	} else {
		p.head, changed, err = p.key.Record(rapid.IntRange(0, keyring.PagesAtOnce).Draw(t, "most"), rapid.Bool().Draw(t, "packed"))
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range changed {
		p.pages[c.Index] = c.Value
	}
	if p.read, err = keyring.Read(p.head, changed, p.read); err != nil {
		t.Fatalf("the change: %v", err)
	}
	p.key = p.read
}

func (p *paged) stored() []keyring.Page {
	var all []keyring.Page
	for i, value := range p.pages {
		all = append(all, keyring.Page{Index: i, Value: value})
	}
	return all
}

// restart reads everything anew; reseal brings pages without their head.
func (p *paged) restart(t *rapid.T) {
	if p.head == nil {
		return
	}
	anew, err := keyring.Read(p.head, p.stored(), keyring.Key{})
	if err != nil {
		t.Fatal(err)
	}
	again, err := p.read.WithPages(p.stored())
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []keyring.Key{anew, again} {
		if !cmp.Equal(slices.Collect(k.All()), slices.Collect(p.read.All())) || k.Epoch != p.read.Epoch {
			t.Fatalf("read anew: %v\nread before: %v", k.Versions, p.read.Versions)
		}
	}
	p.key, p.read, p.list = anew, anew, slices.Collect(anew.All())
}

// check: the key says what the list says, however it is asked.
func (p *paged) check(t *rapid.T) {
	if got := slices.Collect(p.key.All()); !cmp.Equal(got, p.list, cmp.Comparer(func(a, b time.Time) bool { return a.Equal(b) })) && len(got)+len(p.list) > 0 {
		t.Fatal(cmp.Diff(p.list, got))
	}
	live, retired, unsettled := 0, []uint32(nil), []uint32(nil)
	var first time.Time
	for i, v := range p.list {
		got, err := p.key.Version(v.Number)
		byHandle, herr := p.key.ByHandle(v.Handle)
		if err != nil || herr != nil || got.Number != v.Number || byHandle.Number != v.Number || p.key.At(i).Number != v.Number {
			t.Fatalf("version %d: %v, %v; %v, %v", v.Number, got, err, byHandle, herr)
		}
		switch {
		case v.Phase == keyring.PhaseRetired:
			retired = append(retired, v.Number)
		case v.Phase != keyring.PhaseDestroyed:
			live++
		}
		if v.Phase == keyring.PhaseDecryptOnly && v.State == keyring.Active {
			if unsettled = append(unsettled, v.Number); len(unsettled) == 1 || v.Demoted.Before(first) {
				first = v.Demoted
			}
		}
	}
	demoted, open := p.key.FirstDemoted()
	gone := func(all func(func(keyring.Version) bool)) (out []uint32) {
		for v := range all {
			out = append(out, v.Number)
		}
		return out
	}
	if p.key.Len() != len(p.list) || p.key.Live() != live || p.key.Retirements() != len(retired) || !slices.Equal(gone(p.key.Retired()), retired) ||
		!slices.Equal(gone(p.key.Unsettled()), unsettled) || open != (len(unsettled) > 0) || open && !demoted.Equal(first) {
		t.Fatalf("%d live of %d, retired %v, unsettled %v since %s", p.key.Live(), p.key.Len(), gone(p.key.Retired()), gone(p.key.Unsettled()), demoted)
	}
	if last, ok := p.key.Last(); ok != (len(p.list) > 0) || ok && last.Number != p.list[len(p.list)-1].Number {
		t.Fatalf("the last is %d", last.Number)
	}
	for _, n := range []uint32{0, 70000} {
		if _, err := p.key.Version(n); fault.CodeOf(err) != fault.UnknownVersion {
			t.Fatalf("version %d: %v", n, err)
		}
	}
}

// TestPages: whatever is done to a key, it is the list that it would be without pages; its records read back, all of them and change by change, also
// when a server that writes no pages came in between; and what has changed since is what is different.
func TestPages(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := newPaged()
		same := func(f func(*rapid.T)) func(*rapid.T) {
			return func(t *rapid.T) {
				was := p.key
				before := fmt.Sprint(was.Versions)
				f(t)
				if fmt.Sprint(was.Versions) != before {
					t.Fatal("a copy changed")
				}
				for v := range p.key.All() {
					old, err := was.Version(v.Number)
					changed := err != nil || !cmp.Equal(old, v, cmp.Comparer(func(a, b time.Time) bool { return a.Equal(b) }))
					if changed && !slices.ContainsFunc(slices.Collect(p.key.ChangedSince(was)), func(c keyring.Version) bool { return c.Number == v.Number }) {
						t.Fatalf("version %d has changed, and nobody says so", v.Number)
					}
					if changed && !p.key.Changed(was) {
						t.Fatal("the key has changed, and does not say so")
					}
				}
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"append": same(p.append), "change": same(p.change), "remove": same(p.remove), "insert": same(p.insert), "write": p.write, "restart": p.restart, "": p.check,
		})
	})
}

// TestPagesAreChecked: records that do not belong together make no key.
func TestPagesAreChecked(t *testing.T) {
	k := keyring.Key{ID: "k", Name: "k"}
	for n := range uint32(4 * keyring.PageSize) {
		k = k.Append(keyring.Version{Number: n + 1, Handle: n + 1})
	}
	head, pages, err := k.Record(keyring.PagesAtOnce, false)
	if err != nil || len(pages) != 3 {
		t.Fatal(len(pages), err)
	}
	if got, err := keyring.Read(head, pages, keyring.Key{}); err != nil || got.Len() != k.Len() || !got.InPages() || got.Changed(k) {
		t.Fatalf("%v", err)
	}
	for name, bad := range map[string][]keyring.Page{
		"none": nil, "one is missing": pages[1:], "another's place": {pages[0], pages[1], {Index: 7, Value: pages[2].Value}},
		"no versions": {pages[0], pages[1], {Index: 2, Value: []byte("[]")}}, "no list": {pages[0], pages[1], {Index: 2, Value: []byte("{}")}},
		"versions of two": {pages[0], pages[1], {Index: 2, Value: []byte(`[{"number":17},{"number":25}]`)}},
		"one too few":     {pages[0], pages[1], {Index: 2, Value: []byte(`[{"number":17}]`)}},
	} {
		if got, err := keyring.Read(head, bad, keyring.Key{}); err == nil {
			t.Errorf("%s: %d versions", name, got.Len())
		}
	}
	if _, err := keyring.Read(head, pages[1:], keyring.Key{}); !errors.Is(err, keyring.ErrPages) {
		t.Error(err)
	}
}

// TestPagesPackedOrNot: a packed page is read as the page that it was, beside others that are not, and is a good deal shorter; one that is damaged, or
// becomes more than any record has, makes no key.
func TestPagesPackedOrNot(t *testing.T) {
	k := keyring.Key{ID: "k", Name: "k"}
	at := time.Date(2026, 12, 1, 1, 0, 0, 0, time.UTC)
	for n := range uint32(4 * keyring.PageSize) {
		k = k.Append(keyring.Version{Number: n + 1, Handle: n*7919 + 1, Algorithm: suite.AES256GCM, State: keyring.Active, Phase: keyring.PhaseDecryptOnly, Created: at, Published: at, Activated: at})
	}
	plainHead, plain, err := k.Record(keyring.PagesAtOnce, false)
	head, packed, err2 := k.Record(keyring.PagesAtOnce, true)
	if err != nil || err2 != nil || len(plain) != 3 || len(packed) != 3 || !bytes.Equal(head, plainHead) {
		t.Fatal(len(plain), len(packed), err, err2)
	}
	if a, b := len(plain[1].Value), len(packed[1].Value); b > a/4 {
		t.Errorf("a page of %d bytes is packed into %d", a, b)
	}
	for _, pages := range [][]keyring.Page{packed, {plain[0], packed[1], plain[2]}} {
		got, err := keyring.Read(head, pages, keyring.Key{})
		if err != nil || got.Len() != k.Len() || got.Changed(k) {
			t.Errorf("%d versions, %v", got.Len(), err)
		}
	}
	for name, bad := range map[string][]byte{
		"cut": packed[1].Value[:20], "more behind it": append(bytes.Clone(packed[1].Value), '['), "another page": packed[0].Value,
		"too long": pack.Pack(append(bytes.Repeat([]byte(" "), 1<<20), plain[1].Value...)),
	} {
		if got, err := keyring.Read(head, []keyring.Page{packed[0], {Index: 1, Value: bad}, packed[2]}, keyring.Key{}); err == nil {
			t.Errorf("%s: %d versions", name, got.Len())
		}
	}
}

// FuzzRead: whatever the records, reading them ends, and what is read can be written and read again.
func FuzzRead(f *testing.F) {
	k := keyring.Key{ID: "k", Name: "k"}
	for n := range uint32(20) {
		k = k.Append(keyring.Version{Number: n + 1, Handle: n + 1, Algorithm: suite.XAES256GCM})
	}
	head, pages, _ := k.Record(1, false)
	f.Add(head, pages[0].Index, pages[0].Value)
	f.Add(head, pages[0].Index, pack.Pack(pages[0].Value))
	f.Fuzz(func(t *testing.T, head []byte, index uint32, page []byte) {
		k, err := keyring.Read(head, []keyring.Page{{Index: index, Value: page}}, keyring.Key{})
		if err != nil {
			return
		}
		head, pages, err := k.Record(keyring.PagesAtOnce, false)
		if err != nil {
			t.Skip() // a time that JSON has no form for
		}
		again, err := keyring.Read(head, pages, k)
		if err != nil || again.Len() != k.Len() {
			t.Fatalf("%d of %d versions, %v", again.Len(), k.Len(), err)
		}
	})
}

func TestRanges(t *testing.T) {
	for want, numbers := range map[string][]uint32{"": nil, "1": {1}, "1 2": {1, 2}, "1-3": {1, 2, 3}, "1-5 7 8 10": {1, 2, 3, 4, 5, 7, 8, 10}} {
		if got := keyring.Ranges(slices.Values(numbers)); got != want {
			t.Errorf("%v: %q", numbers, got)
		}
	}
}

// TestNewest: the first of the so many newest versions, also where there are gaps.
func TestNewest(t *testing.T) {
	k := keyring.Key{}
	for n := uint32(1); n <= 40; n++ {
		if n%5 != 0 {
			k = k.Append(keyring.Version{Number: n, Handle: n})
		}
	}
	for n, want := range map[int]uint32{1: 39, 4: 36, 5: 34, 31: 2, 32: 0, 33: 0} {
		if got := k.Newest(n); got != want {
			t.Errorf("of %d: %d, want %d", n, got, want)
		}
	}
}
