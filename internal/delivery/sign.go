package delivery

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"sync"

	"golang.org/x/mod/sumdb/tlog"
)

// maxBatch bounds the bodies under one signature, so that a proof has at most 12 hashes.
const maxBatch = 1 << maxPath

const maxPath = 12

// Signature is the server's over the root of a Merkle tree (RFC 9162, 2.1) of bodies, and the way from a body to the root.
type Signature struct {
	Index, Size uint64
	Path        [][]byte // at most 12 hashes
	Bytes       []byte   // Ed25519
}

// Signer signs bodies, those that come at the same time under one signature: an update for ten thousand streams costs a few. Safe for
// concurrent use.
type Signer struct {
	sign func(domain string, msg []byte) []byte

	mu    sync.Mutex // guards what follows
	queue []*request
	busy  bool // somebody signs what is in the queue
}

type request struct {
	leaf tlog.Hash
	out  Signature
	err  error
	done chan struct{}
}

// NewSigner makes a signer. sign signs in SnapshotDomain.
func NewSigner(sign func(domain string, msg []byte) []byte) *Signer { return &Signer{sign: sign} }

// Sign returns the signature of a body.
func (s *Signer) Sign(body []byte) (Signature, error) {
	r := &request{leaf: tlog.RecordHash(body), done: make(chan struct{})}
	s.mu.Lock()
	s.queue = append(s.queue, r)
	lead := !s.busy
	s.busy = true
	s.mu.Unlock()
	if lead {
		runtime.Gosched() // let those that are ready to ask come into the queue
		for batch := s.take(); len(batch) > 0; batch = s.take() {
			s.batch(batch)
		}
	}
	<-r.done
	return r.out, r.err
}

// take returns the next batch; none: the next who asks leads.
func (s *Signer) take() []*request {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := min(len(s.queue), maxBatch)
	batch := s.queue[:n:n]
	if s.queue = s.queue[n:]; len(s.queue) == 0 {
		s.queue = nil // and what is in the array
	}
	s.busy = n > 0
	return batch
}

func (s *Signer) batch(all []*request) {
	var hashes stored
	root, err := hashes.grow(all)
	signature := s.sign(SnapshotDomain, treeInput(uint64(len(all)), root))
	for i, r := range all {
		r.out, r.err = Signature{Index: uint64(i), Size: uint64(len(all)), Bytes: signature}, err
		if err == nil {
			r.out.Path, r.err = hashes.path(int64(len(all)), int64(i))
		}
		close(r.done)
	}
}

// treeInput is what the server signs: size (8 B) and root (32 B).
func treeInput(size uint64, root tlog.Hash) []byte {
	return append(binary.BigEndian.AppendUint64(nil, size), root[:]...)
}

// stored are the hashes of a tree in memory.
type stored []tlog.Hash

// ReadHashes implements tlog.HashReader.
func (s *stored) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, n := range indexes {
		out[i] = (*s)[n]
	}
	return out, nil
}

func (s *stored) grow(all []*request) (tlog.Hash, error) {
	for i, r := range all {
		more, err := tlog.StoredHashesForRecordHash(int64(i), r.leaf, s)
		if err != nil {
			return tlog.Hash{}, fmt.Errorf("hash deliveries: %w", err)
		}
		*s = append(*s, more...)
	}
	root, err := tlog.TreeHash(int64(len(all)), s)
	if err != nil {
		return root, fmt.Errorf("hash deliveries: %w", err)
	}
	return root, nil
}

func (s *stored) path(size, index int64) ([][]byte, error) {
	proof, err := tlog.ProveRecord(size, index, s)
	if err != nil {
		return nil, fmt.Errorf("prove a delivery: %w", err)
	}
	out := make([][]byte, len(proof))
	for i := range proof {
		out[i] = proof[i][:]
	}
	return out, nil
}

// covers says whether a signature is the server's and over body.
func (s Signature) covers(body []byte, verify func(domain string, msg, sig []byte) bool) bool {
	if s.Size == 0 || s.Size > maxBatch || s.Index >= s.Size || len(s.Path) > maxPath {
		return false
	}
	path := make(tlog.RecordProof, len(s.Path))
	for i, h := range s.Path {
		if len(h) != tlog.HashSize {
			return false
		}
		path[i] = tlog.Hash(h)
	}
	root, ok := rootOf(path, int64(s.Size), int64(s.Index), tlog.RecordHash(body))
	return ok && verify(SnapshotDomain, treeInput(s.Size, root), s.Bytes)
}

// rootOf follows a path from a leaf to the root of a tree (RFC 9162, 2.1.3.2).
func rootOf(path tlog.RecordProof, size, index int64, leaf tlog.Hash) (root tlog.Hash, ok bool) {
	root = leaf
	last := size - 1
	for _, h := range path {
		if last == 0 {
			return root, false
		}
		if index&1 == 1 || index == last {
			root = tlog.NodeHash(h, root)
			for index&1 == 0 && index != 0 {
				index, last = index>>1, last>>1
			}
		} else {
			root = tlog.NodeHash(root, h)
		}
		index, last = index>>1, last>>1
	}
	return root, last == 0
}
