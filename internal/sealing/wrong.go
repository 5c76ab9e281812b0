package sealing

import (
	"slices"
	"time"
)

// wrongs are the times of the shares that were refused within the last minute, by where they came from. A share cannot be guessed, so this only
// bounds what a source costs.
type wrongs map[string][]time.Time

// over says whether a source has brought too many.
func (w wrongs) over(from string, now time.Time) bool {
	lately := slices.DeleteFunc(w[from], func(t time.Time) bool { return now.Sub(t) >= time.Minute })
	if len(lately) == 0 {
		delete(w, from)
		return false
	}
	w[from] = lately
	return len(lately) >= maxWrong
}

// note counts one. When there are too many sources, any one begins anew.
func (w wrongs) note(from string, now time.Time) {
	if _, known := w[from]; !known && len(w) >= maxSources {
		for other := range w {
			delete(w, other)
			break
		}
	}
	w[from] = append(w[from], now)
}
