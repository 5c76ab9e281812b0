package audit_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/fault"
)

const testOrigin = "rotor.example/audit"

// fixedKeys is a key pair that is the same in every process, as fuzzing has several.
func fixedKeys(name string, seed byte) (skey, vkey string) {
	private := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
	vkey, err := note.NewEd25519VerifierKey(name, private.Public().(ed25519.PublicKey))
	if err != nil {
		panic(err)
	}
	hash := strings.Split(vkey, "+")[1]
	return "PRIVATE+KEY+" + name + "+" + hash + "+" + base64.StdEncoding.EncodeToString(append([]byte{1}, private.Seed()...)), vkey
}

func asFS(files map[string][]byte) fs.FS {
	out := fstest.MapFS{}
	for path, b := range files {
		out[path] = &fstest.MapFile{Data: b}
	}
	return out
}

// sign makes a checkpoint with any text.
func sign(t testing.TB, skey, text string) []byte {
	t.Helper()
	s, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	b, err := note.Sign(&note.Note{Text: text}, s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustBreak(t *testing.T, what string, files map[string][]byte, vkey string, earlier ...[]byte) {
	t.Helper()
	if _, err := audit.Verify(asFS(files), vkey, earlier...); fault.CodeOf(err) != fault.AuditBroken {
		t.Errorf("%s: %v", what, err)
	}
}

// TestSizes: an export verifies at every size around the edges of tiles, and has exactly the files that the layout has.
func TestSizes(t *testing.T) {
	skey, vkey := fixedKeys(testOrigin, 1)
	for size, paths := range map[int]string{
		0:   "checkpoint",
		1:   "checkpoint tile/0/000.p/1 tile/entries/000.p/1",
		255: "checkpoint tile/0/000.p/255 tile/entries/000.p/255",
		256: "checkpoint tile/0/000 tile/1/000.p/1 tile/entries/000",
		257: "checkpoint tile/0/000 tile/0/001.p/1 tile/1/000.p/1 tile/entries/000 tile/entries/001.p/1",
		512: "checkpoint tile/0/000 tile/0/001 tile/1/000.p/2 tile/entries/000 tile/entries/001",
	} {
		files := exported(t, skey, size)
		r, err := audit.Verify(asFS(files), vkey)
		if err != nil || r.Size != int64(size) || r.Origin != testOrigin || r.ByClass[audit.ClassChange] != int64(size) || r.Actions["key.rotate"] != int64(size) {
			t.Errorf("%d entries: %+v, %v", size, r, err)
		}
		if got := strings.Join(slices.Sorted(maps.Keys(files)), " "); got != paths {
			t.Errorf("%d entries: files %s", size, got)
		}
		if got := strings.Split(string(files["checkpoint"]), "\n"); got[0] != testOrigin || got[1] != fmt.Sprint(size) || got[2] != r.Root {
			t.Errorf("%d entries: checkpoint %q", size, got)
		}
	}
}

// TestEveryFileCounts: a bit anywhere, a file that is shorter, longer, missing or a directory is refused by name.
func TestEveryFileCounts(t *testing.T) {
	skey, vkey := fixedKeys(testOrigin, 1)
	good := exported(t, skey, 300)
	for path, b := range good {
		with := func(what string, b []byte) {
			files := maps.Clone(good)
			files[path] = b
			mustBreak(t, path+" "+what, files, vkey)
		}
		step := max(1, len(b)/40)
		for at := 0; at < len(b); at += step {
			bad := bytes.Clone(b)
			bad[at] ^= 1 << (at % 8)
			with(fmt.Sprintf("with a bit at %d", at), bad)
		}
		with("without its last byte", b[:len(b)-1])
		with("cut in half", b[:len(b)/2])
		with("empty", nil)
		with("with a byte more", append(bytes.Clone(b), 0))
		files := maps.Clone(good)
		delete(files, path)
		mustBreak(t, path+" missing", files, vkey)
		files[path+"/x"] = []byte("x")
		mustBreak(t, path+" a directory", files, vkey)
	}
	if _, err := audit.Verify(asFS(good), vkey); err != nil {
		t.Errorf("untouched: %v", err)
	}
}

// unbundle and bundled go from a file of entries to the entries and back.
func unbundle(b []byte) (out [][]byte) {
	for len(b) > 0 {
		n := 2 + int(binary.BigEndian.Uint16(b))
		out, b = append(out, b[2:n]), b[n:]
	}
	return out
}

func bundled(entries [][]byte) (out []byte) {
	for _, e := range entries {
		out = append(binary.BigEndian.AppendUint16(out, uint16(len(e))), e...)
	}
	return out
}

// TestEntriesMoved: entries that are taken out, exchanged, repeated or added are refused, with files that are whole in themselves.
func TestEntriesMoved(t *testing.T) {
	skey, vkey := fixedKeys(testOrigin, 1)
	// Entries that write nothing, so that no counter finds what the tree must find.
	good := exported(t, skey, 300, func(_ int, e *audit.Entry) { e.Writes = nil })
	const first, last = "tile/entries/000", "tile/entries/001.p/44"
	all := append(unbundle(good[first]), unbundle(good[last])...)
	if len(all) != 300 {
		t.Fatalf("%d entries", len(all))
	}
	swap := func(e [][]byte, i, j int) [][]byte { e[i], e[j] = e[j], e[i]; return e }
	for name, change := range map[string]func(e [][]byte) [][]byte{
		"one taken out":              func(e [][]byte) [][]byte { return slices.Delete(e, 10, 11) },
		"last taken out":             func(e [][]byte) [][]byte { return e[:299] },
		"neighbours exchanged":       func(e [][]byte) [][]byte { return swap(e, 10, 11) },
		"exchanged across files":     func(e [][]byte) [][]byte { return swap(e, 0, 299) },
		"one repeated":               func(e [][]byte) [][]byte { return slices.Insert(e, 10, e[10]) },
		"one repeated for the next":  func(e [][]byte) [][]byte { e[11] = e[10]; return e },
		"one added at the end":       func(e [][]byte) [][]byte { return append(e, e[299]) },
		"one repeated, the last out": func(e [][]byte) [][]byte { return slices.Insert(e, 10, e[10])[:300] },
	} {
		e := change(slices.Clone(all))
		files := maps.Clone(good)
		files[first], files[last] = bundled(e[:256]), bundled(e[256:])
		mustBreak(t, name, files, vkey)
	}
}

// TestCheckpoints: only the pinned key and the one form of a checkpoint count, and size and root are those of the entries.
func TestCheckpoints(t *testing.T) {
	skey, vkey := fixedKeys(testOrigin, 1)
	others, _ := fixedKeys(testOrigin, 2)
	elsewhere, _ := fixedKeys("rotor.example/other", 1)
	good := exported(t, skey, 7)
	lines := strings.Split(string(good["checkpoint"]), "\n")
	root := lines[2]
	zero := base64.StdEncoding.EncodeToString(make([]byte, tlog.HashSize))
	text := func(lines ...string) string { return strings.Join(lines, "\n") + "\n" }
	with := func(checkpoint []byte) map[string][]byte {
		files := maps.Clone(good)
		files["checkpoint"] = checkpoint
		return files
	}
	if _, err := audit.Verify(asFS(with(sign(t, skey, text(testOrigin, "7", root)))), vkey); err != nil {
		t.Fatalf("a checkpoint that the test signed: %v", err)
	}
	mustBreak(t, "another key of the same name", with(sign(t, others, text(testOrigin, "7", root))), vkey)
	mustBreak(t, "another name with the same key", with(sign(t, elsewhere, text(testOrigin, "7", root))), vkey)
	loose := root[:len(root)-2] + string(root[len(root)-2]+1) + "="
	for what, text := range map[string]string{
		"size 6": text(testOrigin, "6", root), "size 8": text(testOrigin, "8", root), "size 0": text(testOrigin, "0", root),
		"size -1": text(testOrigin, "-1", root), "size +7": text(testOrigin, "+7", root), "size 07": text(testOrigin, "07", root), "no size": text(testOrigin, "", root),
		"size past 64 bits": text(testOrigin, "9223372036854775808", root), "largest size": text(testOrigin, "9223372036854775807", root),
		"another root": text(testOrigin, "7", zero), "short root": text(testOrigin, "7", root[4:]), "no root": text(testOrigin, "7", ""), "root no base64": text(testOrigin, "7", "!"+root[1:]),
		"root in a loose encoding": text(testOrigin, "7", loose), "another origin": text("rotor.example/other", "7", root), "a line more": text(testOrigin, "7", root, "x"),
		"a line less": text(testOrigin, "7"),
	} {
		mustBreak(t, what, with(sign(t, skey, text)), vkey)
	}
	for _, bad := range []string{"", "x", vkey + "x", strings.Replace(vkey, "+", "", 1)} {
		if _, err := audit.Verify(asFS(good), bad); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("verifier key %q: %v", bad, err)
		}
	}
}

// TestOlderCheckpoint: an export of a store that was set back, or that went on in another way, is in order in itself. The checkpoint of a
// later export shows it, and nothing else does.
func TestOlderCheckpoint(t *testing.T) {
	skey, vkey := fixedKeys(testOrigin, 1)
	others, _ := fixedKeys(testOrigin, 2)
	older, newer := exported(t, skey, 250), exported(t, skey, 300)
	branch := exported(t, skey, 310, func(i int, e *audit.Entry) {
		if i >= 260 {
			e.Caller = "admin/eve"
		}
	})
	for what, files := range map[string]map[string][]byte{"older": older, "newer": newer, "branch": branch} {
		if _, err := audit.Verify(asFS(files), vkey); err != nil {
			t.Fatalf("%s, by itself: %v", what, err)
		}
		if _, err := audit.Verify(asFS(files), vkey, older["checkpoint"], files["checkpoint"]); err != nil {
			t.Errorf("%s, which continues the older one: %v", what, err)
		}
	}
	_, err := audit.Verify(asFS(older), vkey, newer["checkpoint"])
	if fault.CodeOf(err) != fault.AuditBroken || !strings.Contains(err.Error(), "rolled back") {
		t.Errorf("set back: %v", err)
	}
	mustBreak(t, "set back and gone on", branch, vkey, newer["checkpoint"])
	mustBreak(t, "set back and gone on, among checkpoints that fit", branch, vkey, older["checkpoint"], newer["checkpoint"], branch["checkpoint"])
	mustBreak(t, "an earlier checkpoint of another key", newer, vkey, exported(t, others, 250)["checkpoint"])
	mustBreak(t, "an earlier checkpoint that is none", newer, vkey, []byte("x"))
	if _, err := audit.Verify(asFS(newer), vkey, exported(t, skey, 0)["checkpoint"]); err != nil {
		t.Errorf("from the empty log: %v", err)
	}
}

// TestReport: refusals and open windows are counted.
func TestReport(t *testing.T) {
	skey, vkey := fixedKeys(testOrigin, 1)
	files := exported(t, skey, 8, func(i int, e *audit.Entry) {
		e.Writes, e.Detail, e.Class = nil, nil, audit.ClassUse
		switch i {
		case 0, 1, 2:
			e.Outcome = "open"
		case 3:
			e.Outcome = "closed"
		case 4:
			e.Outcome, e.Class = "refused", audit.ClassRelease
		case 5:
			e.Outcome, e.Class, e.Detail = "refused", audit.ClassRelease, map[string]string{"repeated": "40"}
		}
	})
	r, err := audit.Verify(asFS(files), vkey)
	if err != nil || r.Open != 2 || r.Refused != 41 || r.ByClass[audit.ClassRelease] != 2 || r.ByClass[audit.ClassUse] != 6 {
		t.Errorf("%+v, %v", r, err)
	}
}

func FuzzDecode(f *testing.F) {
	for i := range 5 {
		b, err := entryNumber(i).Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(bytes.Replace(b, []byte("Z\""), []byte("+01:00\""), 1))
		f.Add(bytes.Replace(b, []byte("a"), []byte("\\u0061"), 1))
	}
	f.Add([]byte("{}"))
	f.Add([]byte(`{"action":"\ud800"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := audit.Decode(b)
		if err != nil {
			return
		}
		again, err := e.Encode()
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("%q decodes, and encodes to %q, %v", b, again, err)
		}
		if len(b) > audit.MaxEntry || !bytes.Contains(b, []byte(`Z"`)) {
			t.Errorf("%q decodes", b)
		}
	})
}

