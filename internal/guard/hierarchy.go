package guard

import (
	"context"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/suite"
)

// Paths of what the guard keeps for itself.
const (
	checkpointPath = "guard/checkpoint-key"
	snapshotPath   = "guard/snapshot-key"
	kekPrefix      = "ns/"
	materialPrefix = "material/" // of keys; kms keeps it, the guard counts what is deleted there
)

// hierarchy is what the root key makes: one key for records, one for the log.
type hierarchy struct {
	cluster    string
	generation uint64
	records    cipher.AEAD
	log        secret.Bytes
	root       secret.Bytes // for the root record's tag and for wraps that are made later
}

// maxGeneration bounds the generations of the root key, and maxCounter the writes of one record: the first 8 bytes of a blob hold both.
const (
	maxGeneration = 1 << 16
	counterBits   = 48
	maxCounter    = 1<<counterBits - 1
)

// front is generation - 1 (16 bits) and counter (48 bits). Blobs of generation 1 are what they were before there was another.
func front(generation, counter uint64) uint64 { return (generation-1)<<counterBits | counter }

// generationOf is the generation that a blob says it is of; its seal proves it.
func generationOf(blob []byte) uint64 {
	if len(blob) < 8 {
		return 0
	}
	return binary.BigEndian.Uint64(blob)>>counterBits + 1
}

func derive(root secret.Bytes, cluster string, generation uint64) (hierarchy, error) {
	key := func(label string) (secret.Bytes, error) {
		b, err := hkdf.Key(sha256.New, root.Reveal(), []byte(cluster), "rotor/"+label+"/1", 32)
		return secret.Take(b), err
	}
	h := hierarchy{cluster: cluster, generation: generation, root: root}
	records, err := key("record")
	if err != nil {
		return h, fmt.Errorf("derive record key: %w", err)
	}
	if h.records, err = suite.NewXAES(records); err != nil {
		return h, fmt.Errorf("derive record key: %w", err)
	}
	h.log, err = key("audit-mac")
	return h, err
}

// data binds a blob to its cluster, path, generation and counter.
func (h hierarchy) data(path string, front []byte) []byte {
	b := append([]byte("rotor/record/1\x00"+h.cluster+"\x00"), front...)
	return append(b, path...)
}

// seal makes a blob: generation and counter 8, nonce 24, ciphertext, tag 16.
func (h hierarchy) seal(path string, counter uint64, value []byte) []byte {
	blob := binary.BigEndian.AppendUint64(make([]byte, 0, 8+24+len(value)+16), front(h.generation, counter))
	return suite.Seal(h.records, blob, value, h.data(path, blob))
}

func (h hierarchy) open(path string, blob []byte) (counter uint64, value []byte, err error) {
	if len(blob) < 8+suite.XAESNonceSize+suite.XAESTagSize {
		return 0, nil, errors.New("record is too short")
	}
	counter = binary.BigEndian.Uint64(blob) & maxCounter
	value, err = suite.Open(h.records, nil, blob[8:], h.data(path, blob[:8]))
	return counter, value, err
}

// write seals a write and notes it for the log.
func (h hierarchy) write(w Write, counter uint64) (store.Op, audit.Write) {
	if w.Delete {
		return store.Op{Key: w.Path, Delete: true}, audit.Write{Counter: counter, Path: w.Path, SHA256: audit.Deleted}
	}
	blob := w.Value
	if !w.plain {
		blob = h.seal(w.Path, counter, w.Value)
	}
	return store.Op{Key: w.Path, Value: blob}, audit.Write{Counter: counter, Path: w.Path, SHA256: hashOf(blob)}
}

// InitResult is what Init made and the operator keeps.
type InitResult struct {
	ClusterID     string
	CheckpointKey string // verifier key of the audit log, to be pinned by auditors
}

