package kms

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/rotation"
	"github.com/rotorkms/rotor/internal/suite"
)

// DefaultBlock is how many uses of a version with a volume limit are taken at a time.
const DefaultBlock = 1 << 16

// volumes are the uses that this server has taken and not spent yet, of versions whose algorithm has a volume limit. Guarded by mu.
type volumes struct {
	mu    sync.Mutex
	block uint64
	left  map[materialID]*volume
}

// volume is what is left of one version's block. Guarded by mu, which is held while another block is taken.
type volume struct {
	mu   sync.Mutex
	left uint64
	over atomic.Bool // it was refused another block

	// first is the block that the commit took which made the version, if it did: the handle says whether that is the version there is.
	first struct {
		handle uint32
		uses   uint64
	}
}

func (v *volumes) of(id materialID) *volume {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.left == nil {
		v.left = map[materialID]*volume{}
	}
	if v.left[id] == nil {
		v.left[id] = &volume{}
	}
	return v.left[id]
}

// recent is how many versions of a key keep what they have left here when the next is made. One before them that still protects takes another block.
const recent = 8

// forget forfeits what a version has left.
func (v *volumes) forget(id materialID) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.left, id)
}

// taken is the record of a version's uses: how many were ever taken, by any server, the version's own first block among them. What a crash left of a
// block is not given back.
type taken struct {
	Uses uint64 `json:"uses"`
}

func volumePath(k keyring.Key, n uint32) string {
	return "volume/" + string(k.Namespace) + "/" + string(k.ID) + "/" + strconv.FormatUint(uint64(n), 10)
}

// spend counts n protecting uses of a version before they happen. fault.VolumeOver when its algorithm allows no more.
func (s *Service) spend(ctx context.Context, k keyring.Key, v keyring.Version, n uint64) error {
	spec, err := suite.Lookup(v.Algorithm)
	if err != nil || spec.MaxUses == 0 {
		return err
	}
	u := s.volumes.of(materialID{k.ID, v.Number})
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.first.handle == v.Handle {
		u.left, u.first.uses = u.left+u.first.uses, 0
	}
	for u.left < n {
		more, err := s.take(ctx, k, v, spec.MaxUses)
		if err != nil {
			u.over.Store(u.over.Load() || fault.CodeOf(err) == fault.VolumeOver)
			return err // what is left stays for who asks for less
		}
		u.left += more
	}
	u.left -= n
	return nil
}

// firstBlock takes a block of uses of a version in the commit that makes it primary, so that the first who protect under it need not wait for another.
// Nobody can before that commit: only then is there a version of that handle. Where all servers know pages the version itself says so: most are
// replaced before they need a second block, and with it a record of their own.
func (s *Service) firstBlock(k keyring.Key, v *keyring.Version, detail map[string]string) (change, error) {
	spec, err := suite.Lookup(v.Algorithm)
	if err != nil || spec.MaxUses == 0 || !rotation.AtOnce(k) {
		return change{}, err
	}
	n := min(cmp.Or(s.volumes.block, DefaultBlock), spec.MaxUses)
	u := s.volumes.of(materialID{k.ID, v.Number})
	u.mu.Lock()
	defer u.mu.Unlock()
	u.first.handle, u.first.uses = v.Handle, n
	s.volumes.forget(materialID{k.ID, v.Number - min(v.Number, recent)})
	path := volumePath(k, v.Number)
	detail["uses_taken"] = strconv.FormatUint(n, 10)
	c := change{conds: []guard.Cond{{Path: path}}}
	if s.shape(k).paged {
		v.Taken = n
		return c, nil
	}
	value, err := json.Marshal(taken{n})
	if err != nil {
		return change{}, fmt.Errorf("encode volume: %w", err)
	}
	c.writes = []guard.Write{{Path: path, Value: value}}
	return c, nil
}

// take commits another block of uses. A commit of unknown outcome gives none: should it have happened, its block is forfeited.
func (s *Service) take(ctx context.Context, k keyring.Key, v keyring.Version, limit uint64) (uint64, error) {
	path := volumePath(k, v.Number)
	for {
		t := taken{v.Taken}
		rec, err := s.guard.Get(ctx, path)
		switch {
		case fault.CodeOf(err) == fault.NotFound:
		case err != nil:
			return 0, err
		case json.Unmarshal(rec.Value, &t) != nil:
			return 0, fault.New(fault.RecordTampered, path)
		}
		if t.Uses >= limit {
			return 0, fault.New(fault.VolumeOver, fmt.Sprintf("key %s, version %d", k.Name, v.Number)).WithHint("%s protects %d times under one key; rotate it", v.Algorithm, limit)
		}
		n := min(cmp.Or(s.volumes.block, DefaultBlock), limit-t.Uses)
		value, err := json.Marshal(taken{t.Uses + n})
		if err != nil {
			return 0, fmt.Errorf("encode %s: %w", path, err)
		}
		p := s.guard.System("kms", policy.ActEncrypt, Resource(k))
		detail := versionDetail(v.Number)
		detail["uses_taken"] = strconv.FormatUint(t.Uses+n, 10)
		_, err = p.Commit(ctx, []guard.Cond{{Path: path, Rev: rec.Rev}}, []guard.Write{{Path: path, Value: value}}, detail)
		if fault.CodeOf(err) == fault.Conflict {
			continue // another server took one
		}
		if err != nil {
			return 0, err
		}
		return n, nil
	}
}

// volumeLow says whether the primary version of a key has less than a sixteenth of the uses left that its algorithm allows, by what was counted, or
// was refused another one by this server.
func (s *Service) volumeLow(k keyring.Key, protected uint64) bool {
	v, err := k.Version(k.Primary)
	if err != nil {
		return false
	}
	spec, err := suite.Lookup(v.Algorithm)
	if err != nil || spec.MaxUses == 0 {
		return false
	}
	return protected >= spec.MaxUses-spec.MaxUses/16 || s.volumes.of(materialID{k.ID, v.Number}).over.Load()
}
