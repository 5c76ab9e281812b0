package shamir

import "github.com/rotorkms/rotor/internal/secret"

// ShareWith is a share with one byte of its value changed, as a custodian can make it.
func ShareWith(s Share, at int) Share {
	b := append([]byte(nil), s.value.Reveal()...)
	b[at] ^= 0x40
	s.value = secret.Take(b)
	return s
}
