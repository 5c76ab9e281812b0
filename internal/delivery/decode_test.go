package delivery

import (
	"bytes"
	"testing"
)

// FuzzDecode reads lists of materials. Nobody but the server can make one, and the parser trusts it no more for that.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(nil))
	f.Add([]byte{0, 0, 0, 1, 0, 2, 7, 7})
	f.Add([]byte{0, 0, 0, 1, 0, 1, 7, 0, 0, 0, 1, 0, 1, 8})
	f.Add([]byte{0, 0, 0, 1, 0xff, 0xff, 7})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decode(b)
		if err != nil {
			return
		}
		size := 0
		for n, s := range m {
			size += 6 + s.Len()
			if s.IsZero() {
				t.Errorf("version %d has no material", n)
			}
		}
		if size != len(b) {
			t.Errorf("%d bytes of %d were read", size, len(b))
		}
		again, err := decode(encode(m))
		if err != nil || len(again) != len(m) {
			t.Errorf("%v", err)
		}
		for n := range m {
			if !bytes.Equal(again[n].Reveal(), m[n].Reveal()) {
				t.Errorf("version %d changed", n)
			}
		}
	})
}
