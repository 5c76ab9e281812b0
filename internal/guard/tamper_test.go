package guard_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/store"
)

// past is a store with records a (rewritten once), b and c (deleted), and what an attacker kept of it.
type past struct {
	oldA, b, oldC []byte
	oldEntry      store.Op // the log's entry about the first a, with its tag
}

func history(w *world) past {
	g, stop := w.open()
	defer stop()
	before := w.keys("log/new/")
	w.put(g, "x/a", "one")
	var p past
	p.oldA = w.raw("x/a").Value
	p.oldEntry = w.findEntry(before, g)
	w.put(g, "x/b", "bee")
	w.put(g, "x/c", "sea")
	p.b, p.oldC = w.raw("x/b").Value, w.raw("x/c").Value
	w.put(g, "x/a", "two")
	if _, err := w.permit(g).Commit(w.t.Context(), nil, []guard.Write{{Path: "x/c", Delete: true}}, nil); err != nil {
		w.t.Fatal(err)
	}
	w.entries(g) // everything is in order
	return p
}

// findEntry catches the waiting entry of the last commit from the history that a watch shows, as the sequencer takes it away.
func (w *world) findEntry(_ []string, _ *guard.Guard) store.Op {
	w.t.Helper()
	for events, err := range w.store.Watch(w.t.Context(), "", 0) {
		if err != nil {
			w.t.Fatal(err)
		}
		for i, e := range events {
			if e.Key == "x/a" {
				for _, o := range append(events[:i:i], events[i+1:]...) {
					if strings.HasPrefix(o.Key, "log/new/") {
						return store.Op{Key: o.Key, Value: o.Value}
					}
				}
			}
		}
	}
	w.t.Fatal("no entry")
	return store.Op{}
}

func flipped(b []byte) []byte {
	b = bytes.Clone(b)
	b[len(b)/2] ^= 1
	return b
}

// tampering is one change of the store from outside and the name under which it must be found.
type tampering struct {
	ops  func(w *world, p past) []store.Op
	code fault.Code
	what string
	path string // whose reading finds it while the guard runs; empty: found at the start only
}

