package shamir

// The field GF(2^8) with the polynomial x^8 + x^4 + x^3 + x + 1 (FIPS 197, 4.2). No table and no branch depends on a value: shares
// are secrets, and the cache of a processor is shared.

// mul multiplies two elements: eight steps, whatever they are.
func mul(a, b byte) byte {
	var product byte
	for range 8 {
		product ^= -(b & 1) & a
		a = a<<1 ^ -(a>>7)&0x1b
		b >>= 1
	}
	return product
}

// inverse is a^254, which is 1/a, and 0 for 0: thirteen multiplications, whatever a is.
func inverse(a byte) byte {
	out := byte(1)
	square := a
	for range 7 { // 254 = 2 + 4 + 8 + 16 + 32 + 64 + 128
		square = mul(square, square)
		out = mul(out, square)
	}
	return out
}

// at evaluates a polynomial, lowest coefficient first (Horner).
func at(coefficients []byte, x byte) byte {
	var y byte
	for i := len(coefficients) - 1; i >= 0; i-- {
		y = mul(y, x) ^ coefficients[i]
	}
	return y
}

// weights are Lagrange's, of the value at 0, for points at distinct xs that are not 0.
func weights(xs []byte) []byte {
	out := make([]byte, len(xs))
	for i, x := range xs {
		w := byte(1)
		for j, other := range xs {
			if j != i {
				w = mul(w, mul(other, inverse(other^x)))
			}
		}
		out[i] = w
	}
	return out
}
