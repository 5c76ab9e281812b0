// Package sealtest is the contract of seal.Sealer as tests. Every sealer passes all of it.
package sealtest

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/secret"
)

// Root says how to get at the sealer under test.
type Root struct {
	// New makes a sealer with a root of trust of its own.
	New func(t *testing.T) seal.Sealer
	// Again is the sealer that a restarted server has of the same root of trust.
	Again func(t *testing.T, s seal.Sealer) seal.Sealer
	// Remains: Forget cannot make older blobs unopenable and says so with ErrRemains.
	Remains bool
	// Offline makes the root of trust of a sealer unreachable, and lets it come back. nil: it cannot be away (a file).
	Offline func(t *testing.T, s seal.Sealer) (back func())
	// Stall makes the root of trust of a sealer take requests and not answer them, until it is let go. nil: it cannot.
	Stall func(t *testing.T, s seal.Sealer) (asked <-chan struct{}, letGo func())
	// Edits bounds how many bytes of a blob testEdited changes, spread over it, where each try costs much. 0: all.
	Edits int
}

// rootKey is a root key that the suite can look for in blobs.
var rootKey = []byte("0123456789abcdef0123456789ABCDEF")

// Run runs the suite.
func Run(t *testing.T, r Root) {
	t.Helper()
	tests := []struct {
		name string
		run  func(*testing.T, Root)
	}{
		{"Wrap", testWrap},
		{"Restart", testRestart},
		{"WrongSealer", testWrongSealer},
		{"Edited", testEdited},
		{"Generations", testGenerations},
		{"Forget", testForget},
		{"Concurrent", testConcurrent},
		{"Foreign", testForeign},
		{"Offline", testOffline},
		{"Canceled", testCanceled},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { test.run(t, r) })
	}
}

func wrap(t *testing.T, s seal.Sealer, generation uint64) []byte {
	t.Helper()
	blob, err := s.Wrap(t.Context(), secret.Copy(rootKey), generation)
	if err != nil {
		t.Fatalf("wrap generation %d: %v", generation, err)
	}
	return blob
}

func opens(t *testing.T, s seal.Sealer, blob []byte) {
	t.Helper()
	root, err := s.Unwrap(t.Context(), blob)
	if err != nil || !root.Equal(secret.Copy(rootKey)) {
		t.Errorf("unwrap: %d bytes, %v", root.Len(), err)
	}
}

func fails(t *testing.T, s seal.Sealer, blob []byte, want ...error) {
	t.Helper()
	root, err := s.Unwrap(t.Context(), blob)
	if !root.IsZero() {
		t.Fatal("a blob opened that must not")
	}
	for _, w := range want {
		if errors.Is(err, w) {
			return
		}
	}
	t.Errorf("unwrap: %v", err)
}

func testWrap(t *testing.T, r Root) {
	s := r.New(t)
	if s.ID() == "" || s.ID() == r.New(t).ID() {
		t.Errorf("%q does not name one sealer", s.ID())
	}
	a, b := wrap(t, s, 1), wrap(t, s, 1)
	if bytes.Equal(a, b) {
		t.Error("two wraps are the same bytes")
	}
	if bytes.Contains(a, rootKey[:8]) {
		t.Error("the blob holds the root key")
	}
	opens(t, s, a)
	opens(t, s, b)
}

func testRestart(t *testing.T, r Root) {
	s := r.New(t)
	old := wrap(t, s, 1)
	again := r.Again(t, s)
	if again.ID() != s.ID() {
		t.Errorf("the name changed from %q to %q", s.ID(), again.ID())
	}
	opens(t, again, old)
	opens(t, s, wrap(t, again, 1)) // of the same generation on both sides
}

func testWrongSealer(t *testing.T, r Root) {
	a, b := r.New(t), r.New(t)
	blob := wrap(t, a, 1)
	fails(t, b, blob, seal.ErrWrongSealer)
	wrap(t, b, 1) // also when it has a key of that generation
	fails(t, b, blob, seal.ErrWrongSealer)
	opens(t, a, blob)
}

// testEdited: no changed, cut or longer blob opens.
func testEdited(t *testing.T, r Root) {
	s := r.New(t)
	blob := wrap(t, s, 1)
	step := 1
	if r.Edits > 0 {
		step = max(1, len(blob)/r.Edits)
	}
	for i := 0; i < len(blob); i += step {
		for _, mask := range []byte{1, 0x80, 0xFF} {
			edited := bytes.Clone(blob)
			edited[i] ^= mask
			fails(t, s, edited, seal.ErrWrongSealer, seal.ErrForgotten)
		}
		fails(t, s, blob[:i], seal.ErrWrongSealer, seal.ErrForgotten)
	}
	fails(t, s, append(bytes.Clone(blob), 0), seal.ErrWrongSealer)
	fails(t, s, nil, seal.ErrWrongSealer)
	opens(t, s, blob)
}

