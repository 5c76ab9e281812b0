package kms

import (
	"context"
	"encoding/json"
	"fmt"

	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
)

// unknownVersions is how far a recovery without a newer log counts versions on: numbers below may name what was lost.
const unknownVersions = 100

// Recover brings every key into a new incarnation of the cluster, with the permit of a recovery: versions whose material is gone are
// destroyed, epochs and numbers go on above every one that was ever seen. past is what a newer log knows, nil without one: then numbers
// jump. Keys that are there already are left alone, so it can be called again. It returns how many keys it changed.
func Recover(ctx context.Context, g *guard.Guard, p *guard.Permit, incarnation uint32, past *guard.Past, now time.Time) (int, error) {
	records, _, err := g.List(ctx, keyPrefix)
	if err != nil {
		return 0, fmt.Errorf("read keys: %w", err)
	}
	materials, _, err := g.List(ctx, "material/")
	if err != nil {
		return 0, fmt.Errorf("read materials: %w", err)
	}
	there := map[string]bool{}
	for _, m := range materials {
		there[m.Path] = true
	}
	changed := 0
	for _, r := range records {
		var k keyring.Key
		if err := json.Unmarshal(r.Value, &k); err != nil {
			return changed, fault.Wrap(fault.RecordTampered, r.Path, err)
		}
		if k.Epoch.Incarnation >= incarnation {
			continue
		}
		above := k.NextNumber() - 1 + unknownVersions
		if past != nil {
			above = uint32(past.Highest[strings.TrimPrefix(keyPath(k), keyPrefix)])
		}
		k = k.Recovered(incarnation, above, func(n uint32) bool { return there[materialPath(k, n)] }, now.UTC())
		value, err := json.Marshal(k)
		if err != nil {
			return changed, fmt.Errorf("encode key %s: %w", k.ID, err)
		}
		detail := map[string]string{"step": "key", "key": k.Name, "above": fmt.Sprint(k.Above)}
		if _, err := p.Commit(ctx, []guard.Cond{{Path: r.Path, Rev: r.Rev}}, []guard.Write{{Path: r.Path, Value: value}}, detail); err != nil {
			return changed, err
		}
		changed++
	}
	return changed, nil
}

// Erased says since when the material of a version is erased; false while it is there or withdrawn only.
func (s *Service) Erased(k keyring.Key, n uint32) (time.Time, bool) {
	return s.guard.Erased(materialPath(k, n))
}