// Init makes a cluster in an empty store: root key, wraps, signing keys and the namespace "default". fault.Exists.
func Init(ctx context.Context, c Config) (InitResult, error) {
	var id [16]byte
	rand.Read(id[:])
	root := secret.Random(32)
	rec := rootRecord{Cluster: hex.EncodeToString(id[:]), Generation: 1}
	if err := rec.wrap(ctx, c.Sealers, root); err != nil {
		return InitResult{}, err
	}
	value := rec.encode(root)
	h, err := derive(root, rec.Cluster, rec.root())
	if err != nil {
		return InitResult{}, err
	}
	skey, vkey, err := audit.NewKey("rotor-" + rec.Cluster)
	if err != nil {
		return InitResult{}, fmt.Errorf("make checkpoint key: %w", err)
	}
	_, snapshot, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return InitResult{}, fmt.Errorf("make snapshot key: %w", err)
	}
	log, _, err := audit.Load(ctx, c.Store, h.log, func(audit.Entry, store.Rev) error { return nil })
	if fault.CodeOf(err) == fault.AuditBroken {
		return InitResult{}, fault.New(fault.Exists, "cluster in this store")
	}
	if err != nil {
		return InitResult{}, storeFault("init", err)
	}
	g := &Guard{now: c.Now}
	p := g.System("init", "server.init", policy.Resource{})
	e := p.entry(audit.ClassChange, "done", map[string]string{"cluster": rec.Cluster, "checkpoint_key": vkey, "set": strings.Join(slices.Sorted(maps.Keys(rec.Wraps)), ", ")})
	var ops []store.Op
	var conds []store.Cond
	for _, w := range []Write{
		{Path: rootPath, Value: value, plain: true},
		{Path: checkpointPath, Value: []byte(vkey + "\n" + string(skey.Reveal()))},
		{Path: snapshotPath, Value: snapshot.Seed()},
		{Path: kekPrefix + "default", Value: secret.Random(32).Reveal()},
	} {
		op, note := h.write(w, 1)
		ops, e.Writes, conds = append(ops, op), append(e.Writes, note), append(conds, store.Cond{Key: w.Path})
	}
	op, err := log.Op(e)
	if err != nil {
		return InitResult{}, err
	}
	if _, err := c.Store.Commit(ctx, conds, append(ops, op)); errors.Is(err, store.ErrConflict) {
		return InitResult{}, fault.New(fault.Exists, "cluster in this store")
	} else if err != nil {
		return InitResult{}, storeFault("init", err)
	}
	return InitResult{rec.Cluster, vkey}, nil
}

// Open unseals a store and verifies its log. fault.NotFound before Init, SealWrong, AuditBroken, RecordTampered.
func Open(ctx context.Context, c Config) (*Guard, error) {
	for {
		r, err := unseal(ctx, c, c.Before.opened())
		if err != nil {
			return nil, err
		}
		g, err := open(ctx, c, r)
		if err == nil {
			return g, nil
		}
		if errors.Is(err, errBehind) { // another server has sealed again what a start reads
			continue
		}
		if now, gerr := c.Store.Get(ctx, rootPath); gerr != nil || now.Rev == r.rev { // else another server has changed the root meanwhile
			return nil, err
		}
	}
}

// opened are the generations of the root key that a guard has open; none of nil.
func (g *Guard) opened() map[uint64]hierarchy {
	if g == nil {
		return nil
	}
	return g.keys.Load().all
}

func open(ctx context.Context, c Config, r *roots) (*Guard, error) {
	g := &Guard{
		store: c.Store, now: c.Now, log: c.Log, index: newIndex(), turn: c.Turn, shredEvery: c.ShredEvery, keks: map[string]secret.Bytes{},
		tender: make(chan struct{}, 1), further: make(chan struct{}, 1), suspended: make(chan struct{}), told: make(chan struct{}, 1),
	}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	g.windows.all = map[windowKey]*window{}
	g.SetRules(c.Rules)
	g.SetSealers(c.Sealers)
	var err error
	g.audit, g.after, err = audit.Load(ctx, c.Store, r.current.log, func(e audit.Entry, rev store.Rev) error {
		return g.index.add(e, rev)
	}, r.olderLogs()...)
	if err != nil {
		return nil, err
	}
	g.audit.Pack(c.Packs)
	g.use(r)
	g.index.reached(g.after)
	if err := g.loadMarks(ctx); err != nil {
		return nil, err
	}
	if err := g.find(ctx, c); err != nil {
		return nil, err
	}
	g.index.opened()
	return g, nil
}

