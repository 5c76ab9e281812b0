package audit_test

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/mem"
)

var updateVectors = flag.Bool("update", false, "write the vectors anew")

const auditVectors = "../../spec/vectors/audit.json"

type auditFile struct {
	Comment string       `json:"comment"`
	Key     string       `json:"key"` // the pinned verifier key
	Leaves  []leafVector `json:"leaves"`
	Logs    []logVector  `json:"logs"`
}

type leafVector struct {
	Entry string `json:"entry"`
	Hash  string `json:"hash,omitempty"` // base64, of good entries
	Good  bool   `json:"good"`
}

type logVector struct {
	Name  string            `json:"name"`
	Files map[string]string `json:"files"` // path -> base64
	Size  int64             `json:"size"`
	Root  string            `json:"root,omitempty"`
	Good  bool              `json:"good"`
}

func entryNumber(i int) audit.Entry {
	e := audit.Entry{
		Action: "key.rotate", Caller: "admin/ana", Class: audit.ClassChange, Key: "records", Namespace: "default", Outcome: "done", Rule: "admins",
		Time: time.Date(2026, 1, 2, 3, 4, i%60, 5e6, time.UTC), Writes: []audit.Write{{Counter: uint64(i/2 + 1), Path: fmt.Sprintf("key/%d", i%2), SHA256: strings.Repeat("ab", 32)}},
	}
	if i%5 == 4 {
		e.Detail = map[string]string{"instances": "a b", "epoch": "4", "Ü": "<&>\u2028\t\"\\"}
	}
	return e
}

