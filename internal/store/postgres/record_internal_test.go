package postgres

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/rotorkms/rotor/internal/store"
)

func TestEventsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var want []store.Event
		var b []byte
		for range rapid.IntRange(0, 5).Draw(t, "n") {
			e := store.Event{Key: rapid.StringN(1, 20, store.MaxKeyBytes).Draw(t, "key"), Deleted: rapid.Bool().Draw(t, "deleted"), Rev: 7}
			if !e.Deleted {
				e.Value = append([]byte{}, rapid.SliceOf(rapid.Byte()).Draw(t, "value")...)
			}
			want = append(want, e)
			b = appendEvent(b, e)
		}
		got, err := parseEvents(b, 7)
		if err != nil || !cmp.Equal(got, want) {
			t.Fatalf("%v: %s", err, cmp.Diff(want, got))
		}
		if len(b) > 0 {
			if _, err := parseEvents(b[:len(b)-1], 7); !errors.Is(err, store.ErrCorrupt) {
				t.Fatalf("cut short: %v", err)
			}
		}
	})
}

// FuzzEvents: what is in the table is parsed to what it was made of, or refused.
func FuzzEvents(f *testing.F) {
	f.Add([]byte{})
	f.Add(appendEvent(appendEvent(nil, store.Event{Key: "k", Value: []byte("v")}), store.Event{Key: "d", Deleted: true}))
	f.Add([]byte{0, 255, 255, 0, 0, 0, 0})
	f.Add([]byte{1, 0, 1, 'k', 255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		events, err := parseEvents(b, 1)
		if err != nil {
			if !errors.Is(err, store.ErrCorrupt) || events != nil {
				t.Errorf("%v, %v", events, err)
			}
			return
		}
		var again []byte
		for _, e := range events {
			again = appendEvent(again, e)
		}
		if !bytes.Equal(again, b) {
			t.Errorf("%x became %x", b, again)
		}
	})
}

// FuzzURL: no error holds the password, and what is accepted has a valid schema.
func FuzzURL(f *testing.F) {
	for _, s := range []string{"postgres://u:pass_of_mine@h/d?schema=x", "postgres://u:pass_of_mine@h:x/d", "postgres://u@h?password=pass_of_mine&sslmode=z"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := parse(s)
		if err == nil && !validSchema.MatchString(c.schema) {
			t.Errorf("schema %q", c.schema)
		}
		if err != nil && strings.Contains(err.Error(), "pass_of_mine") && !strings.Contains(s, "=pass_of_mine") {
			t.Errorf("%q: %v", s, err)
		}
	})
}

// TestEncryption: a host that is not this machine gets verify-full unless the URL says otherwise, and nothing falls back to plain text.
func TestEncryption(t *testing.T) {
	t.Setenv("PGSSLMODE", "")
	for url, want := range map[string]string{
		"postgres://u@db.example/d":                         "db.example",
		"postgres://u@db.example,localhost/d":               "db.example",
		"postgres://u@db.example/d?schema=x":                "db.example",
		"postgres://u@db.example/d?sslmode=disable":         "plain",
		"postgres://u@localhost/d?sslmode=disable":          "plain",
		"postgres://u@/d?host=/run/postgresql":              "plain",
		"postgres://u@db.example/d?sslmode=verify-full&x=y": "db.example",
	} {
		c, err := parse(url)
		if err != nil {
			t.Errorf("%s: %v", url, err)
			continue
		}
		for _, conn := range []struct{ name string }{{"pool"}} {
			got, plain := "plain", c.pool.ConnConfig.TLSConfig == nil
			if !plain {
				got = c.pool.ConnConfig.TLSConfig.ServerName
				if c.pool.ConnConfig.TLSConfig.InsecureSkipVerify {
					got = "unverified"
				}
			}
			for _, f := range c.pool.ConnConfig.Fallbacks {
				if f.TLSConfig == nil && !plain {
					got = "falls back to plain text"
				}
			}
			if got != want {
				t.Errorf("%s, %s: %s, not %s", url, conn.name, got, want)
			}
		}
	}
}

func TestAfter(t *testing.T) {
	for prefix, want := range map[string]string{"a": "b", "a\xFF": "b", "a\xFF\xFF": "b", "ab": "ac", "a\x00": "a\x01", "": "", "\xFF\xFF": ""} {
		got, ok := after(prefix)
		if string(got) != want || ok != (want != "") {
			t.Errorf("after %q: %q, %v", prefix, got, ok)
		}
	}
}

// TestRing: bounds hold, and what is left is without a gap.
func TestRing(t *testing.T) {
	r := ring{commits: 3}
	for rev := store.Rev(1); rev <= 10; rev++ {
		r.add([]logged{{mark: mark{rev: rev}, bytes: ringBytes/2 - 1}}, max(rev, 9)-9)
		if len(r.log) > 3 || r.bytes > ringBytes || r.newest != rev || r.first+store.Rev(len(r.log)) != rev {
			t.Fatalf("after %d: first %d, newest %d, %d commits, %d bytes", rev, r.first, r.newest, len(r.log), r.bytes)
		}
	}
	r.add(nil, 10)
	if len(r.log) != 0 || r.first != 10 || r.bytes != 0 {
		t.Errorf("compacted: %+v", r)
	}
}
