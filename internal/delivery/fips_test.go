//go:build fips

package delivery_test

import (
	"crypto/fips140"
	"testing"

	"github.com/rotorkms/rotor/internal/delivery"
)

// TestFIPSDelivery: in FIPS mode a process makes a key of ML-KEM-768 with P-256, and parcels arrive and are refused as ever.
func TestFIPSDelivery(t *testing.T) {
	if !fips140.Enforced() {
		t.Fatal("run with GODEBUG=fips140=only (make test-fips)")
	}
	if n := len(private(t).Public()); n != 1184+65 {
		t.Errorf("the delivery key has %d bytes", n)
	}
	if err := delivery.CheckPublic(private(t).Public()); err != nil {
		t.Error(err)
	}
	t.Run("arrives", TestParcelArrives)
	t.Run("refused", TestParcelRefused)
}
