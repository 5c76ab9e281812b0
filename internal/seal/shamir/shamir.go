// Package shamir seals under people: k of n custodians bring their shares (Shamir, "How to share a secret", 1979), which make an HPKE
// key together (RFC 9180, MLKEM768-P256). What wraps is the public half, so a new root is wrapped without asking anybody; what opens
// exists only while an unsealing goes on. Of the shares nothing is kept but a commitment to each, by which a wrong one is named.
package shamir

import (
	"bytes"
	"context"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/secret"
)

const (
	// Prefix begins the ID of every sealer of this kind.
	Prefix = "shamir:"

	blobVersion    = 1
	commitmentSize = 16
	publicSize     = 1184 + 65 // of MLKEM768-P256
)

// Sealer wraps under the public half of a set of shares. Safe for concurrent use.
type Sealer struct {
	threshold, total int
	set              string
	public           hpke.PublicKey
	head             []byte // version, threshold, total, set, commitments, public key

	mu      sync.Mutex // guards what follows
	attempt string     // names the collection that goes on; empty: none
	shares  map[int]Share
	private hpke.PrivateKey // while enough shares are there
}

// New makes a set of n shares, any k of which open, and the sealer that wraps under it. The shares exist nowhere else. fault.Invalid.
func New(k, n int) (*Sealer, []Share, error) {
	if err := CheckSizes(k, n); err != nil {
		return nil, nil, err
	}
	seed := secret.Random(seedSize)
	defer seed.Destroy()
	private, err := hpke.MLKEM768P256().DeriveKeyPair(seed.Reveal())
	if err != nil {
		return nil, nil, fmt.Errorf("make key of shares: %w", err)
	}
	set := make([]byte, setSize)
	rand.Read(set)
	shares := split(seed, k, n, hex.EncodeToString(set))
	head := append([]byte{blobVersion, byte(k), byte(n)}, set...)
	for _, s := range shares {
		head = append(head, commitment(s)...)
	}
	s, err := Open(append(head, private.PublicKey().Bytes()...))
	return s, shares, err
}

// commitment binds a share: nobody finds another one with the same, and it tells nothing of 32 random bytes.
func commitment(s Share) []byte {
	h := sha256.New()
	h.Write([]byte("rotor/share-commitment/1\x00"))
	h.Write(s.head())
	h.Write(s.value.Reveal())
	return h.Sum(nil)[:commitmentSize]
}

// Open makes the sealer of what Public gave, or of what stands at the front of a blob that it made. fault.SealWrong.
func Open(b []byte) (*Sealer, error) {
	bad := fault.New(fault.SealWrong, "set of shares")
	if len(b) < 3+setSize || b[0] != blobVersion || CheckSizes(int(b[1]), int(b[2])) != nil {
		return nil, bad
	}
	size := 3 + setSize + int(b[2])*commitmentSize + publicSize
	if len(b) < size {
		return nil, bad
	}
	public, err := hpke.MLKEM768P256().NewPublicKey(b[size-publicSize : size])
	if err != nil {
		return nil, bad
	}
	return &Sealer{
		threshold: int(b[1]), total: int(b[2]), set: hex.EncodeToString(b[3 : 3+setSize]), public: public, head: bytes.Clone(b[:size]),
		shares: map[int]Share{},
	}, nil
}

// Public is what the sealer is made of: sizes, commitments and public key. Nothing in it is secret.
func (s *Sealer) Public() []byte { return bytes.Clone(s.head) }

// ID implements seal.Sealer: "shamir:3/5:" and the set.
func (s *Sealer) ID() string { return fmt.Sprintf("%s%d/%d:%s", Prefix, s.threshold, s.total, s.set) }

// Set names the set of shares.
func (s *Sealer) Set() string { return s.set }

// Wrap implements seal.Sealer. It needs no share. The blob is head, generation 8, encapsulated key, ciphertext.
func (s *Sealer) Wrap(_ context.Context, root secret.Bytes, generation uint64) ([]byte, error) {
	out := binary.BigEndian.AppendUint64(s.Public(), generation)
	sealed, err := hpke.Seal(s.public, hpke.HKDFSHA256(), hpke.AES256GCM(), info(out), root.Reveal())
	if err != nil {
		return nil, fmt.Errorf("wrap for the shares: %w", err)
	}
	return append(out, sealed...), nil
}

// info binds a blob to the whole public part and its generation.
func info(head []byte) []byte { return append([]byte("rotor/seal/shamir/1\x00"), head...) }

