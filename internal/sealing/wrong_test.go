package sealing

import (
	"fmt"
	"testing"
	"time"
)

// TestWrongsAreBounded: a flood from ever other addresses takes no more memory than so many sources, and a source is over for a minute.
func TestWrongsAreBounded(t *testing.T) {
	w, now := wrongs{}, time.Unix(1_800_000_000, 0)
	for i := range maxSources + 100 {
		w.note(fmt.Sprint(i), now)
	}
	if len(w) != maxSources {
		t.Errorf("%d sources", len(w))
	}
	for range maxWrong {
		if w.over("a", now) {
			t.Fatal("before its limit")
		}
		w.note("a", now)
	}
	if !w.over("a", now.Add(time.Minute-1)) || w.over("a", now.Add(time.Minute)) {
		t.Error("it is not over for a minute")
	}
}