func tamperings() map[string]tampering {
	put := func(key string, value []byte) []store.Op { return []store.Op{{Key: key, Value: value}} }
	entry := func(i string) string { return "log/entry/000000000000000" + i }
	return map[string]tampering{
		"record edited":                {func(w *world, _ past) []store.Op { return put("x/a", flipped(w.raw("x/a").Value)) }, fault.RecordTampered, "x/a", "x/a"},
		"record cut":                   {func(w *world, _ past) []store.Op { return put("x/a", w.raw("x/a").Value[:20]) }, fault.RecordTampered, "x/a", "x/a"},
		"record emptied":               {func(*world, past) []store.Op { return put("x/a", nil) }, fault.RecordTampered, "x/a", "x/a"},
		"counter edited":               {func(w *world, _ past) []store.Op { b := w.raw("x/a").Value; b[7]++; return put("x/a", b) }, fault.RecordTampered, "x/a", "x/a"},
		"record of another path":       {func(_ *world, p past) []store.Op { return put("x/a", p.b) }, fault.RecordTampered, "x/a", "x/a"},
		"record replayed":              {func(_ *world, p past) []store.Op { return put("x/a", p.oldA) }, fault.RecordReplayed, "x/a", "x/a"},
		"record deleted":               {func(*world, past) []store.Op { return []store.Op{{Key: "x/b", Delete: true}} }, fault.RecordTampered, "x/b", "x/b"},
		"deleted record restored":      {func(_ *world, p past) []store.Op { return put("x/c", p.oldC) }, fault.RecordReplayed, "x/c", "x/c"},
		"record added":                 {func(*world, past) []store.Op { return put("x/new", make([]byte, 80)) }, fault.RecordTampered, "x/new", "x/new"},
		"replayed with its entry":      {func(_ *world, p past) []store.Op { return append(put("x/a", p.oldA), p.oldEntry) }, fault.AuditBroken, "x/a", ""},
		"entry alone put in again":     {func(_ *world, p past) []store.Op { return []store.Op{p.oldEntry} }, fault.AuditBroken, "x/a", ""},
		"waiting entry forged":         {func(_ *world, p past) []store.Op { return put("log/new/x", p.oldEntry.Value) }, fault.AuditBroken, "waiting", ""},
		"KEK edited":                   {func(w *world, _ past) []store.Op { return put("ns/default", flipped(w.raw("ns/default").Value)) }, fault.RecordTampered, "ns/default", ""},
		"signing key deleted":          {func(*world, past) []store.Op { return []store.Op{{Key: "guard/snapshot-key", Delete: true}} }, fault.RecordTampered, "guard/snapshot-key", ""},
		"root deleted":                 {func(*world, past) []store.Op { return []store.Op{{Key: "seal/root", Delete: true}} }, fault.RecordTampered, "seal/root", ""},
		"root of another cluster name": {editRoot("cluster", strings.Repeat("0", 32)), fault.RecordTampered, "seal/root", ""},
		"root's generation edited":     {editRoot("generation", 2), fault.RecordTampered, "seal/root", ""},
		"root is no JSON":              {func(*world, past) []store.Op { return put("seal/root", []byte("x")) }, fault.RecordTampered, "seal/root", ""},
		"root's wraps emptied":         {editRoot("wraps", map[string]any{}), fault.SealWrong, "", ""},
		"entry edited":                 {func(w *world, _ past) []store.Op { return put(entry("3"), flipped(w.raw(entry("3")).Value)) }, fault.AuditBroken, "", ""},
		"entry removed":                {func(*world, past) []store.Op { return []store.Op{{Key: entry("3"), Delete: true}} }, fault.AuditBroken, "entry 3 is missing", ""},
		"last entry removed": {func(w *world, _ past) []store.Op {
			all := w.keys("log/entry/")
			return []store.Op{{Key: all[len(all)-1], Delete: true}}
		}, fault.AuditBroken, "its state says", ""},
		"entries swapped": {func(w *world, _ past) []store.Op {
			return append(put(entry("2"), w.raw(entry("3")).Value), put(entry("3"), w.raw(entry("2")).Value)...)
		}, fault.AuditBroken, "", ""},
		"entry added": {func(w *world, _ past) []store.Op {
			return put("log/entry/"+strings.Repeat("0", 13)+"00a", w.raw(entry("3")).Value)
		}, fault.AuditBroken, "", ""},
		"log's state edited":  {func(w *world, _ past) []store.Op { return put("log/state", flipped(w.raw("log/state").Value)) }, fault.AuditBroken, "log", ""},
		"log's state removed": {func(*world, past) []store.Op { return []store.Op{{Key: "log/state", Delete: true}} }, fault.AuditBroken, "log state", ""},
		"whole log removed": {func(w *world, _ past) []store.Op {
			var ops []store.Op
			for _, k := range w.keys("log/") {
				ops = append(ops, store.Op{Key: k, Delete: true})
			}
			return ops
		}, fault.RecordTampered, "guard/checkpoint-key", ""},
		"everything but the root removed": {func(w *world, _ past) []store.Op {
			var ops []store.Op
			for _, k := range w.keys("") {
				if k != "seal/root" {
					ops = append(ops, store.Op{Key: k, Delete: true})
				}
			}
			return ops
		}, fault.RecordTampered, "guard/checkpoint-key", ""},
	}
}

func editRoot(field string, value any) func(w *world, _ past) []store.Op {
	return func(w *world, _ past) []store.Op {
		var m map[string]any
		if err := json.Unmarshal(w.raw("seal/root").Value, &m); err != nil {
			w.t.Fatal(err)
		}
		m[field] = value
		b, err := json.Marshal(m)
		if err != nil {
			w.t.Fatal(err)
		}
		return []store.Op{{Key: "seal/root", Value: b}}
	}
}

// TestTamperingIsNamedAtOpen: each change that is made while the server is down is found before anything is served.
func TestTamperingIsNamedAtOpen(t *testing.T) {
	for name, c := range tamperings() {
		t.Run(name, func(t *testing.T) {
			onEngines(t, func(t *testing.T, w *world) {
				p := history(w)
				if g, err := guard.Open(t.Context(), w.config()); err != nil || g == nil {
					t.Fatal("before:", err)
				}
				w.tamper(c.ops(w, p)...)
				_, err := guard.Open(t.Context(), w.config())
				if name == "whole log removed" { // with no log at all any record may be the first that is named
					wantCode(t, err, fault.RecordReplayed, "guard/checkpoint-key")
					return
				}
				wantCode(t, err, c.code, c.what)
			})
		})
	}
}

