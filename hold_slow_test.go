//go:build slow

package rotor_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"runtime"
	"sync/atomic"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/rotorkms/rotor"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// TestProxyTampers: nothing that an intermediary changes, replays or reorders is believed; the true deliveries still are, and it is logged.
func TestProxyTampers(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.create(&rotorv1.Key{Name: "records", Purpose: "encrypt", Custody: "fleet"})
	instances := 0
	forge := func(first *atomic.Pointer[rotorv1.Parcel], edit func(p, first *rotorv1.Parcel)) func(*rotorv1.HoldDown) []*rotorv1.HoldDown {
		return func(m *rotorv1.HoldDown) []*rotorv1.HoldDown {
			if m.GetParcel() == nil {
				return []*rotorv1.HoldDown{m}
			}
			first.CompareAndSwap(nil, m.GetParcel())
			forged, _ := proto.Clone(m).(*rotorv1.HoldDown)
			edit(forged.GetParcel(), first.Load())
			return []*rotorv1.HoldDown{forged, m, forged}
		}
	}
	for name, edit := range map[string]func(p, first *rotorv1.Parcel){
		"body": func(p, _ *rotorv1.Parcel) {
			p.Body = bytes.Replace(p.Body, []byte(`"primary":`), []byte(`"primary":1`), 1)
		},
		"material":         func(p, _ *rotorv1.Parcel) { p.Sealed = append(p.Sealed, 1) },
		"no material":      func(p, _ *rotorv1.Parcel) { p.Sealed = nil },
		"signature":        func(p, _ *rotorv1.Parcel) { p.Signature = bytes.Repeat([]byte{7}, 64) },
		"another stream's": func(p, first *rotorv1.Parcel) { proto.Reset(p); proto.Merge(p, first) },
	} {
		t.Run(name, func(t *testing.T) {
			instances++
			instance := fmt.Sprintf("a%d", instances)
			var first atomic.Pointer[rotorv1.Parcel]
			if name == "another stream's" {
				c.mustDial("z", proxy(nil, forge(&first, func(_, _ *rotorv1.Parcel) {})))
			}
			var j journal
			config := proxy(nil, forge(&first, edit))
			config.Log = slog.New(slog.NewTextHandler(&j, nil))
			a := c.mustDial(instance, config)
			k := c.rotate("records")
			if n, _ := a.Key("records").Version(); n != k.GetPrimary() {
				t.Errorf("version %d, want %d", n, k.GetPrimary())
			}
			if got := roundTrip(t, a.Key("records")); got != "" {
				t.Error(got)
			}
			if name != "no material" && !j.has("snapshot_refused") { // without material of its own a parcel may have none
				t.Error("nothing was reported")
			}
		})
	}
}

// TestProxyCuts: a stream that breaks at any message is opened again, and every key arrives.
func TestProxyCuts(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.create(&rotorv1.Key{Name: "records", Purpose: "encrypt", Custody: "fleet"})
	var at, left atomic.Int32
	cut := func() bool {
		if left.Add(-1) >= 0 {
			return false
		}
		left.Store(at.Add(1))
		return true
	}
	up := func(m *rotorv1.HoldUp) []*rotorv1.HoldUp {
		if at.Load() < 5 && cut() {
			return nil
		}
		return []*rotorv1.HoldUp{m}
	}
	down := func(m *rotorv1.HoldDown) []*rotorv1.HoldDown {
		if at.Load() < 5 && cut() {
			return nil
		}
		return []*rotorv1.HoldDown{m}
	}
	a := c.mustDial("a", proxy(up, down))
	c.rotate("records")
	if got := roundTrip(t, a.Key("records")); got != "" {
		t.Error(got)
	}
}

// TestProxyWithholds: whoever keeps the news from a process cannot keep it going.
func TestProxyWithholds(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.create(&rotorv1.Key{Name: "records", Purpose: "encrypt", Custody: "fleet", Rotation: &rotorv1.Rotation{Silence: "fence"}})
	var hold atomic.Bool
	clock := &rotor.Clock{}
	a := c.mustDial("a", proxy(nil, func(m *rotorv1.HoldDown) []*rotorv1.HoldDown {
		if hold.Load() && m.GetParcel() != nil {
			return []*rotorv1.HoldDown{}
		}
		return []*rotorv1.HoldDown{m}
	}).WithClock(clock))
	hold.Store(true)
	k := c.rotate("records") // returns: the member is dropped, since its lease is not renewed
	if k.GetPrimary() != 2 {
		t.Fatal(k)
	}
	if got := roundTrip(t, a.Key("records")); got != "lease_over" {
		t.Errorf("a process that was kept from the news: %q", got)
	}
	hold.Store(false)
	for roundTrip(t, a.Key("records")) != "" { // it joins again by itself
		runtime.Gosched()
	}
}
