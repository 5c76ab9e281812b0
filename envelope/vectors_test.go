package envelope_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/cipher"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/cryptotest"
	"time"

	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

var update = flag.Bool("update", false, "write the vectors anew")

const vectorSeed = 20260101

// fileVectors is spec/vectors/files.json. Keys are test keys.
type fileVectors struct {
	Comment string       `json:"comment"`
	KEK     string       `json:"kek"`  // hex; wraps with (key_id, version 1)
	KEK2    string       `json:"kek2"` // hex; wraps with (key_id, version 2)
	KeyID   string       `json:"key_id"`
	Cases   []fileVector `json:"cases"`
}

type fileVector struct {
	Name        string            `json:"name"`
	Size        int               `json:"size"`             // of the plaintext: byte i is (31 i + i / 256) mod 256
	DEK         string            `json:"dek,omitempty"`    // hex
	ContentType string            `json:"content_type"`     // of good cases
	Context     map[string]string `json:"context"`          // of good cases
	Version     uint32            `json:"version"`          // of the key that the newest wrap is under
	Generation  uint64            `json:"generation"`       // of the newest slot
	Torn        []int             `json:"torn"`             // slots
	File        string            `json:"file_gzip_base64"` // the whole file
	Error       string            `json:"error,omitempty"`  // of bad cases
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(31*i + i/256)
	}
	return b
}

// testKEK wraps and unwraps with keys of versions 1 and 2, and remembers the data key.
type testKEK struct {
	id   string
	keys map[uint32][]byte
	dek  []byte
}

func (k *testKEK) wrap(v uint32) envelope.Wrap {
	return envelope.Wrap{Type: envelope.WrapKeyFile, KeyID: k.id, Version: v, Algorithm: suite.XAES256GCM, ProtectTime: time.Unix(1767225600, 0)}
}

func (k *testKEK) aead(v uint32) (cipher.AEAD, error) {
	return suite.NewXAES(secret.Copy(k.keys[v]))
}

func (k *testKEK) WrapDEK(_ context.Context, dek envelope.Secret, immutable []byte) (envelope.Wrap, error) {
	k.dek = bytes.Clone(dek.Reveal())
	a, err := k.aead(1)
	if err != nil {
		return envelope.Wrap{}, err
	}
	return envelope.SealDEK(a, k.wrap(1), immutable, dek)
}

func (k *testKEK) UnwrapDEK(_ context.Context, w envelope.Wrap, immutable []byte) (envelope.Secret, error) {
	if w.KeyID != k.id || k.keys[w.Version] == nil {
		return envelope.Secret{}, fault.New(fault.NotFound, "key")
	}
	a, err := k.aead(w.Version)
	if err != nil {
		return envelope.Secret{}, err
	}
	return envelope.OpenDEK(a, w, immutable)
}

func (k *testKEK) rewrap(ctx context.Context, immutable []byte, wraps []envelope.Wrap) ([]envelope.Wrap, bool, error) {
	dek, err := k.UnwrapDEK(ctx, wraps[0], immutable)
	if err != nil {
		return nil, false, err
	}
	a, err := k.aead(2)
	if err != nil {
		return nil, false, err
	}
	w, err := envelope.SealDEK(a, k.wrap(2), immutable, dek)
	return []envelope.Wrap{w}, true, err
}

func gz(t *testing.T, b []byte) string {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(out.Bytes())
}