// TestTamperingIsNamedWhileRunning: a change behind the back of a running guard is found when the record is read, alone, in a list, and in a
// commit on it; the guard goes on serving the rest.
func TestTamperingIsNamedWhileRunning(t *testing.T) {
	for name, c := range tamperings() {
		if c.path == "" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			onEngines(t, func(t *testing.T, w *world) {
				p := history(w)
				g, _ := w.open()
				w.tamper(c.ops(w, p)...)
				_, err := g.Get(t.Context(), c.path)
				wantCode(t, err, c.code, c.path)
				_, _, err = g.List(t.Context(), "x/")
				wantCode(t, err, c.code, c.path)
				_, err = w.permit(g).Commit(t.Context(), nil, []guard.Write{{Path: c.path, Value: []byte("over it")}}, nil)
				wantCode(t, err, c.code, c.path)
				if _, err := g.Get(t.Context(), "ns/default"); err != nil {
					t.Errorf("another record: %v", err)
				}
			})
		})
	}
}

// TestWatchShowsOnlyWhatTheLogKnows: an old record that is written again past the door does not reach those who follow the store.
func TestWatchShowsOnlyWhatTheLogKnows(t *testing.T) {
	w := newWorld(t, newMem())
	p := history(w)
	g, _ := w.open()
	_, rev, err := g.List(t.Context(), "x/")
	if err != nil {
		t.Fatal(err)
	}
	w.put(g, "x/b", "bee two")
	w.tamper(store.Op{Key: "x/a", Value: p.oldA})
	seen := 0
	for changes, err := range g.Watch(t.Context(), "x/", rev) {
		if err != nil {
			wantCode(t, err, fault.RecordReplayed, "x/a")
			break
		}
		seen++
		if seen > 1 || string(changes[0].Value) != "bee two" {
			t.Fatalf("%+v", changes)
		}
	}
	if seen != 1 {
		t.Errorf("%d changes", seen)
	}
}

// TestOlderStore says what is out of the guard's reach: a whole store as it was at some time is a true one. An auditor with a later
// checkpoint finds it (audit.TestOlderCheckpoint); the recovery mode of a restored store comes with incarnations.
func TestOlderStore(t *testing.T) {
	w := newWorld(t, newMem())
	g, stop := w.open()
	w.put(g, "x/a", "one")
	w.entries(g)
	stop()
	kept := map[string][]byte{}
	for _, k := range w.keys("") {
		kept[k] = w.raw(k).Value
	}
	g, stop = w.open()
	w.put(g, "x/a", "two")
	w.entries(g)
	stop()
	// Records without the log: named.
	w.tamper(store.Op{Key: "x/a", Value: kept["x/a"]})
	_, err := guard.Open(t.Context(), w.config())
	wantCode(t, err, fault.RecordReplayed, "x/a")
	// Everything: believed.
	var ops []store.Op
	for _, k := range w.keys("") {
		if _, ok := kept[k]; !ok {
			ops = append(ops, store.Op{Key: k, Delete: true})
		}
	}
	for k, v := range kept {
		ops = append(ops, store.Op{Key: k, Value: v})
	}
	w.tamper(ops...)
	g, _ = w.open()
	if r, err := g.Get(t.Context(), "x/a"); err != nil || string(r.Value) != "one" {
		t.Errorf("%q, %v", r.Value, err)
	}
}

func TestMaterialIsBoundToItsFacts(t *testing.T) {
	w := newWorld(t, newMem())
	g, _ := w.open()
	if err := g.CreateNamespace(t.Context(), w.permit(g), "other", nil); err != nil {
		t.Fatal(err)
	}
	wantCode(t, g.CreateNamespace(t.Context(), w.permit(g), "other", nil), fault.Exists, "other")
	m := secret.Random(32)
	blob, err := g.SealMaterial(t.Context(), "default", []byte("version 1"), m)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := g.OpenMaterial(t.Context(), "default", []byte("version 1"), blob); err != nil || !got.Equal(m) {
		t.Error(err)
	}
	for name, open := range map[string]func() (secret.Bytes, error){
		"other facts":     func() (secret.Bytes, error) { return g.OpenMaterial(t.Context(), "default", []byte("version 2"), blob) },
		"no facts":        func() (secret.Bytes, error) { return g.OpenMaterial(t.Context(), "default", nil, blob) },
		"other namespace": func() (secret.Bytes, error) { return g.OpenMaterial(t.Context(), "other", []byte("version 1"), blob) },
		"flipped": func() (secret.Bytes, error) {
			return g.OpenMaterial(t.Context(), "default", []byte("version 1"), flipped(blob))
		},
		"cut": func() (secret.Bytes, error) {
			return g.OpenMaterial(t.Context(), "default", []byte("version 1"), blob[:39])
		},
	} {
		if got, err := open(); fault.CodeOf(err) != fault.RecordTampered || !got.IsZero() {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := g.SealMaterial(t.Context(), "missing", nil, m); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("missing namespace: %v", err)
	}
}
