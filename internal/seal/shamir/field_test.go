package shamir

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"

	"github.com/rotorkms/rotor/internal/secret"
)

// slow is multiplication as FIPS 197, 4.2 defines it: of polynomials, and the rest of the division.
func slow(a, b byte) byte {
	var p uint16
	for i := range 8 {
		if b>>i&1 == 1 {
			p ^= uint16(a) << i
		}
	}
	for i := 15; i >= 8; i-- {
		if p>>i&1 == 1 {
			p ^= 0x11b << (i - 8)
		}
	}
	return byte(p)
}

// TestField goes over the whole field. The examples of FIPS 197, 4.2 are {57}·{83} = {c1} and {57}·{13} = {fe}.
func TestField(t *testing.T) {
	if mul(0x57, 0x83) != 0xc1 || mul(0x57, 0x13) != 0xfe {
		t.Error("the standard's examples do not hold")
	}
	for a := range 256 {
		for b := range 256 {
			if got, want := mul(byte(a), byte(b)), slow(byte(a), byte(b)); got != want {
				t.Fatalf("%x·%x = %x, not %x", a, b, got, want)
			}
		}
		want := byte(1)
		if a == 0 {
			want = 0
		}
		if got := mul(byte(a), inverse(byte(a))); got != want {
			t.Fatalf("%x times its inverse is %x", a, got)
		}
	}
}

// TestVector: by hand, f(x) = 0x42 + 0x57·x + 0x13·x². f(1) = 42^57^13 = 06; f(2) = 42^ae^4c = a0; f(3) = 42^f9^5f = e4.
func TestVector(t *testing.T) {
	f := []byte{0x42, 0x57, 0x13}
	var ys [3]byte
	for i := range ys {
		ys[i] = at(f, byte(i+1))
	}
	if ys != [3]byte{0x06, 0xa0, 0xe4} {
		t.Errorf("%x", ys)
	}
	w := weights([]byte{1, 2, 3})
	if got := mul(w[0], ys[0]) ^ mul(w[1], ys[1]) ^ mul(w[2], ys[2]); got != 0x42 {
		t.Errorf("%x", got)
	}
}

// TestSplit: any k of n shares give the secret, in any order; fewer do not, and are consistent with every secret.
func TestSplit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 255).Draw(t, "n")
		k := rapid.IntRange(2, min(n, 12)).Draw(t, "k")
		want := rapid.SliceOfN(rapid.Byte(), seedSize, seedSize).Draw(t, "secret")
		shares := split(secret.Copy(want), k, n, "0011223344556677")
		chosen := rapid.Permutation(shares).Draw(t, "order")
		if got := combine(chosen[:k]); !bytes.Equal(got.Reveal(), want) {
			t.Fatalf("%d of %d: %x, not %x", k, n, got.Reveal(), want)
		}
		if more := min(n, k+2); !bytes.Equal(combine(chosen[:more]).Reveal(), want) {
			t.Fatal("more than needed do not give it")
		}
		// One share short: for any other secret there is a share that would complete it.
		other := rapid.SliceOfN(rapid.Byte(), seedSize, seedSize).Draw(t, "other")
		xs := []byte{}
		for _, s := range chosen[:k] {
			xs = append(xs, byte(s.Index))
		}
		w := weights(xs)
		y := make([]byte, seedSize)
		for b := range y {
			sum := other[b]
			for i, s := range chosen[:k-1] {
				sum ^= mul(w[i], s.value.Reveal()[b])
			}
			y[b] = mul(sum, inverse(w[k-1]))
		}
		last := chosen[k-1]
		last.value = secret.Take(y)
		if got := combine(append(append([]Share{}, chosen[:k-1]...), last)); !bytes.Equal(got.Reveal(), other) {
			t.Fatal("k-1 shares say something about the secret")
		}
	})
}
