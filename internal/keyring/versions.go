package keyring

import (
	"cmp"
	"encoding/json"
	"fmt"
	"iter"
	"slices"

	"github.com/rotorkms/rotor/internal/fault"
)

// Versions are the versions of a key, in the order of their numbers; there are gaps where a recovery lost some. A value of it never changes:
// what puts one or takes one away returns another, so that copies of a key share it.
type Versions struct {
	list []Version
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
func (vs Versions) All() iter.Seq[Version] { return slices.Values(vs.list) }

// Len is how many there are.
func (vs Versions) Len() int { return len(vs.list) }

// String lists them, for tests.
func (vs Versions) String() string { return fmt.Sprint(vs.list) }

func (vs Versions) find(n uint32) (int, bool) {
	return slices.BinarySearchFunc(vs.list, n, func(v Version, n uint32) int { return cmp.Compare(v.Number, n) })
}

func (vs Versions) put(v Version) Versions {
	i, ok := vs.find(v.Number)
	list := slices.Clone(vs.list)
	if ok {
		list[i] = v
	} else {
		list = slices.Insert(list, i, v)
	}
	return Versions{list}
}

func (vs Versions) without(n uint32) Versions {
	i, ok := vs.find(n)
	if !ok {
		return vs
	}
	return Versions{slices.Delete(slices.Clone(vs.list), i, i+1)}
}

// MarshalJSON writes a list.
func (vs Versions) MarshalJSON() ([]byte, error) { return json.Marshal(vs.list) }

// UnmarshalJSON reads a list whose numbers go up.
func (vs *Versions) UnmarshalJSON(b []byte) error {
	var list []Version
	if err := json.Unmarshal(b, &list); err != nil {
		return err
	}
	for i := 1; i < len(list); i++ {
		if list[i].Number <= list[i-1].Number {
			return fmt.Errorf("version %d comes after version %d", list[i].Number, list[i-1].Number)
		}
	}
	*vs = Versions{list}
	return nil
}

// All goes through the versions of the key in the order of their numbers.
func (k Key) All() iter.Seq[Version] {
	if !k.Deleted() {
		return k.Versions.All()
	}
	return func(yield func(Version) bool) {
		for v := range k.Versions.All() {
			if !yield(k.standing(v)) {
				return
			}
		}
	}
}

// Len is how many versions the key has.
func (k Key) Len() int { return k.Versions.Len() }

// At is the version at a place, counted from 0, in the order of the numbers.
func (k Key) At(i int) Version { return k.standing(k.Versions.list[i]) }

// Last is the version with the highest number; false when there is none.
func (k Key) Last() (Version, bool) {
	if k.Len() == 0 {
		return Version{}, false
	}
	return k.At(k.Len() - 1), true
}

// Version finds a version by number. fault.UnknownVersion.
func (k Key) Version(n uint32) (Version, error) {
	i, ok := k.Versions.find(n)
	if !ok {
		return Version{}, fault.New(fault.UnknownVersion, k.versionName(n)).WithHint("rotor key show %s lists its versions", k.Name)
	}
	return k.standing(k.Versions.list[i]), nil
}

// ByHandle finds a version by its handle. fault.UnknownVersion.
func (k Key) ByHandle(h uint32) (Version, error) {
	for _, v := range k.Versions.list {
		if v.Handle == h {
			return k.standing(v), nil
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
	if _, ok := k.Versions.find(v.Number); ok {
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
