package keyring

import (
	"math"
	"reflect"
	"time"

	"github.com/rotorkms/rotor/internal/suite"
)

// kept is a version as it stays in memory: keys have tens of thousands of them, of which nearly all have the same few fields, so what others have
// stands apart. It never changes.
type kept struct {
	number, handle uint32
	algorithm      suite.Algorithm
	state          State
	phase          Phase
	public         []byte

	created, published, activated, demoted, deactivated moment

	distributed, promoted Epoch

	taken uint64
	whole *Version // all of it, when it has more than those; nil: it has not
}

func keep(v Version) *kept {
	k := &kept{number: v.Number, handle: v.Handle, algorithm: v.Algorithm, state: v.State, phase: v.Phase}
	rest, exact := v, true
	rest.Number, rest.Handle, rest.Algorithm, rest.State, rest.Phase = 0, 0, "", "", ""
	for _, t := range [...]struct {
		to   *moment
		from *time.Time
	}{
		{&k.created, &rest.Created}, {&k.published, &rest.Published}, {&k.activated, &rest.Activated}, {&k.demoted, &rest.Demoted},
		{&k.deactivated, &rest.Deactivated},
	} {
		*t.to = momentOf(*t.from)
		exact = exact && t.to.time().Equal(*t.from)
		*t.from = time.Time{}
	}
	k.public, rest.Public = rest.Public, nil
	k.distributed, rest.Distributed = rest.Distributed, Epoch{}
	k.promoted, rest.Promoted = rest.Promoted, Epoch{}
	k.taken, rest.Taken = rest.Taken, 0
	if !exact || !reflect.ValueOf(rest).IsZero() {
		k.whole = &v
	}
	return k
}

func (k *kept) version() Version {
	if k.whole != nil {
		return *k.whole
	}
	return Version{
		Number: k.number, Handle: k.handle, Algorithm: k.algorithm, State: k.state, Phase: k.phase, Public: k.public,
		Created: k.created.time(), Published: k.published.time(), Activated: k.activated.time(), Demoted: k.demoted.time(), Deactivated: k.deactivated.time(),
		Distributed: k.distributed, Promoted: k.promoted, Taken: k.taken,
	}
}

// moment is a time in nanoseconds since 1970 in UTC, within the years 1678 to 2261.
type moment int64

const never moment = math.MinInt64 // the zero time.Time

func momentOf(t time.Time) moment {
	if t.IsZero() {
		return never
	}
	return moment(t.UnixNano())
}

func (m moment) time() time.Time {
	if m == never {
		return time.Time{}
	}
	return time.Unix(0, int64(m)).UTC()
}
