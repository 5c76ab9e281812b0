package pack_test

import (
	"bytes"
	"compress/flate"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/rotorkms/rotor/internal/pack"
)

const limit = 1 << 20

// entry looks like an entry of the log: its hashes and names do not repeat.
func entry(n int) []byte {
	hash := func(s string) string {
		h := sha256.Sum256(fmt.Appendf(nil, "%s%d", s, n))
		return hex.EncodeToString(h[:])
	}
	id := hash("id")[:32]
	return fmt.Appendf(nil, `{"action":"rotate","caller":"admin/alice","class":1,"detail":{"algorithm":"AES-256-GCM","uses_taken":"65536","version":"%d"},"key":"transit/orders","namespace":"default","outcome":"done","rule":"test","time":"2027-01-15T08:00:00Z","writes":[{"counter":%d,"path":"key/default/%s","sha256":"%s"},{"counter":1,"path":"material/default/%s/%d","sha256":"%s"},{"counter":1,"path":"handle/default/%s","sha256":"%s"}]}`,
		n, n, id, hash("a"), id, n, hash("b"), hash("h")[:8], hash("c"))
}

func unpacked(t *testing.T, b []byte) []byte {
	t.Helper()
	out, err := pack.Unpack(b, limit)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestPackedIsWhatItWas(t *testing.T) {
	random := make([]byte, 5000)
	rand.Read(random)
	for name, b := range map[string][]byte{
		"nothing": {}, "nil": nil, "entry": entry(7), "marked": {1}, "marked twice": {1, 1}, "random": random, "marked and random": append([]byte{1}, random...),
		"long": []byte(strings.Repeat("a", limit)), "JSON": []byte(`{}`),
	} {
		if got := unpacked(t, pack.Pack(b)); !bytes.Equal(got, b) {
			t.Errorf("%s: %d bytes become %d", name, len(b), len(got))
		}
	}
}

// TestPackedIsSmall: an entry of a rotation has a third of its bytes, of which 100 are hashes.
func TestPackedIsSmall(t *testing.T) {
	for n := range 20 {
		if whole, small := entry(n), pack.Pack(entry(n)); len(small) > 230 || len(whole) < 600 {
			t.Errorf("%d bytes become %d", len(whole), len(small))
		}
	}
}

// TestDictionaryStays: what was packed once is read for ever.
func TestDictionaryStays(t *testing.T) {
	dictionary, err := os.ReadFile("dictionary.txt")
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(dictionary)
	if got, want := hex.EncodeToString(sum[:8]), "8e1cb9c1bc32821e"; got != want {
		t.Errorf("the dictionary is %s, not %s: stores that were written with the old one could not be read; another dictionary takes another mark", got, want)
	}
	golden, err := hex.DecodeString("01acd76f8a1b400805f01385eae8f8e71ebd808e0a854221edfd299b0f1bc206360b7b8219fc3de1f9026cfcfe75fabb75f5a3ee9f6bf5f5ef978dfff5ad86de89f50278c1fd13ecbe0ccf78f5292fc194862c5e1e00655e88b10232670ede2eb7f7e12d20d5d3c767e348cecec00961611f4a14e4e6ee36a22998b3cd69168f34c43919afc7e1b34ffd78306d4c883326e9b230ed209d40cd5cb3625189ac9c7006de54d6e61aaa4d5ede96b5fdc538cdda1cd80f4fcfb2da092563d95061cc5291ad0ecc27bd0b66827043009093e0de0c3ead6a69b6df8af0ff000000ffff")
	if err != nil {
		t.Fatal(err)
	}
	if got := unpacked(t, golden); !bytes.Equal(got, entry(7)) {
		t.Errorf("an entry of the first day is %q", got)
	}
}

func TestDamageIsSeen(t *testing.T) {
	good := pack.Pack(entry(7))
	for name, b := range map[string][]byte{
		"cut": good[:len(good)-1], "cut in the middle": good[:len(good)/2], "the mark alone": good[:1], "something behind it": append(bytes.Clone(good), 0),
		"twice": append(bytes.Clone(good), good[1:]...), "no block of that type": {1, 7},
	} {
		if out, err := pack.Unpack(b, limit); err == nil {
			t.Errorf("%s: %q", name, out)
		}
	}
}

// TestLimit: a few bytes cannot become many.
func TestLimit(t *testing.T) {
	b := []byte(strings.Repeat("a", 1000))
	small := pack.Pack(b)
	if _, err := pack.Unpack(small, 1000); err != nil {
		t.Error(err)
	}
	if _, err := pack.Unpack(small, 999); err == nil {
		t.Error("1000 bytes passed a limit of 999")
	}
	var bomb bytes.Buffer
	bomb.WriteByte(1)
	w, err := flate.NewWriter(&bomb, flate.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	zeros := make([]byte, 1<<20)
	for range 64 {
		if _, err := w.Write(zeros); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if got := testing.AllocsPerRun(1, func() {
		if _, err := pack.Unpack(bomb.Bytes(), 1000); err == nil {
			t.Error("a bomb went off")
		}
	}); got > 100 {
		t.Errorf("%v allocations", got)
	}
}

func TestManyAtOnce(t *testing.T) {
	var wait sync.WaitGroup
	for n := range 8 {
		wait.Go(func() {
			for i := range 50 {
				b := entry(n*100 + i)
				if got, err := pack.Unpack(pack.Pack(b), limit); err != nil || !bytes.Equal(got, b) {
					t.Errorf("entry %d: %v", n, err)
				}
			}
		})
	}
	wait.Wait()
}

func FuzzUnpack(f *testing.F) {
	f.Add(pack.Pack(entry(1)))
	f.Add([]byte{1, 3, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		out, err := pack.Unpack(b, 1<<16)
		if err != nil {
			return
		}
		if len(out) > 1<<16 && (len(b) == 0 || b[0] == 1) {
			t.Errorf("%d bytes came out", len(out))
		}
		if again := unpacked(t, pack.Pack(out)); !bytes.Equal(again, out) {
			t.Errorf("%q becomes %q", out, again)
		}
	})
}

func BenchmarkPack(b *testing.B) {
	e := entry(7)
	b.Run("pack", func(b *testing.B) {
		for b.Loop() {
			pack.Pack(e)
		}
	})
	small := pack.Pack(e)
	b.Run("unpack", func(b *testing.B) {
		for b.Loop() {
			if _, err := pack.Unpack(small, limit); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.ReportMetric(float64(len(small)), "B")
}