func ungz(t *testing.T, s string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	r, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (k *testKEK) encrypt(t *testing.T, size int, o envelope.Options) []byte {
	t.Helper()
	var out bytes.Buffer
	o.Wrappers = []envelope.Wrapper{k}
	w, err := envelope.NewWriter(t.Context(), &out, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(pattern(size)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func (k *testKEK) rewrapped(t *testing.T, file []byte) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := envelope.Rewrap(t.Context(), path, k.rewrap); err != nil {
		t.Fatal(err)
	}
	out, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func makeFileVectors(t *testing.T, k *testKEK) (all []fileVector) {
	const slot = 12 << 10
	add := func(v fileVector, file []byte) { v.File = gz(t, file); all = append(all, v) }
	var big []byte
	for _, size := range []int{0, 1, 100, 16383, 16384, 16385, 33000} {
		o := envelope.Options{ContentType: "application/octet-stream"}
		if size == 100 {
			o.Context = map[string]string{"team": "vision", "b": "2", "": "empty name", "ü": "ß"}
		}
		file := k.encrypt(t, size, o)
		add(fileVector{Name: fmt.Sprintf("%d bytes", size), Size: size, DEK: hex.EncodeToString(k.dek), ContentType: o.ContentType, Context: o.Context, Version: 1, Generation: 1}, file)
		if size == 33000 {
			big = file
		}
	}
	const small = 300
	base := k.encrypt(t, small, envelope.Options{ContentType: "application/octet-stream"})
	good := fileVector{Size: small, DEK: hex.EncodeToString(k.dek), ContentType: "application/octet-stream"}
	payload := len(base) - (56 + small + 16)
	slots := payload - 2*slot
	once := k.rewrapped(t, base)
	variant := func(name string, version uint32, generation uint64, torn []int, file []byte) {
		v := good
		v.Name, v.Version, v.Generation, v.Torn = name, version, generation, torn
		add(v, file)
	}
	bad := func(name string, code fault.Code, file []byte) {
		add(fileVector{Name: name, Error: string(code)}, file)
	}
	flip := func(file []byte, at ...int) []byte {
		f := bytes.Clone(file)
		for _, i := range at {
			f[i] ^= 1
		}
		return f
	}
	variant("rewrapped once, newest in slot 1", 2, 2, nil, once)
	variant("rewrapped twice, newest in slot 0", 2, 3, nil, k.rewrapped(t, once))
	variant("rewrapped, then slot 1 torn", 1, 1, []int{1}, flip(once, slots+slot+500))
	variant("slot 0 torn", 1, 1, []int{0}, flip(base, slots+3))
	bad("both slots torn", fault.MalformedFile, flip(base, slots, slots+slot))
	bad("magic", fault.MalformedFile, flip(base, 3))
	bad("length of the immutable part", fault.MalformedFile, flip(base, 14))
	bad("immutable part", fault.MalformedFile, flip(base, 60))
	bad("salt", fault.DecryptFailed, flip(base, payload))
	bad("commitment", fault.DecryptFailed, flip(base, payload+24))
	bad("last chunk", fault.DecryptFailed, flip(base, len(base)-1))
	c := payload + 56
	bad("first of three chunks", fault.DecryptFailed, flip(big, c+5))
	bad("two chunks changed places", fault.DecryptFailed, bytes.Join([][]byte{big[:c], big[c+16400 : c+32800], big[c : c+16400], big[c+32800:]}, nil))
	bad("last chunk missing", fault.TruncatedFile, big[:c+32800])
	bad("cut in the second chunk", fault.DecryptFailed, big[:c+20000])
	bad("cut in the salt", fault.TruncatedFile, base[:payload+10])
	bad("cut in the slots", fault.TruncatedFile, base[:payload-1])
	bad("empty", fault.TruncatedFile, nil)
	bad("one byte more", fault.DecryptFailed, append(bytes.Clone(base), 0))
	other := bytes.Clone(k.encrypt(t, small, envelope.Options{}))
	op := len(other) - (56 + small + 16)
	bad("slots of another file", fault.DecryptFailed, bytes.Join([][]byte{base[:slots], other[op-2*slot : op], base[payload:]}, nil))
	bad("payload of another file", fault.DecryptFailed, bytes.Join([][]byte{base[:payload], other[op:]}, nil))
	bad("unknown key", fault.NotFound, edited(base, slots, "key-1", "key-2"))
	bad("version of the wrap changed", fault.DecryptFailed, reversioned(once, slots+slot))
	return all
}

// edited replaces text in both slots and makes their checksums right again.
func edited(file []byte, slots int, from, to string) []byte {
	const slot = 12 << 10
	f := bytes.Clone(file)
	copy(f[slots:slots+2*slot], bytes.ReplaceAll(f[slots:slots+2*slot], []byte(from), []byte(to)))
	resum(f[slots : slots+slot])
	resum(f[slots+slot : slots+2*slot])
	return f
}

// reversioned says version 1 in the first wrap of a slot that is under version 2.
func reversioned(file []byte, slot int) []byte {
	f := bytes.Clone(file)
	at := slot + 16 + 4 + 1 + 4 + len("key-1")
	binary.BigEndian.PutUint32(f[at:], 1)
	resum(f[slot : slot+12<<10])
	return f
}

func resum(slot []byte) {
	binary.BigEndian.PutUint32(slot, crc32.Checksum(slot[4:12<<10], crc32.MakeTable(crc32.Castagnoli)))
}

func vectorPath(name string) string { return filepath.Join("..", "spec", "vectors", name) }

func writeVectors(t *testing.T, name string, v any) {
	t.Helper()
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", " ")
	if err := e.Encode(v); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(vectorPath(name), b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

func readVectors(t *testing.T, name string, v any) {
	t.Helper()
	b, err := os.ReadFile(vectorPath(name))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
}

func TestFileVectors(t *testing.T) {
	if *update {
		cryptotest.SetGlobalRandom(t, vectorSeed)
		k := &testKEK{id: "key-1", keys: map[uint32][]byte{1: bytes.Repeat([]byte{0x11}, 32), 2: bytes.Repeat([]byte{0x22}, 32)}}
		writeVectors(t, "files.json", fileVectors{
			Comment: "spec/file.md. Byte i of a plaintext is (31 i + i / 256) mod 256. Wraps are of type 2 (key file).",
			KEK:     hex.EncodeToString(k.keys[1]), KEK2: hex.EncodeToString(k.keys[2]), KeyID: k.id, Cases: makeFileVectors(t, k),
		})
	}
	var all fileVectors
	readVectors(t, "files.json", &all)
	if len(all.Cases) < 25 {
		t.Fatalf("%d cases", len(all.Cases))
	}
	one, _ := hex.DecodeString(all.KEK)
	two, _ := hex.DecodeString(all.KEK2)
	k := &testKEK{id: all.KeyID, keys: map[uint32][]byte{1: one, 2: two}}
	for _, c := range all.Cases {
		file := ungz(t, c.File)
		got, h, err := openAll(t, file, k)
		stream, streamErr := vectorStream(t, file, k)
		if c.Error != "" {
			if string(fault.CodeOf(err)) != c.Error {
				t.Errorf("%s: %v, want %s", c.Name, err, c.Error)
			}
			if streamErr == nil {
				t.Errorf("%s: the stream reader took it", c.Name)
			}
			continue
		}
		if err != nil || streamErr != nil || !bytes.Equal(got, pattern(c.Size)) || !bytes.Equal(stream, got) {
			t.Errorf("%s: %d bytes, %v, %v", c.Name, len(got), err, streamErr)
			continue
		}
		if h.Generation != c.Generation || h.Wraps[0].Version != c.Version || h.ContentType != c.ContentType || len(h.Context) != len(c.Context) {
			t.Errorf("%s: generation %d, version %d, %q", c.Name, h.Generation, h.Wraps[0].Version, h.ContentType)
		}
		for _, i := range c.Torn {
			if !h.Torn[i] {
				t.Errorf("%s: slot %d is not torn", c.Name, i)
			}
		}
	}
}

func openAll(t *testing.T, file []byte, u envelope.Unwrapper) ([]byte, envelope.Header, error) {
	t.Helper()
	f, err := envelope.Open(t.Context(), bytes.NewReader(file), int64(len(file)), u)
	if err != nil {
		return nil, envelope.Header{}, err
	}
	b, err := f.ReadAll(t.Context())
	return b, f.Header(), err
}

func vectorStream(t *testing.T, file []byte, u envelope.Unwrapper) ([]byte, error) {
	t.Helper()
	r, err := envelope.NewReader(t.Context(), bytes.NewReader(file), u)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// messageVectors is spec/vectors/messages.json.
type messageVectors struct {
	Comment   string          `json:"comment"`
	Material  string          `json:"material"` // hex
	Handle    uint32          `json:"handle"`
	Namespace string          `json:"namespace"`
	KeyID     string          `json:"key_id"`
	Cases     []messageVector `json:"cases"`
	Injective []injective     `json:"injective"`
}

type messageVector struct {
	Name      string       `json:"name"`
	Plaintext string       `json:"plaintext"` // hex
	Parts     []vectorPart `json:"parts"`
	Text      string       `json:"text"` // the text form
	Error     string       `json:"error,omitempty"`
}

type vectorPart struct {
	Label string `json:"label"`
	Value string `json:"value"` // hex
}

// injective is two lists of parts that look alike: a message for the one does not open with the other.
type injective struct {
	A       []vectorPart `json:"a"`
	B       []vectorPart `json:"b"`
	Message string       `json:"message"` // text form, made with A
}

func partsOf(t *testing.T, parts []vectorPart) (out []envelope.Part) {
	t.Helper()
	for _, p := range parts {
		v, err := hex.DecodeString(p.Value)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, envelope.Part{Label: p.Label, Value: v})
	}
	return out
}

func vp(labelsAndValues ...string) (out []vectorPart) {
	for i := 0; i < len(labelsAndValues); i += 2 {
		out = append(out, vectorPart{labelsAndValues[i], hex.EncodeToString([]byte(labelsAndValues[i+1]))})
	}
	return out
}

func makeMessageVectors(t *testing.T, v *messageVectors) {
	material, _ := hex.DecodeString(v.Material)
	key := func(material []byte, handle uint32, ns, id string) *envelope.MessageKey {
		k, err := envelope.NewMessageKey(secret.Copy(material), handle, ns, id)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	k := key(material, v.Handle, v.Namespace, v.KeyID)
	seal := func(k *envelope.MessageKey, plain string, parts []vectorPart) []byte {
		m, err := k.Encrypt(nil, []byte(plain), partsOf(t, parts)...)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	add := func(name, plain string, parts []vectorPart, message []byte, code fault.Code) {
		v.Cases = append(v.Cases, messageVector{name, hex.EncodeToString([]byte(plain)), parts, envelope.EncodeText(message), string(code)})
	}
	good := seal(k, "a secret", vp("id", "7"))
	add("empty", "", nil, seal(k, "", nil), "")
	add("no parts", "a secret", nil, seal(k, "a secret", nil), "")
	add("one part", "a secret", vp("id", "7"), good, "")
	add("two parts", "\x00\xff", vp("table", "users", "id", "\x00\x01"), seal(k, "\x00\xff", vp("table", "users", "id", "\x00\x01")), "")
	add("1000 bytes", strings.Repeat("0123456789", 100), vp("id", "7"), seal(k, strings.Repeat("0123456789", 100), vp("id", "7")), "")
	failed := fault.DecryptFailed
	add("other part", "", vp("id", "8"), good, failed)
	add("part missing", "", nil, good, failed)
	for _, i := range []int{0, 1, 5, 29, 52} {
		m := bytes.Clone(good)
		m[i] ^= 1
		add(fmt.Sprintf("byte %d flipped", i), "", vp("id", "7"), m, failed)
	}
	add("cut off", "", vp("id", "7"), good[:44], failed)
	add("byte more", "", vp("id", "7"), append(bytes.Clone(good), 0), failed)
	add("other namespace", "", vp("id", "7"), seal(key(material, v.Handle, "other", v.KeyID), "x", vp("id", "7")), failed)
	add("other key", "", vp("id", "7"), seal(key(material, v.Handle, v.Namespace, "other"), "x", vp("id", "7")), failed)
	add("other material", "", vp("id", "7"), seal(key(bytes.Repeat([]byte{9}, 32), v.Handle, v.Namespace, v.KeyID), "x", vp("id", "7")), failed)
	pairs := [][2][]vectorPart{
		{vp("a", "bc"), vp("ab", "c")},
		{vp("a", "b", "c", "d"), vp("c", "d", "a", "b")},
		{vp("a", "b", "", ""), vp("a", "b")},
		{vp("", ""), nil},
		{vp("a", "\x00\x00\x00\x01b\x00\x00\x00\x00"), vp("a", "", "b", "")},
		{vp("a", "b\x00\x00\x00\x01c\x00\x00\x00\x01d"), vp("a", "b", "c", "d")},
	}
	for _, pair := range pairs {
		v.Injective = append(v.Injective, injective{pair[0], pair[1], envelope.EncodeText(seal(k, "x", pair[0]))})
	}
}

func TestMessageVectors(t *testing.T) {
	if *update {
		cryptotest.SetGlobalRandom(t, vectorSeed)
		v := messageVectors{
			Comment:  "spec/message.md. plaintext and values in hex; text is the text form, which carries the nonce.",
			Material: strings.Repeat("42", 32), Handle: 0xdeadbeef, Namespace: "default", KeyID: "000102030405060708090a0b0c0d0e0f",
		}
		makeMessageVectors(t, &v)
		writeVectors(t, "messages.json", v)
	}
	var v messageVectors
	readVectors(t, "messages.json", &v)
	if len(v.Cases) < 15 || len(v.Injective) < 6 {
		t.Fatalf("%d and %d cases", len(v.Cases), len(v.Injective))
	}
	material, _ := hex.DecodeString(v.Material)
	k, err := envelope.NewMessageKey(secret.Take(material), v.Handle, v.Namespace, v.KeyID)
	if err != nil {
		t.Fatal(err)
	}
	open := func(text string, parts []vectorPart) ([]byte, error) {
		m, err := envelope.DecodeText(text)
		if err != nil {
			t.Fatal(err)
		}
		return k.Decrypt(nil, m, partsOf(t, parts)...)
	}
	for _, c := range v.Cases {
		got, err := open(c.Text, c.Parts)
		if string(fault.CodeOf(err)) != c.Error || c.Error == "" && hex.EncodeToString(got) != c.Plaintext {
			t.Errorf("%s: %q, %v", c.Name, got, err)
		}
	}
	for _, c := range v.Injective {
		if got, err := open(c.Message, c.A); err != nil || string(got) != "x" {
			t.Errorf("%v: %q, %v", c.A, got, err)
		}
		if _, err := open(c.Message, c.B); fault.CodeOf(err) != fault.DecryptFailed {
			t.Errorf("a message for %v opens with %v", c.A, c.B)
		}
	}
}

// suiteVectors are messages of every symmetric suite, under handle, namespace and key of messages.json.
type suiteVectors struct {
	Comment string        `json:"comment"`
	Cases   []suiteVector `json:"cases"`
}

type suiteVector struct {
	Name      string          `json:"name"`
	Algorithm suite.Algorithm `json:"algorithm"`
	Suite     int             `json:"suite"`
	Material  string          `json:"material"`
	Plaintext string          `json:"plaintext,omitempty"`
	Parts     []vectorPart    `json:"parts"`
	Text      string          `json:"text"`
	Error     string          `json:"error,omitempty"`
}

// suiteKey makes the key of a vector.
func (v suiteVector) key(t *testing.T) *envelope.MessageKey {
	t.Helper()
	material, err := hex.DecodeString(v.Material)
	if err != nil {
		t.Fatal(err)
	}
	k, err := envelope.NewMessageKeyOf(v.Algorithm, secret.Take(material), 0xdeadbeef, "default", "000102030405060708090a0b0c0d0e0f")
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func makeSuiteVectors(t *testing.T) (v suiteVectors) {
	v.Comment = "spec/message.md, every suite. Handle, namespace and key ID are those of messages.json."
	for _, s := range suite.All() {
		if s.Nonce == 0 {
			continue
		}
		c := suiteVector{Name: string(s.ID), Algorithm: s.ID, Suite: int(s.Message), Material: strings.Repeat("42", s.KeyBytes), Parts: vp("id", "7"), Plaintext: hex.EncodeToString([]byte("a secret"))}
		m, err := c.key(t).Encrypt(nil, []byte("a secret"), partsOf(t, c.Parts)...)
		if err != nil {
			t.Fatal(err)
		}
		c.Text = envelope.EncodeText(m)
		v.Cases = append(v.Cases, c)
		c.Plaintext, c.Error = "", string(fault.DecryptFailed)
		for i, what := range map[int]string{0: "suite", 5: "nonce", len(m) - 1: "tag"} {
			bad := bytes.Clone(m)
			bad[i] ^= 1
			c.Name, c.Text = string(s.ID)+", "+what+" changed", envelope.EncodeText(bad)
			v.Cases = append(v.Cases, c)
		}
	}
	slices.SortStableFunc(v.Cases, func(a, b suiteVector) int { return strings.Compare(a.Name, b.Name) })
	return v
}

func TestSuiteVectors(t *testing.T) {
	if *update {
		cryptotest.SetGlobalRandom(t, vectorSeed)
		writeVectors(t, "suites.json", makeSuiteVectors(t))
	}
	var v suiteVectors
	readVectors(t, "suites.json", &v)
	if len(v.Cases) != 20 {
		t.Fatalf("%d cases", len(v.Cases))
	}
	for _, c := range v.Cases {
		m, err := envelope.DecodeText(c.Text)
		if err != nil {
			t.Fatal(err)
		}
		got, err := c.key(t).Decrypt(nil, m, partsOf(t, c.Parts)...)
		if string(fault.CodeOf(err)) != c.Error || c.Error == "" && hex.EncodeToString(got) != c.Plaintext {
			t.Errorf("%s: %q, %v", c.Name, got, err)
		}
	}
}