// exported is a log of n entries as rotor exports it.
func exported(t *testing.T, skey string, n int, change ...func(int, *audit.Entry)) map[string][]byte {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l, rev, err := audit.Load(ctx, mem.New(), secret.Random(32), func(audit.Entry, store.Rev) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if err := l.SetSigner(skey); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 2)
	go func() { done <- l.Follow(ctx, rev, func(audit.Commit) error { return nil }) }() // ends with ctx
	go func() { done <- l.Sequence(ctx, nil) }()                                        // ends with ctx
	for i := range n {
		e := entryNumber(i)
		for _, f := range change {
			f(i, &e)
		}
		if err := l.Append(ctx, e); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Settled(ctx); err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	if err := l.Export(ctx, func(path string, data []byte) error { files[path] = slices.Clone(data); return nil }); err != nil {
		t.Fatal(err)
	}
	cancel()
	<-done
	<-done
	return files
}

func makeAuditVectors(t *testing.T) auditFile {
	skey, vkey, err := note.GenerateKey(rand.Reader, "rotor.example/audit")
	if err != nil {
		t.Fatal(err)
	}
	out := auditFile{Comment: "spec/audit.md. files: path to base64. The signing key was made for the vectors and forgotten.", Key: vkey}
	for _, i := range []int{0, 4} {
		b, err := entryNumber(i).Encode()
		if err != nil {
			t.Fatal(err)
		}
		h := tlog.RecordHash(b)
		out.Leaves = append(out.Leaves, leafVector{string(b), base64.StdEncoding.EncodeToString(h[:]), true})
	}
	good := out.Leaves[0].Entry
	for _, bad := range []string{
		good + " ", " " + good, strings.Replace(good, `"class":1`, `"class":1.0`, 1), strings.Replace(good, `"class":1`, `"class":1,"class":1`, 1),
		strings.Replace(good, `"key":"records",`, `"key":"",`, 1), strings.Replace(good, "admin/ana", `admin\/ana`, 1), strings.Replace(good, `"rule"`, `"Rule"`, 1),
		strings.Replace(good, `"outcome":"done",`, `"extra":"x","outcome":"done",`, 1), strings.Replace(good, ".005Z", ".0050Z", 1), "{}", "", "null",
	} {
		out.Leaves = append(out.Leaves, leafVector{Entry: bad})
	}
	add := func(name string, files map[string][]byte, size int64, good bool) {
		v := logVector{Name: name, Files: map[string]string{}, Size: size, Good: good}
		for path, b := range files {
			v.Files[path] = base64.StdEncoding.EncodeToString(b)
		}
		if good {
			v.Root = strings.Split(string(files["checkpoint"]), "\n")[2]
		}
		out.Logs = append(out.Logs, v)
	}
	add("1 entry", exported(t, skey, 1), 1, true)
	seven := exported(t, skey, 7)
	add("7 entries", seven, 7, true)
	add("300 entries", exported(t, skey, 300), 300, true)
	edit := func(name, path string, change func([]byte) []byte) {
		files := maps.Clone(seven)
		if files[path] == nil {
			t.Fatalf("no %s in %v", path, slices.Sorted(maps.Keys(files)))
		}
		if files[path] = change(slices.Clone(files[path])); files[path] == nil {
			delete(files, path)
		}
		add(name, files, 7, false)
	}
	flip := func(at int) func([]byte) []byte { return func(b []byte) []byte { b[at] ^= 1; return b } }
	edit("entry changed", "tile/entries/000.p/7", func(b []byte) []byte { return []byte(strings.Replace(string(b), "admin/ana", "admin/bob", 1)) })
	edit("entries cut off", "tile/entries/000.p/7", func(b []byte) []byte { return b[:len(b)-3] })
	edit("bytes after the entries", "tile/entries/000.p/7", func(b []byte) []byte { return append(b, 0) })
	edit("entries missing", "tile/entries/000.p/7", func([]byte) []byte { return nil })
	edit("tile changed", "tile/0/000.p/7", flip(5))
	edit("tile missing", "tile/0/000.p/7", func([]byte) []byte { return nil })
	edit("checkpoint missing", "checkpoint", func([]byte) []byte { return nil })
	edit("size changed", "checkpoint", func(b []byte) []byte { return []byte(strings.Replace(string(b), "\n7\n", "\n6\n", 1)) })
	edit("root changed", "checkpoint", flip(len("rotor.example/audit\n7\n")+3))
	counter := func(at int, n uint64) func(int, *audit.Entry) {
		return func(i int, e *audit.Entry) {
			if i == at {
				e.Writes[0].Counter = n
			}
		}
	}
	add("counter of a record skips one", exported(t, skey, 7, counter(6, 5)), 7, false)
	add("counter of a record stands still", exported(t, skey, 7, counter(6, 3)), 7, false)
	add("counter of a record begins at 2", exported(t, skey, 1, counter(0, 2)), 1, false)
	other, _, err := note.GenerateKey(rand.Reader, "rotor.example/audit")
	if err != nil {
		t.Fatal(err)
	}
	add("signed by another key", exported(t, other, 7), 7, false)
	return out
}

func (v logVector) fs(t *testing.T) fs.FS {
	out := fstest.MapFS{}
	for path, text := range v.Files {
		b, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		out[path] = &fstest.MapFile{Data: b}
	}
	return out
}

func TestAuditVectors(t *testing.T) {
	if *updateVectors {
		b, err := json.MarshalIndent(makeAuditVectors(t), "", " ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(auditVectors, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(auditVectors)
	if err != nil {
		t.Fatal(err)
	}
	var all auditFile
	if err := json.Unmarshal(b, &all); err != nil || len(all.Logs) < 13 || len(all.Leaves) < 14 {
		t.Fatalf("%d logs, %d leaves, %v", len(all.Logs), len(all.Leaves), err)
	}
	for _, l := range all.Leaves {
		_, err := audit.Decode([]byte(l.Entry))
		if (err == nil) != l.Good {
			t.Errorf("%s: %v", l.Entry, err)
		}
		if h := tlog.RecordHash([]byte(l.Entry)); l.Good && base64.StdEncoding.EncodeToString(h[:]) != l.Hash {
			t.Errorf("%s: hash %s", l.Entry, h)
		}
	}
	for _, v := range all.Logs {
		r, err := audit.Verify(v.fs(t), all.Key)
		if v.Good && (err != nil || r.Size != v.Size || r.Root != v.Root) || !v.Good && fault.CodeOf(err) != fault.AuditBroken {
			t.Errorf("%s: %+v, %v", v.Name, r, err)
		}
	}
}
