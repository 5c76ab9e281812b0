package guard

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/store"
)

// rootPath is where the root record stands.
const rootPath = "seal/root"

// rootRecord is the only record that is not sealed: it holds the wraps of the root key.
type rootRecord struct {
	Cluster    string            `json:"cluster"`
	Generation uint64            `json:"generation"`
	Wraps      map[string][]byte `json:"wraps"` // sealer's ID -> blob
	Tag        []byte            `json:"tag"`   // HMAC under the root over the rest
}

// wrap wraps the root with every sealer, at the record's generation. fault.Invalid without a sealer.
func (r *rootRecord) wrap(ctx context.Context, sealers []seal.Sealer, root secret.Bytes) error {
	if len(sealers) == 0 {
		return fault.New(fault.Invalid, "seal").WithHint("name at least one sealer")
	}
	r.Wraps = map[string][]byte{}
	for _, s := range sealers {
		blob, err := s.Wrap(ctx, root, r.Generation)
		if err != nil {
			return fmt.Errorf("wrap root with %s: %w", s.ID(), err)
		}
		r.Wraps[s.ID()] = blob
	}
	return nil
}

// encode tags the record under the root and encodes it.
func (r *rootRecord) encode(root secret.Bytes) []byte {
	r.Tag = r.tag(root)
	b, _ := json.Marshal(r) // strings, numbers and bytes always encode
	return b
}

func (r rootRecord) tag(root secret.Bytes) []byte {
	r.Tag = nil
	b, _ := json.Marshal(r) // strings, numbers and bytes always encode
	h := hmac.New(sha256.New, root.Reveal())
	h.Write([]byte("rotor/root-record/1\x00"))
	h.Write(b)
	return h.Sum(nil)
}

func unseal(ctx context.Context, c Config) (root secret.Bytes, cluster string, err error) {
	r, err := c.Store.Get(ctx, rootPath)
	if errors.Is(err, store.ErrNotFound) {
		return root, "", noRoot(ctx, c.Store)
	}
	if err != nil {
		return root, "", storeFault(rootPath, err)
	}
	var rec rootRecord
	if err := json.Unmarshal(r.Value, &rec); err != nil {
		return root, "", fault.New(fault.RecordTampered, rootPath)
	}
	var failed []error
	for _, s := range c.Sealers {
		blob, ok := rec.Wraps[s.ID()]
		if !ok {
			failed = append(failed, fmt.Errorf("%s: no wrap for it", s.ID()))
			continue
		}
		root, err := s.Unwrap(ctx, blob)
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", s.ID(), err))
			continue
		}
		if !hmac.Equal(rec.Tag, rec.tag(root)) {
			return root, "", fault.New(fault.RecordTampered, rootPath)
		}
		return root, rec.Cluster, nil
	}
	err = errors.Join(failed...)
	if errors.Is(err, seal.ErrUnavailable) {
		return root, "", fault.Wrap(fault.Unavailable, "seal", err)
	}
	return root, "", fault.Wrap(fault.SealWrong, "seal", err)
}

// noRoot tells an empty store from one that has lost its root record.
func noRoot(ctx context.Context, s store.Store) error {
	_, records := s.List(ctx, "")
	for _, err := range records {
		if err != nil {
			return storeFault(rootPath, err)
		}
		return fault.New(fault.RecordTampered, rootPath).WithHint("the store has records, but not the one with the wrapped root key; restore it from a backup")
	}
	return fault.New(fault.NotFound, "cluster in this store").WithHint("rotor server init makes one")
}
