package keyring_test

import (
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/suite"
)

// TestVersionsStayAsTheyAre: every field of a version is in a key as it was put there, whichever others have a value.
func TestVersionsStayAsTheyAre(t *testing.T) {
	plain := keyring.Version{
		Number: 3, Handle: 7, Algorithm: suite.AES256GCM, State: keyring.Active, Phase: keyring.PhaseDecryptOnly, Public: []byte{1}, Created: time.Unix(1, 5),
		Published: time.Unix(2, 0), Activated: time.Unix(3, 0), Demoted: time.Unix(4, 0), Deactivated: time.Unix(0, 0),
		Distributed: keyring.Epoch{Incarnation: 1, Counter: 2}, Promoted: keyring.Epoch{Incarnation: 1, Counter: 3}, Taken: 9,
	}
	all := []keyring.Version{plain, {Number: 1}}
	for _, early := range []time.Time{time.Date(1600, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC)} {
		v := plain
		v.Created = early
		all = append(all, v)
	}
	for i := range reflect.TypeFor[keyring.Version]().NumField() {
		for _, v := range []keyring.Version{plain, {Number: 1}} {
			fill(t, reflect.ValueOf(&v).Elem().Field(i))
			all = append(all, v)
		}
	}
	for _, v := range all {
		got, err := keyring.Key{Versions: keyring.VersionsOf(v)}.Version(v.Number)
		if err != nil || !cmp.Equal(got, v) {
			t.Errorf("%v: %s", err, cmp.Diff(v, got))
		}
	}
}

// fill gives a field a value that no other has.
func fill(t *testing.T, f reflect.Value) {
	t.Helper()
	value := map[reflect.Type]any{
		reflect.TypeFor[time.Time](): time.Unix(77, 1), reflect.TypeFor[keyring.Epoch](): keyring.Epoch{Incarnation: 7, Counter: 7},
		reflect.TypeFor[[]byte](): []byte{7}, reflect.TypeFor[[]string](): []string{"seven"}, reflect.TypeFor[[][]byte](): [][]byte{{7}},
	}[f.Type()]
	switch {
	case value != nil:
		f.Set(reflect.ValueOf(value))
	case f.Kind() == reflect.String:
		f.SetString("seven")
	case f.Kind() == reflect.Bool:
		f.SetBool(true)
	case f.CanUint():
		f.SetUint(77)
	case f.CanInt():
		f.SetInt(77)
	default:
		t.Fatalf("a field of type %s", f.Type())
	}
}