// find opens the guard's own keys and looks for what shows that the store is not the one that it was. fault.Recovery, RecordTampered,
// RecordReplayed, unless the configuration says to open it all the same.
func (g *Guard) find(ctx context.Context, c Config) error {
	broken := g.openKeys(ctx)
	if errors.Is(broken, errBehind) {
		return broken
	}
	found, err := g.inspect(ctx, c)
	if err != nil {
		return err
	}
	if len(found) == 0 || broken != nil && c.Recovery {
		return broken
	}
	g.detected.Store(&found)
	if c.Recovery {
		return nil
	}
	path, record := strings.CutPrefix(found[0].About, "record ")
	switch {
	case record && found[0].Kind == "lost":
		return lost(path)
	case record && found[0].Kind == "replayed":
		return fault.New(fault.RecordReplayed, path)
	case record:
		return fault.New(fault.RecordTampered, path)
	}
	return fault.New(fault.Recovery, found[0].String())
}

// openKeys reads the signing keys, which are records like others.
func (g *Guard) openKeys(ctx context.Context) error {
	r, err := g.Get(ctx, checkpointPath)
	if fault.CodeOf(err) == fault.NotFound {
		return lost(checkpointPath) // Init made it together with the root
	}
	if err != nil {
		return err
	}
	var skey string
	g.pin, skey, _ = strings.Cut(string(r.Value), "\n")
	if err := g.audit.SetSigner(skey); err != nil {
		return err
	}
	if r, err = g.Get(ctx, snapshotPath); err != nil {
		return err
	}
	if len(r.Value) != ed25519.SeedSize {
		return fault.New(fault.RecordTampered, snapshotPath)
	}
	g.snapshot = ed25519.NewKeyFromSeed(r.Value)
	return nil
}

// SealMaterial seals key material under the KEK of a namespace; facts are what never changes about it.
func (g *Guard) SealMaterial(ctx context.Context, namespace string, facts []byte, m secret.Bytes) ([]byte, error) {
	aead, err := g.kek(ctx, namespace)
	if err != nil {
		return nil, err
	}
	return suite.Seal(aead, nil, m.Reveal(), materialData(facts)), nil
}

// OpenMaterial opens what SealMaterial made with the same facts. fault.RecordTampered.
func (g *Guard) OpenMaterial(ctx context.Context, namespace string, facts, blob []byte) (secret.Bytes, error) {
	aead, err := g.kek(ctx, namespace)
	if err != nil {
		return secret.Bytes{}, err
	}
	m, err := suite.Open(aead, nil, blob, materialData(facts))
	if err != nil {
		return secret.Bytes{}, fault.New(fault.RecordTampered, "material")
	}
	return secret.Take(m), nil
}

func materialData(facts []byte) []byte { return append([]byte("rotor/material/1\x00"), facts...) }

func (g *Guard) kek(ctx context.Context, namespace string) (cipher.AEAD, error) {
	g.kekMu.Lock()
	defer g.kekMu.Unlock()
	k, ok := g.keks[namespace]
	if !ok {
		r, err := g.Get(ctx, kekPrefix+namespace)
		if fault.CodeOf(err) == fault.NotFound {
			return nil, fault.New(fault.NotFound, "namespace "+namespace)
		}
		if err != nil {
			return nil, err
		}
		k = secret.Take(r.Value)
		g.keks[namespace] = k
	}
	return suite.NewXAES(k)
}