// Unwrap implements seal.Sealer. Until enough shares are there it is ErrNeedsShares.
func (s *Sealer) Unwrap(_ context.Context, blob []byte) (secret.Bytes, error) {
	size := len(s.head) + 8
	if len(blob) < size || !bytes.Equal(blob[:len(s.head)], s.head) {
		return secret.Bytes{}, seal.ErrWrongSealer
	}
	s.mu.Lock()
	private := s.private
	s.mu.Unlock()
	if private == nil {
		return secret.Bytes{}, needShares
	}
	root, err := hpke.Open(private, hpke.HKDFSHA256(), hpke.AES256GCM(), info(blob[:size]), blob[size:])
	if err != nil {
		return secret.Bytes{}, seal.ErrWrongSealer
	}
	return secret.Take(root), nil
}

var needShares = errors.Join(seal.ErrNeedsShares, seal.ErrUnavailable)

// Forget implements seal.Sealer. Shares are with people: whoever has enough of them opens every blob of the set.
func (s *Sealer) Forget(context.Context, uint64) error {
	return fmt.Errorf("%w: %d shares of set %s open them; make a new set and have the old shares destroyed", seal.ErrRemains, s.threshold, s.set)
}

// Progress is how far a collection of shares is.
type Progress struct {
	Set             string
	Have, Threshold int
	Total           int
	Attempt         string // names the collection; empty: none goes on
	Indexes         []int  // of the shares that are there, in order
}

// Done says whether the shares suffice.
func (p Progress) Done() bool { return p.Have >= p.Threshold }

// Progress says how far it is.
func (s *Sealer) Progress() Progress {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.progress()
}

func (s *Sealer) progress() Progress {
	return Progress{
		Set: s.set, Have: len(s.shares), Threshold: s.threshold, Total: s.total, Attempt: s.attempt, Indexes: slices.Sorted(maps.Keys(s.shares)),
	}
}

// Add takes a share. attempt names the collection that it is meant for; empty: the one that goes on, or a new one. A share that is
// foreign, wrong or there already changes nothing. fault.ShareForeign, ShareWrong, ShareDuplicate, Conflict for another attempt.
func (s *Sealer) Add(attempt string, share Share) (Progress, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if share.Set != s.set {
		return s.progress(), fault.New(fault.ShareForeign, share.Name()).WithHint("this seal takes shares of set %s", s.set)
	}
	if share.Threshold != s.threshold || share.Total != s.total || !bytes.Equal(commitment(share), s.commitment(share.Index)) {
		return s.progress(), fault.New(fault.ShareWrong, share.Name()).WithHint("it is not what was printed when the set was made")
	}
	if attempt != "" && attempt != s.attempt {
		return s.progress(), fault.New(fault.Conflict, "attempt "+attempt).WithHint("it was reset or has ended; begin again without naming one")
	}
	if _, twice := s.shares[share.Index]; twice {
		return s.progress(), fault.New(fault.ShareDuplicate, share.Name())
	}
	if s.attempt == "" {
		s.attempt = rand.Text()[:16]
	}
	s.shares[share.Index] = share
	if len(s.shares) < s.threshold || s.private != nil {
		return s.progress(), nil
	}
	return s.progress(), s.join()
}

func (s *Sealer) commitment(index int) []byte {
	from := 3 + setSize + (index-1)*commitmentSize
	return s.head[from : from+commitmentSize]
}

// join makes the private key. Call with mu held.
func (s *Sealer) join() error {
	seed := combine(slices.Collect(maps.Values(s.shares)))
	defer seed.Destroy()
	private, err := hpke.MLKEM768P256().DeriveKeyPair(seed.Reveal())
	if err != nil || !bytes.Equal(private.PublicKey().Bytes(), s.public.Bytes()) {
		s.clear()
		return fault.New(fault.SealWrong, "set "+s.set).WithHint("its shares hold and do not make its key: the store was changed")
	}
	s.private = private
	return nil
}

// Reset forgets the shares that are there. attempt must name the collection, so that nobody resets by guessing. fault.Conflict.
func (s *Sealer) Reset(attempt string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if attempt == "" || attempt != s.attempt {
		return fault.New(fault.Conflict, "attempt "+attempt).WithHint("it was reset or has ended")
	}
	s.clear()
	return nil
}

// Clear forgets the shares that are there, and the key that they made.
func (s *Sealer) Clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
}

func (s *Sealer) clear() {
	for _, share := range s.shares {
		share.Destroy()
	}
	s.shares, s.private, s.attempt = map[int]Share{}, nil, ""
}

// ParseSizes reads "3/5". fault.Invalid.
func ParseSizes(text string) (k, n int, err error) {
	a, b, _ := strings.Cut(text, "/")
	k, errK := strconv.Atoi(a)
	n, errN := strconv.Atoi(b)
	if errK != nil || errN != nil {
		return 0, 0, badSizes(text)
	}
	return k, n, CheckSizes(k, n)
}