func testGenerations(t *testing.T, r Root) {
	s := r.New(t)
	blobs := map[uint64][]byte{}
	for _, g := range []uint64{1, 2, 3, 1 << 40} {
		blobs[g] = wrap(t, s, g)
	}
	for _, blob := range blobs {
		opens(t, s, blob)
		opens(t, r.Again(t, s), blob)
	}
}

// testForget: what is forgotten stays so after a restart, cannot be wrapped again, and nothing else is.
func testForget(t *testing.T, r Root) {
	s := r.New(t)
	blobs := [][]byte{wrap(t, s, 0), wrap(t, s, 1), wrap(t, s, 2), wrap(t, s, 3)}
	if r.Remains {
		if err := s.Forget(t.Context(), 2); !errors.Is(err, seal.ErrRemains) {
			t.Errorf("forget says %v and not what remains", err)
		}
		for _, blob := range blobs {
			opens(t, s, blob)
		}
		return
	}
	if err := s.Forget(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	if err := s.Forget(t.Context(), 1); err != nil { // an earlier one takes nothing back
		t.Fatal(err)
	}
	for _, sealer := range []seal.Sealer{s, r.Again(t, s)} {
		fails(t, sealer, blobs[0], seal.ErrForgotten)
		fails(t, sealer, blobs[1], seal.ErrForgotten)
		opens(t, sealer, blobs[2])
		opens(t, sealer, blobs[3])
		if _, err := sealer.Wrap(t.Context(), secret.Copy(rootKey), 1); !errors.Is(err, seal.ErrForgotten) {
			t.Errorf("wrap of a forgotten generation: %v", err)
		}
		fails(t, sealer, blobs[1], seal.ErrForgotten)
		opens(t, sealer, wrap(t, sealer, 2))
	}
}

func testConcurrent(t *testing.T, r Root) {
	s := r.New(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for g := range uint64(5) {
				blob, err := s.Wrap(t.Context(), secret.Copy(rootKey), 10+g)
				if err != nil {
					t.Errorf("wrap: %v", err)
					return
				}
				if root, err := s.Unwrap(t.Context(), blob); err != nil || root.Len() != len(rootKey) {
					t.Errorf("unwrap: %v", err)
				}
				if i == 0 && !r.Remains {
					if err := s.Forget(t.Context(), g); err != nil {
						t.Errorf("forget: %v", err)
					}
				}
			}
		})
	}
	wg.Wait()
	opens(t, r.Again(t, s), wrap(t, s, 14))
}

// testForeign: bytes that no sealer made are refused, whatever they look like.
func testForeign(t *testing.T, r Root) {
	s := r.New(t)
	blob := wrap(t, s, 1)
	for name, foreign := range map[string][]byte{
		"text": []byte("vault:v1:AAAA"), "json": []byte(`{"a":1}`), "zeros": make([]byte, len(blob)), "one byte": {1},
		"twice": append(bytes.Clone(blob), blob...), "long": bytes.Repeat([]byte{0xFF}, 1<<16),
	} {
		if root, err := s.Unwrap(t.Context(), foreign); !root.IsZero() || !errors.Is(err, seal.ErrWrongSealer) && !errors.Is(err, seal.ErrForgotten) {
			t.Errorf("%s: %v", name, err)
		}
	}
	opens(t, s, blob)
}

// testOffline: what cannot be reached says so, by every call, changes nothing, and works again when it is back.
func testOffline(t *testing.T, r Root) {
	if r.Offline == nil {
		return
	}
	s := r.New(t)
	blob := wrap(t, s, 1)
	back := r.Offline(t, s)
	fails(t, s, blob, seal.ErrUnavailable)
	if _, err := s.Wrap(t.Context(), secret.Copy(rootKey), 2); !errors.Is(err, seal.ErrUnavailable) {
		t.Errorf("wrap while it is away: %v", err)
	}
	if err := s.Forget(t.Context(), 2); !errors.Is(err, seal.ErrUnavailable) {
		t.Errorf("forget while it is away: %v", err)
	}
	back()
	opens(t, s, blob)
	opens(t, s, wrap(t, s, 2))
}

// testCanceled: a root of trust that does not answer holds nobody longer than the context.
func testCanceled(t *testing.T, r Root) {
	if r.Stall == nil {
		return
	}
	s := r.New(t)
	blob := wrap(t, s, 1)
	asked, letGo := r.Stall(t, s)
	defer letGo()
	for name, call := range map[string]func(ctx context.Context) error{
		"wrap":   func(ctx context.Context) error { _, err := s.Wrap(ctx, secret.Copy(rootKey), 1); return err },
		"unwrap": func(ctx context.Context) error { _, err := s.Unwrap(ctx, blob); return err },
		"forget": func(ctx context.Context) error { return s.Forget(ctx, 1) },
	} {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- call(ctx) }() // ends with ctx
		<-asked
		cancel()
		if err := <-done; !errors.Is(err, seal.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
