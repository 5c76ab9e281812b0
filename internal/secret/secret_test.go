package secret_test

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/gob"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/rotorkms/rotor/internal/secret"
)

// raw is what must not appear in any output, in any of the forms that forms lists.
var raw = []byte{0x9c, 0x41, 0x42, 0xd7, 0x43, 0x44, 0xe1, 0x45, 0x46, 0xb3, 0x47, 0x48}

func forms(b []byte) []string {
	decimal := strings.Trim(fmt.Sprintf("%d", b), "[]")
	chars := make([]string, len(b))
	for i, c := range b {
		chars[i] = fmt.Sprintf("0x%x", c)
	}
	binaryDigits := strings.Trim(fmt.Sprintf("%b", b), "[]")
	octal := strings.Trim(fmt.Sprintf("%o", b), "[]")
	return []string{
		string(b), hex.EncodeToString(b), strings.ToUpper(hex.EncodeToString(b)), fmt.Sprintf("% x", b), fmt.Sprintf("% X", b), decimal,
		strings.ReplaceAll(decimal, " ", ","), strings.Join(chars, ", "), binaryDigits, octal, strings.Trim(fmt.Sprintf("%c", b), "[]"),
		strings.Trim(fmt.Sprintf("%q", string(b)), `"`), strings.Trim(fmt.Sprintf("%+q", string(b)), `"`), strings.Trim(fmt.Sprintf("%U", b), "[]"),
		base64.StdEncoding.EncodeToString(b), base64.RawURLEncoding.EncodeToString(b), strings.Trim(fmt.Sprintf("%q", b), "[]"),
	}
}

// leaks says whether the output holds the bytes in any form.
func leaks(out string) bool {
	for _, f := range forms(raw) {
		if strings.Contains(out, f) {
			return true
		}
	}
	return false
}

type holder struct {
	Name   string
	Secret secret.Bytes
	hidden secret.Bytes
}

type embedded struct{ secret.Bytes }

// leaky is the planted leak: what a []byte with the methods that one would think of still gives away.
type leaky []byte

func (leaky) String() string               { return "[secret]" }
func (leaky) MarshalJSON() ([]byte, error) { return nil, errors.New("no") }

// outputs runs every printer and encoder over a value.
func outputs(v any) map[string]string {
	all := map[string]string{}
	for _, flag := range []string{"", "+", "#", " ", "-", "0", "30", "+#", "#20.5", ".3"} {
		for _, verb := range "vTtbcdoOqxXUeEfFgGspw" {
			f := "%" + flag + string(verb)
			all[f] = fmt.Sprintf(f, v)
		}
	}
	all["print"], all["println"] = fmt.Sprint(v), fmt.Sprintln(v)
	all["errorf"] = fmt.Errorf("tried: %v", v).Error()
	var b bytes.Buffer
	b2, err := json.Marshal(v)
	all["json"] = string(b2) + fmt.Sprint(err)
	b2, err = xml.Marshal(v)
	all["xml"] = string(b2) + fmt.Sprint(err)
	err = gob.NewEncoder(&b).Encode(v)
	all["gob"] = b.String() + fmt.Sprint(err)
	b.Reset()
	err = binary.Write(&b, binary.BigEndian, v)
	all["binary"] = b.String() + fmt.Sprint(err)
	for name, h := range map[string]slog.Handler{
		"slog text": slog.NewTextHandler(&b, nil), "slog json": slog.NewJSONHandler(&b, nil),
	} {
		b.Reset()
		log := slog.New(h)
		log.With("with", v).Info("message", "attr", v, slog.Group("group", "member", v))
		all[name] = b.String()
	}
	return all
}

// TestCannotLeak: no verb, encoder or logger reaches the bytes, wherever the secret stands.
func TestCannotLeak(t *testing.T) {
	s := secret.Copy(raw)
	h := holder{Name: "n", Secret: s, hidden: s}
	n := 0
	for name, v := range map[string]any{
		"value": s, "pointer": &s, "field": h, "pointer to field": &h, "map": map[string]secret.Bytes{"k": s}, "map key": map[string]any{"k": h},
		"slice": []secret.Bytes{s, s}, "array": [2]secret.Bytes{s, s}, "interface": []any{s, &s, h}, "anonymous": embedded{s},
		"pointer to pointer": func() any { p := &s; return &p }(), "func": func() secret.Bytes { return s }, "channel": make(chan secret.Bytes),
		"nested": struct{ M map[int]*holder }{map[int]*holder{1: &h}},
	} {
		for how, out := range outputs(v) {
			if n++; leaks(out) {
				t.Errorf("%s, %s: %q", name, how, out)
			}
		}
	}
	t.Logf("%d combinations", n)
}

// TestPlantedLeak proves that the test would see the bytes.
func TestPlantedLeak(t *testing.T) {
	found := map[string]bool{}
	for _, v := range []any{leaky(raw), struct{ Secret leaky }{raw}, struct{ secret leaky }{raw}, raw} {
		for how, out := range outputs(v) {
			found[how] = found[how] || leaks(out)
		}
	}
	for _, how := range []string{"%v", "%+v", "%#v", "%d", "%x", "%X", "% x", "%s", "%q", "%o", "%b", "%c", "%U", "print", "errorf", "json", "gob", "binary", "slog text", "slog json"} {
		if !found[how] {
			t.Errorf("a leak by %s would not be seen", how)
		}
	}
}

func TestBytes(t *testing.T) {
	b := bytes.Clone(raw)
	taken, copied := secret.Take(b), secret.Copy(b)
	if !taken.Equal(copied) || taken.Len() != len(raw) || !bytes.Equal(copied.Reveal(), raw) {
		t.Error("the bytes changed")
	}
	b[0]++
	if !bytes.Equal(copied.Reveal(), raw) || taken.Equal(copied) {
		t.Error("Copy shares memory, or Take does not")
	}
	same := copied
	same.Destroy()
	if !bytes.Equal(copied.Reveal(), make([]byte, len(raw))) {
		t.Error("Destroy left bytes")
	}
	var zero secret.Bytes
	zero.Destroy()
	if !zero.IsZero() || zero.Len() != 0 || zero.Reveal() != nil || !zero.Equal(secret.Copy(nil)) || copied.IsZero() {
		t.Error("the zero value is not the empty secret")
	}
	if secret.Copy(raw).Equal(secret.Copy(raw[:11])) || secret.Copy(raw).Equal(zero) {
		t.Error("secrets of different lengths are equal")
	}
	if a, b := secret.Random(32), secret.Random(32); a.Len() != 32 || a.Equal(b) || a.Equal(secret.Take(make([]byte, 32))) {
		t.Error("Random is not")
	}
}

// TestDecoding: a secret cannot be filled from outside either.
func TestDecoding(t *testing.T) {
	var h holder
	for _, text := range []string{`{"Secret":"QUJD"}`, `{"Secret":{"get":1}}`} {
		_ = json.Unmarshal([]byte(text), &h) // an error or nothing, but no bytes
		if !h.Secret.IsZero() {
			t.Errorf("%s filled it", text)
		}
	}
}