// FuzzVerify: no bundle and no checkpoint but those of the log are taken, signed or not, and none makes the verifier panic.
func FuzzVerify(f *testing.F) {
	skey, vkey := fixedKeys(testOrigin, 1)
	var entries [][]byte
	tree := &hashes{}
	for i := range 3 {
		b, err := entryNumber(i).Encode()
		if err != nil {
			f.Fatal(err)
		}
		entries = append(entries, b)
		tree.add(f, b)
	}
	var texts []string // of the checkpoints that the log had, by size
	for size := range int64(4) {
		root, err := tlog.TreeHash(size, tree)
		if err != nil {
			f.Fatal(err)
		}
		texts = append(texts, fmt.Sprintf("%s\n%d\n%s\n", testOrigin, size, base64.StdEncoding.EncodeToString(root[:])))
	}
	text := texts[3]
	good := map[string][]byte{"checkpoint": sign(f, skey, text), "tile/entries/000.p/3": bundled(entries), "tile/0/000.p/3": tree.leaves()}
	if _, err := audit.Verify(asFS(good), vkey, good["checkpoint"]); err != nil {
		f.Fatal(err)
	}
	f.Add(string(good["checkpoint"]), text, good["tile/entries/000.p/3"])
	f.Add("", strings.Replace(text, "3", "4", 1), bundled(entries[:2]))
	for _, earlier := range texts {
		f.Add(string(sign(f, skey, earlier)), earlier, []byte{})
	}
	f.Add("\n\n— x y\n", "\n\n\n", []byte{0xff, 0xff})
	f.Fuzz(func(t *testing.T, checkpoint, text string, bundle []byte) {
		try := func(what string, files map[string][]byte, fits bool, earlier ...[]byte) {
			_, err := audit.Verify(asFS(files), vkey, earlier...)
			if err == nil && !fits || err != nil && fault.CodeOf(err) != fault.AuditBroken {
				t.Errorf("%s: %v", what, err)
			}
		}
		with := func(path string, b []byte) map[string][]byte {
			files := maps.Clone(good)
			files[path] = b
			return files
		}
		kept := "" // what the pinned key has signed
		if n, err := note.Open([]byte(checkpoint), verifiers(t, vkey)); err == nil {
			kept = n.Text
		}
		try("checkpoint", with("checkpoint", []byte(checkpoint)), kept == texts[3] || kept == texts[0])
		try("earlier checkpoint", good, slices.Contains(texts, kept), []byte(checkpoint))
		try("entries", with("tile/entries/000.p/3", bundle), bytes.Equal(bundle, good["tile/entries/000.p/3"]))
		s, err := note.NewSigner(skey)
		if err != nil {
			t.Fatal(err)
		}
		signed, err := note.Sign(&note.Note{Text: text}, s)
		if err != nil {
			return // no note
		}
		try("signed checkpoint", with("checkpoint", signed), text == texts[3] || text == texts[0])
		try("signed earlier checkpoint", good, slices.Contains(texts, text), signed)
	})
}

func verifiers(t *testing.T, vkey string) note.Verifiers {
	v, err := note.NewVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	return note.VerifierList(v)
}

// hashes is a tree that the test makes with the library alone.
type hashes struct {
	stored []tlog.Hash
	size   int64
}

func (h *hashes) ReadHashes(at []int64) ([]tlog.Hash, error) {
	var out []tlog.Hash
	for _, i := range at {
		out = append(out, h.stored[i])
	}
	return out, nil
}

func (h *hashes) add(t testing.TB, b []byte) {
	more, err := tlog.StoredHashes(h.size, b, h)
	if err != nil {
		t.Fatal(err)
	}
	h.stored, h.size = append(h.stored, more...), h.size+1
}

func (h *hashes) leaves() (out []byte) {
	for i := range h.size {
		out = append(out, h.stored[tlog.StoredHashIndex(0, i)][:]...)
	}
	return out
}
