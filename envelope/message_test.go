package envelope_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

func messageKey(t testing.TB, material byte, handle uint32, namespace, key string) *envelope.MessageKey {
	t.Helper()
	k, err := envelope.NewMessageKey(secret.Copy(bytes.Repeat([]byte{material}, 32)), handle, namespace, key)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func seal(t testing.TB, k *envelope.MessageKey, plain string, parts ...envelope.Part) []byte {
	t.Helper()
	m, err := k.Encrypt(nil, []byte(plain), parts...)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func part(label, value string) envelope.Part {
	return envelope.Part{Label: label, Value: []byte(value)}
}

func TestMessage(t *testing.T) {
	k := messageKey(t, 1, 0xa1b2c3d4, "ns", "key")
	for _, n := range []int{0, 1, 15, 16, 17, 255, 256, 4096, 1 << 20} {
		plain := string(plaintext(n))
		for _, parts := range [][]envelope.Part{nil, {part("id", "7")}, {part("id", strings.Repeat("x", 1000)), part("", "")}} {
			m := seal(t, k, plain, parts...)
			if len(m) != n+envelope.MessageOverhead || m[0] != 1 || binary.BigEndian.Uint32(m[1:]) != 0xa1b2c3d4 {
				t.Fatalf("%d bytes became %d: % x", n, len(m), m[:5])
			}
			got, err := k.Decrypt([]byte("before"), m, parts...)
			if err != nil || string(got) != "before"+plain {
				t.Errorf("%d bytes: %v", n, err)
			}
		}
	}
	if bytes.Equal(seal(t, k, "same"), seal(t, k, "same")) {
		t.Error("two messages are the same")
	}
	if h, err := envelope.MessageHandle(seal(t, k, "")); err != nil || h != 0xa1b2c3d4 {
		t.Error(h, err)
	}
}

// TestMessageIsXAES opens a message with the AEAD and associated data made by hand, as spec/message.md says.
func TestMessageIsXAES(t *testing.T) {
	material := secret.Copy(bytes.Repeat([]byte{1}, 32))
	m := seal(t, messageKey(t, 1, 9, "ns", "key"), "hello", part("id", "7"), part("t", ""))
	var data []byte
	for _, f := range []string{"rotor/field/1", "\x01", "\x00\x00\x00\x09", "ns", "key", "id", "7", "t", ""} {
		data = field(data, f)
	}
	aead, err := suite.NewXAES(material)
	if err != nil {
		t.Fatal(err)
	}
	got, err := aead.Open(nil, m[5:29], m[29:], data)
	if err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestMessageOfAnother: key bytes, handle, namespace, key and parts are all bound.
func TestMessageOfAnother(t *testing.T) {
	id := part("id", "7")
	k := messageKey(t, 1, 9, "ns", "key")
	m := seal(t, k, "hello", id)
	for name, other := range map[string]*envelope.MessageKey{
		"key bytes": messageKey(t, 2, 9, "ns", "key"), "handle": messageKey(t, 1, 8, "ns", "key"),
		"namespace": messageKey(t, 1, 9, "n2", "key"), "key": messageKey(t, 1, 9, "ns", "ke2"),
		"border of namespace and key": messageKey(t, 1, 9, "nsk", "ey"), "empty namespace": messageKey(t, 1, 9, "", "nskey"),
	} {
		_, err := other.Decrypt(nil, m, id)
		if wantCode(t, err, fault.DecryptFailed); err == nil {
			t.Error("opened with another", name)
		}
		// A handle in the message that is the other key's does not help.
		moved := slices.Clone(m)
		copy(moved, seal(t, other, "")[:5])
		_, err = other.Decrypt(nil, moved, id)
		if wantCode(t, err, fault.DecryptFailed); err == nil {
			t.Error("moved to another", name)
		}
	}
	for name, parts := range map[string][]envelope.Part{
		"none": nil, "twice": {id, id}, "another value": {part("id", "8")}, "another label": {part("ie", "7")}, "border moved": {part("i", "d7")},
		"all in the label": {part("id7", "")}, "one more": {id, part("", "")}, "one before": {part("", ""), id},
	} {
		_, err := k.Decrypt(nil, m, parts...)
		if wantCode(t, err, fault.DecryptFailed); err == nil {
			t.Error("opened with parts", name)
		}
	}
}

// TestPartsAreInjective: two different lists of parts are never the same associated data. Small alphabets make collisions likely for an
// encoding that is not injective.
func TestPartsAreInjective(t *testing.T) {
	k := messageKey(t, 1, 9, "ns", "key")
	text := rapid.StringOfN(rapid.RuneFrom([]rune{'a', 0, 1}), 0, 6, -1)
	list := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) envelope.Part { return part(text.Draw(t, "label"), text.Draw(t, "value")) }), 0, 3)
	rapid.Check(t, func(rt *rapid.T) {
		a, b := list.Draw(rt, "a"), list.Draw(rt, "b")
		same := slices.EqualFunc(a, b, func(p, q envelope.Part) bool { return p.Label == q.Label && bytes.Equal(p.Value, q.Value) })
		_, err := k.Decrypt(nil, seal(t, k, "hello", a...), b...)
		if same != (err == nil) {
			rt.Fatalf("%v and %v: %v", a, b, err)
		}
	})
	if _, err := k.Decrypt(nil, seal(t, k, "hello", part("a", ""), part("b", "1")), part("a", "\x00\x00\x00\x01b1")); err == nil {
		t.Error("a value that holds an encoded label is taken for a part")
	}
	// Parts that look like the encoding of others.
	var inner []byte
	for _, f := range []string{"b", "1"} {
		inner = field(inner, f)
	}
	m := seal(t, k, "hello", part("a", "1"), part("b", "1"))
	if _, err := k.Decrypt(nil, m, part("a", "1"+string(inner))); err == nil {
		t.Error("a value that holds an encoded part is taken for two parts")
	}
}

