package campaign

import (
	"context"
	"fmt"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/rotation"
)

// A census is what data sets say of themselves. Before something rests on it that cannot be taken back, the ciphertexts are looked at.

// sampleSize is how many ciphertexts of each shard a campaign opens at its end.
const sampleSize = 100

// verify opens a sample of every shard at the end of a campaign: each is under the target and opens. fault.WrongState when a data set's
// census and its ciphertexts disagree.
func (s *Service) verify(ctx context.Context, r *running) error {
	at := r.now()
	for _, t := range s.of(at.Key) {
		info, err := t.adapter.Info(ctx)
		if err != nil {
			return err
		}
		for _, shard := range info.ordered() {
			items, _, err := t.adapter.Scan(ctx, shard, "", sampleSize)
			if err != nil {
				return err
			}
			for _, it := range items {
				n, err := s.KMS.Opens(ctx, at.Key, it.Value, it.Parts)
				if err == nil && n == at.Target || fault.CodeOf(err) == fault.UnknownVersion { // the census names those
					continue
				}
				if err == nil {
					err = fmt.Errorf("it is under version %d", n)
				}
				return fault.Wrap(fault.WrongState, "data set "+t.now().Name+" has other ciphertexts than its census says", err)
			}
			r.progressed(s.Now())
		}
	}
	return nil
}

// inspectAll opens every ciphertext of a key and puts what it finds into a census that counted none of a version: those that are
// under it after all, and those of which it cannot be said.
func (s *Service) inspectAll(ctx context.Context, k keyring.Key, c *rotation.Census) error {
	var unclear uint64
	for _, t := range s.of(k.ID) {
		info, err := t.adapter.Info(ctx)
		if err != nil {
			return unreachable(t, err)
		}
		for _, shard := range info.ordered() {
			under, other, err := s.inspect(ctx, k, t, shard, c.Version)
			if err != nil {
				return err
			}
			c.Remaining, unclear = plus(c.Remaining, under), plus(unclear, other)
		}
	}
	if unclear > 0 && c.Remaining == 0 {
		c.Unreachable = append(c.Unreachable, fmt.Sprintf("%d ciphertexts that do not open", unclear))
	}
	return nil
}

func (s *Service) inspect(ctx context.Context, k keyring.Key, t *set, shard string, version uint32) (under, unclear uint64, err error) {
	limit, cursor := pages{maxInspected}, ""
	for {
		items, next, err := t.adapter.Scan(ctx, shard, cursor, batchSize)
		if err != nil {
			return 0, 0, unreachable(t, err)
		}
		if err := limit.page(t, len(items)); err != nil {
			return 0, 0, err
		}
		for _, it := range items {
			n, err := s.KMS.Opens(ctx, k.ID, it.Value, it.Parts)
			switch {
			case n == version:
				under++
			case err != nil && !ofItem(err):
				return 0, 0, err
			case err != nil && (n == 0 || fault.CodeOf(err) == fault.DecryptFailed): // else it is known to be under another version
				unclear++
			}
		}
		if cursor = next; cursor == "" {
			return under, unclear, nil
		}
	}
}

// maxInspected bounds how many ciphertexts of one shard are opened before a destruction.
const maxInspected = 1 << 32
