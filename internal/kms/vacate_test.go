package kms_test

import (
	"strings"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/rotation"
	"github.com/rotorkms/rotor/internal/suite"
)

// TestVacant: a namespace is empty of keys when clients see none and each version is destroyed through its gates; another namespace's do not count.
func TestVacant(t *testing.T) {
	w := newWorld(t)
	vacant := func(says string) {
		t.Helper()
		err := w.Vacant(t.Context(), "default")
		if says == "" && err != nil || says != "" && (fault.CodeOf(err) != fault.InUse || !strings.Contains(err.Error(), says)) {
			t.Errorf("%v, want %q", err, says)
		}
	}
	if _, _, err := w.TransitCreate(t.Context(), alice, kms.TransitSpec{Ref: kms.Ref{Namespace: "other", Name: "transit/there"}}); err != nil {
		t.Fatal(err)
	}
	vacant("")
	k := w.transit("orders", "", deletable)
	for _, name := range []string{"a", "b", "c", "d"} {
		w.create(name, suite.Encrypt)
	}
	vacant("namespace default has 1 key: transit/orders")
	must(w.TransitDelete(t.Context(), alice, w.ref(k)))(t)
	vacant("namespace default has material of 5 keys: a, b, c, …")
	w = newWorld(t)
	k = must(w.TransitDelete(t.Context(), alice, w.ref(w.transit("orders", "", deletable))))(t)
	vacant("material of 1 key: " + k.Name)
	for _, c := range []policy.Caller{alice, bob} {
		must(w.Approve(t.Context(), c, w.ref(k), 1))(t)
	}
	w.pass(wait + 24*time.Hour)
	census := w.census(k, 1)
	vacant("material of 1 key: " + k.Name)
	must(w.Destroyed(t.Context(), k.ID, 1, nil, guard.Cond{}, func(k keyring.Key, now time.Time) (keyring.Key, error) {
		return rotation.Destroy(w.Floored(k), 1, census, nil, now)
	}))(t)
	vacant("")
}

// TestExpiredImportsAreForgotten: wrapping keys whose time is over go, however many there are; and with their namespace those go whose time is not.
func TestExpiredImportsAreForgotten(t *testing.T) {
	w := newWorld(t)
	for _, c := range []policy.Caller{alice, bob} {
		for range 20 {
			must(w.PrepareImport(t.Context(), c, kms.Ref{Namespace: "other", Name: "k"}, ""))(t)
		}
	}
	w.pass(kms.ImportTTL)
	for range 2 {
		must(w.PrepareImport(t.Context(), alice, kms.Ref{Namespace: "other", Name: "k"}, ""))(t)
	}
	must(w.TransitWrappingKey(t.Context(), alice, "other", "transit"))(t)
	p := must(w.guard.Admit(t.Context(), alice, policy.ActNamespaceDelete, policy.Resource{}))(t)
	still, _, err := w.guard.CloseNamespace(t.Context(), p, "other")
	if err == nil {
		err = w.Vacate(t.Context(), p, still, "other")
	}
	if err != nil {
		t.Fatal(err)
	}
	for path := range w.raw() {
		if strings.HasPrefix(path, "import/") || strings.HasPrefix(path, "wrapping/") {
			t.Errorf("%s is left", path)
		}
	}
}