func TestFlippedBitInAMessage(t *testing.T) {
	k := messageKey(t, 1, 9, "ns", "key")
	m := seal(t, k, "hello", part("id", "7"))
	for i := range m {
		for bit := range 8 {
			m[i] ^= 1 << bit
			dst := bytes.Repeat([]byte{0xee}, 3)
			out, err := k.Decrypt(dst[:0], m, part("id", "7"))
			if wantCode(t, err, fault.DecryptFailed); out != nil {
				t.Errorf("bit %d of byte %d: %q", bit, i, out)
			}
			m[i] ^= 1 << bit
		}
	}
	for n := range m {
		if _, err := k.Decrypt(nil, m[:n], part("id", "7")); fault.CodeOf(err) != fault.DecryptFailed {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	if _, err := k.Decrypt(nil, append(m, 0), part("id", "7")); err == nil {
		t.Error("a byte too many")
	}
}

func TestMessageHandleRefusesWhatIsNoMessage(t *testing.T) {
	short := make([]byte, envelope.MessageOverhead-1)
	short[0] = 1
	for _, b := range [][]byte{nil, {1}, short, make([]byte, 100), append([]byte{2}, make([]byte, 100)...)} {
		_, err := envelope.MessageHandle(b)
		wantCode(t, err, fault.Invalid)
	}
}

func TestMessageKeyTakes32Bytes(t *testing.T) {
	for _, n := range []int{0, 16, 31, 33, 64} {
		_, err := envelope.NewMessageKey(secret.Random(n), 1, "ns", "key")
		wantCode(t, err, fault.Invalid)
	}
}

// TestEncryptWithinOneBuffer: plaintext and parts may lie where the message goes, at any distance.
func TestEncryptWithinOneBuffer(t *testing.T) {
	k := messageKey(t, 1, 9, "ns", "key")
	const size = 50
	for at := range 120 {
		buf := plaintext(400)
		plain, label := buf[at:at+size], buf[at+size:at+size+5]
		want, p := string(plain), part("id", string(label))
		m, err := k.Encrypt(buf[:0], plain, envelope.Part{Label: "id", Value: label})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := k.Decrypt(nil, m, p); err != nil || string(got) != want {
			t.Fatalf("plaintext at %d: %v", at, err)
		}
	}
}

func TestEncryptAppends(t *testing.T) {
	k := messageKey(t, 1, 9, "ns", "key")
	for _, room := range []int{0, 1, 40, 44, 45, 50, 100} {
		dst := append(make([]byte, 0, 6+room), "before"...)
		m, err := k.Encrypt(dst, []byte("hello"))
		if err != nil || !bytes.HasPrefix(m, []byte("before")) {
			t.Fatal(m, err)
		}
		if got, err := k.Decrypt(nil, m[6:]); err != nil || string(got) != "hello" {
			t.Error(got, err)
		}
	}
}

// TestMessageAllocations: what the bars of the project allow (at most 2 appending, 3 otherwise, parts included).
func TestMessageAllocations(t *testing.T) {
	k := messageKey(t, 1, 9, "ns", "key")
	plain, id := plaintext(256), part("id", "7")
	buf := make([]byte, 0, 1000)
	m := seal(t, k, string(plain), id)
	for name, c := range map[string]struct {
		most float64
		f    func() ([]byte, error)
	}{
		"append encrypt": {2, func() ([]byte, error) { return k.Encrypt(buf, plain, id) }},
		"append decrypt": {2, func() ([]byte, error) { return k.Decrypt(buf, m, id) }},
		"encrypt":        {3, func() ([]byte, error) { return k.Encrypt(nil, plain, id) }},
		"decrypt":        {3, func() ([]byte, error) { return k.Decrypt(nil, m, id) }},
	} {
		if got := testing.AllocsPerRun(100, func() {
			if _, err := c.f(); err != nil {
				t.Error(err)
			}
		}); got > c.most {
			t.Errorf("%s: %v allocations, at most %v", name, got, c.most)
		}
	}
}

func TestText(t *testing.T) {
	k := messageKey(t, 1, 9, "ns", "key")
	for n := range 5 {
		m := seal(t, k, strings.Repeat("x", n))
		text := envelope.EncodeText(m)
		if !strings.HasPrefix(text, "rk1.") || strings.ContainsAny(text, "+/= ") {
			t.Error(text)
		}
		got, err := envelope.DecodeText(text)
		if err != nil || !bytes.Equal(got, m) {
			t.Error(err)
		}
		body := text[4:]
		for i, bad := range []string{
			body, "rk2." + body, "RK1." + body, " " + text, text + " ", text + "\n", "rk1.\r" + body, text[:20] + "\n" + text[20:], text + "=", text + "!",
			"", "rk1", strings.ReplaceAll(text, "rk1.", "rk1:"),
		} {
			_, err := envelope.DecodeText(bad)
			if wantCode(t, err, fault.Invalid); err == nil {
				t.Errorf("%d: %q was decoded", i, bad)
			}
		}
	}
	for _, bad := range []string{"rk1.AAB", "rk1.AB", "rk1.A"} { // bits that say nothing
		if _, err := envelope.DecodeText(bad); fault.CodeOf(err) != fault.Invalid {
			t.Error(fmt.Sprintf("%q was decoded", bad), err)
		}
	}
}
