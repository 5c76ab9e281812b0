package delivery_test

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/delivery"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
)

// TestBatches: whoever signs at the same time shares a signature, and each one's is over its own body alone.
func TestBatches(t *testing.T) {
	s := newServer()
	for _, n := range []int{1, 2, 3, 5, 8, 100} {
		var calls atomic.Int64
		hold := make(chan struct{})
		signer := delivery.NewSigner(func(domain string, msg []byte) []byte {
			if calls.Add(1) == 1 {
				<-hold // all others come into one batch meanwhile
			}
			return s.sign(domain, msg)
		})
		p := private(t)
		parcels, addresses := make([]delivery.Parcel, n+1), make([]delivery.Address, n+1)
		var all, packed sync.WaitGroup
		packed.Add(n + 1)
		for i := range parcels {
			addresses[i] = address(fmt.Sprintf("i%d", i))
			all.Go(func() {
				sign := func(body []byte) (delivery.Signature, error) { packed.Done(); return signer.Sign(body) }
				var err error
				if parcels[i], err = delivery.NewSender(addresses[i], p.Public(), sign).Pack(encoded(snapshot()), nil, time.Unix(1, 0)); err != nil {
					t.Error(err)
				}
			})
		}
		packed.Wait()
		close(hold)
		all.Wait()
		for i, in := range parcels {
			r := delivery.NewReceiver(addresses[i], p, s.verify)
			if _, _, err := r.Unpack(in); err != nil {
				t.Errorf("%d of %d: %v", i, n, err)
			}
			moved := in
			moved.Signature = parcels[(i+1)%len(parcels)].Signature
			if _, _, err := r.Unpack(moved); fault.CodeOf(err) != fault.SnapshotRefused {
				t.Errorf("%d of %d: taken with the signature of another: %v", i, n, err)
			}
		}
	}
}

// TestSequence: the sealings of a stream open in their order, each once.
func TestSequence(t *testing.T) {
	s, p, a := newServer(), private(t), address("a")
	sender := delivery.NewSender(a, p.Public(), delivery.NewSigner(s.sign).Sign)
	var parcels []delivery.Parcel
	for i := range 3 {
		snap := snapshot()
		snap.Epoch.Counter += uint64(i)
		in, err := sender.Pack(encoded(snap), materials(), time.Unix(1, 0))
		if err != nil {
			t.Fatal(err)
		}
		parcels = append(parcels, in)
	}
	if len(parcels[0].Encapsulated) == 0 || len(parcels[1].Encapsulated)+len(parcels[2].Encapsulated) != 0 || bytes.Equal(parcels[1].Sealed, parcels[2].Sealed) {
		t.Error("the key is encapsulated once")
	}
	r := delivery.NewReceiver(a, p, s.verify)
	take := func(i int, good bool) {
		t.Helper()
		snap, m, err := r.Unpack(parcels[i])
		if good && (err != nil || len(m) != 2 || snap.Epoch != (keyring.Epoch{Incarnation: 1, Counter: 5 + uint64(i)})) {
			t.Fatalf("parcel %d: %v, %v", i, snap.Epoch, err)
		}
		if !good && fault.CodeOf(err) != fault.SnapshotRefused {
			t.Fatalf("parcel %d out of order: %v", i, err)
		}
		if gap := !good && i > 0; errors.Is(err, delivery.ErrGap) != gap {
			t.Fatalf("parcel %d: gap %v, want %v", i, !gap, gap)
		}
	}
	take(1, false) // too early
	take(0, true)
	take(0, false) // repeated
	take(2, false)
	take(1, true)
	take(2, true)
}
