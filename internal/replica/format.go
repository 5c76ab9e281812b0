package replica

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/store"
)

// This file is the format of records that the servers on a store have agreed on.

// Format is the newest format of records that this build writes. A store says which one its servers have agreed on; a build that does not
// know it does not touch the store. Raise it with every change that an older build would get wrong, a field among them that it drops when it
// writes the record again and that a promise rests on, and write nothing of it before Keeper.Format
// says that every server on the store knows it.
//
//	1: the first
//	2: join tokens name several servers; keys in a token; backups of keys are on record, and a key says what is missing of its restore
//	3: the versions of a key are in pages beside its head; a key may be of purpose transit, and have a schedule
//	4: entries of the audit log and pages of versions are packed; namespaces end
const Format = FormatPacked

// The first formats that have something.
const (
	FormatManyAddresses = 2 // join tokens that name several servers
	FormatBackups       = 2 // backups of keys on record, restores under way, keys in a token
	FormatPages         = 3 // pages of versions; purpose transit; schedules
	FormatPacked        = 4
)

// CheckFormat says whether this build may touch a store. It writes nothing. fault.StoreNewer.
func CheckFormat(ctx context.Context, s store.Store) error {
	r, err := s.Get(ctx, formatPath)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read format of the store: %w", err)
	}
	_, err = parseFormat(r.Value, Format)
	return err
}

// MarkFormat notes the format in a store that no other server has open: it writes what this build writes from now on, so an older one must not open
// it again. fault.StoreNewer.
func MarkFormat(ctx context.Context, s store.Store) error {
	if err := markFormat(ctx, s, Format); err != nil {
		return err
	}
	r, err := s.Get(ctx, formatPath)
	if err != nil {
		return fmt.Errorf("read format of the store: %w", err)
	}
	if n, err := parseFormat(r.Value, Format); err != nil || n == Format {
		return err
	}
	value, _ := json.Marshal(Format) // a number always encodes
	if _, err := s.Commit(ctx, []store.Cond{{Key: formatPath, Rev: r.Rev}}, []store.Op{{Key: formatPath, Value: value}}); err != nil {
		return fmt.Errorf("note format of the store: %w", err)
	}
	return nil
}

func markFormat(ctx context.Context, s store.Store, newest int) error {
	value, _ := json.Marshal(newest) // a number always encodes
	_, err := s.Commit(ctx, []store.Cond{{Key: formatPath}}, []store.Op{{Key: formatPath, Value: value}})
	if err != nil && !errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrUnknown) {
		return fmt.Errorf("note format of the store: %w", err)
	}
	r, err := s.Get(ctx, formatPath)
	if err != nil {
		return fmt.Errorf("read format of the store: %w", err)
	}
	_, err = parseFormat(r.Value, newest)
	return err
}

// parseFormat reads the note of the format. fault.StoreNewer, RecordTampered.
func parseFormat(b []byte, newest int) (int, error) {
	var n int
	if err := json.Unmarshal(b, &n); err != nil || n < 1 {
		return 0, fault.New(fault.RecordTampered, formatPath)
	}
	if n > newest {
		return n, fault.New(fault.StoreNewer, fmt.Sprintf("store of format %d", n)).WithHint("this build knows formats up to %d; run a newer one", newest)
	}
	return n, nil
}

// calmAt says whether the store may move on to a format: all who live know it, and have for a while. Call with mu held.
func (k *Keeper) calmAt(format int) bool {
	now := k.Clock()
	switch {
	case format <= k.format:
		k.calm = 0
	case k.calm == 0:
		k.calm = now
	}
	return k.calm != 0 && now-k.calm >= calmTTL*k.TTL
}

// Format is the format of records that the store's servers have agreed on.
func (k *Keeper) Format() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.format
}
