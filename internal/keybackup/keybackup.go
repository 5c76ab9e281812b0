// Package keybackup is the format of the backup of one key: facts in the clear, a data key that is sealed to somebody, and under it the key's
// record with the material of its versions (spec/key-backup.md). It decides who may open one as little as a file format does.
package keybackup

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

// Bounds, in bytes.
const (
	MaxBytes    = 32 << 20  // of a backup, which comes and goes in one message: 70,000 versions of a symmetric key
	maxFacts    = 128 << 10 // in the clear
	maxWrapped  = 16 << 10  // sealed data key
	maxRecord   = 24 << 20  // of a key
	maxMaterial = 64 << 10  // of one version

	maxNumber = 1 << 31 // of a version
)

// tooLarge is what helps then. The whole store has no such bound.
var tooLarge = fmt.Sprintf("at most %d MiB with its versions; retire and destroy versions that nothing needs, or back up the store (rotor backup create)", MaxBytes>>20)

const magic = "rotor-key-backup/1\n"

// Facts stand in the clear in front of a backup. Nothing proves them before it is open.
type Facts struct {
	ID          string            `json:"id"`
	Cluster     string            `json:"cluster"`
	Incarnation uint32            `json:"incarnation"`
	Namespace   keyring.Namespace `json:"namespace"`
	Key         keyring.KeyID     `json:"key"`
	Name        string            `json:"name"`
	Labels      map[string]string `json:"labels,omitempty"`
	Created     time.Time         `json:"created"`

	// Of a backup for its own cluster.
	Expires    time.Time       `json:"expires,omitzero"`
	Generation uint64          `json:"generation,omitempty"` // of the root key that its data key is under
	Root       json.RawMessage `json:"root,omitempty"`       // the root record: which sealers open that generation

	// Of a backup for another cluster.
	WrappingKey string          `json:"wrapping_key,omitempty"`
	Transport   suite.Transport `json:"transport,omitempty"`
}

// Content is what is sealed.
type Content struct {
	Key       keyring.Key
	Materials map[uint32]secret.Bytes // by the number of the version
}

// Destroy overwrites the material.
func (c Content) Destroy() {
	for _, m := range c.Materials {
		m.Destroy()
	}
}

// Seal makes a backup. wrap seals the data key to whoever shall open it, bound to the facts. fault.TooLarge, MalformedFile for a content that
// could not be read back.
func Seal(f Facts, c Content, wrap func(dek secret.Bytes, bound []byte) ([]byte, error)) ([]byte, error) {
	if err := check(f, c); err != nil {
		return nil, err
	}
	facts, err := json.Marshal(f)
	if err != nil {
		return nil, fmt.Errorf("encode facts: %w", err)
	}
	plain, err := encode(c)
	if err != nil {
		return nil, err
	}
	defer plain.Destroy()
	dek := secret.Random(suite.XAESKeySize)
	defer dek.Destroy()
	wrapped, err := wrap(dek, bound(facts))
	if err != nil {
		return nil, err
	}
	out := appendPart(appendPart([]byte(magic), facts), wrapped)
	if len(facts) > maxFacts || len(wrapped) > maxWrapped || len(out)+plain.Len() > MaxBytes-1<<10 {
		return nil, fault.New(fault.TooLarge, "backup of key "+f.Name).WithHint("%s", tooLarge)
	}
	aead, err := suite.NewXAES(dek)
	if err != nil {
		return nil, err
	}
	return suite.Seal(aead, out, plain.Reveal(), out), nil
}

// bound is the associated data of the sealed data key.
func bound(facts []byte) []byte { return append([]byte("rotor/key-backup/1\x00"), facts...) }

// Read reads the facts. fault.MalformedFile, TooLarge.
func Read(b []byte) (Facts, error) {
	f, _, _, _, err := split(b)
	return f, err
}

// Open opens a backup. unwrap opens the data key with the same bound data. fault.MalformedFile, TooLarge, DecryptFailed, and what unwrap returns.
func Open(b []byte, unwrap func(f Facts, wrapped, bound []byte) (secret.Bytes, error)) (Facts, Content, error) {
	f, facts, wrapped, front, err := split(b)
	if err != nil {
		return f, Content{}, err
	}
	dek, err := unwrap(f, wrapped, bound(facts))
	if err != nil {
		return f, Content{}, err
	}
	defer dek.Destroy()
	aead, err := suite.NewXAES(dek)
	if err != nil {
		return f, Content{}, fault.New(fault.DecryptFailed, "key backup")
	}
	p, err := suite.Open(aead, nil, b[front:], b[:front])
	if err != nil {
		return f, Content{}, fault.New(fault.DecryptFailed, "key backup")
	}
	plain := secret.Take(p)
	defer plain.Destroy()
	c, err := Decode(f, plain)
	return f, c, err
}

// split takes a backup apart; front is where its sealed part begins.
func split(b []byte) (f Facts, facts, wrapped []byte, front int, err error) {
	malformed := fault.New(fault.MalformedFile, "key backup")
	if len(b) > MaxBytes {
		return f, nil, nil, 0, fault.New(fault.TooLarge, "key backup")
	}
	rest, ok := bytes.CutPrefix(b, []byte(magic))
	if !ok {
		return f, nil, nil, 0, malformed
	}
	facts, rest, ok = cutPart(rest, maxFacts)
	if !ok {
		return f, nil, nil, 0, malformed
	}
	wrapped, rest, ok = cutPart(rest, maxWrapped)
	if !ok {
		return f, nil, nil, 0, malformed
	}
	d := json.NewDecoder(bytes.NewReader(facts))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil || d.More() {
		return f, nil, nil, 0, malformed
	}
	return f, facts, wrapped, len(b) - len(rest), nil
}

func appendPart(b, part []byte) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(part))), part...)
}

// cutPart reads a part of at most so many bytes.
func cutPart(b []byte, limit int) (part, rest []byte, ok bool) {
	if len(b) < 4 {
		return nil, nil, false
	}
	n := binary.BigEndian.Uint32(b)
	if uint64(n) > uint64(min(limit, len(b)-4)) {
		return nil, nil, false
	}
	return b[4 : 4+n], b[4+n:], true
}

// encode writes the key's record and, in the order of their numbers, the materials: number, length, bytes. In one piece of memory, so that no
// copy of a material is left where the buffer grew.
func encode(c Content) (secret.Bytes, error) {
	record, err := json.Marshal(c.Key)
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("encode key: %w", err)
	}
	if len(record) > maxRecord {
		return secret.Bytes{}, fault.New(fault.TooLarge, "backup of key "+c.Key.Name).WithHint("%s", tooLarge)
	}
	size := 4 + len(record)
	for _, m := range c.Materials {
		size += 8 + m.Len()
	}
	b := appendPart(make([]byte, 0, size), record)
	for _, n := range slices.Sorted(maps.Keys(c.Materials)) {
		b = appendPart(binary.BigEndian.AppendUint32(b, n), c.Materials[n].Reveal())
	}
	return secret.Take(b), nil
}

// Decode reads what was sealed, which is of a key with the facts. fault.MalformedFile.
func Decode(f Facts, plain secret.Bytes) (Content, error) {
	malformed := fault.New(fault.MalformedFile, "key backup")
	record, rest, ok := cutPart(plain.Reveal(), maxRecord)
	if !ok {
		return Content{}, malformed
	}
	c := Content{Materials: map[uint32]secret.Bytes{}}
	d := json.NewDecoder(bytes.NewReader(record))
	if err := d.Decode(&c.Key); err != nil || d.More() {
		return Content{}, malformed
	}
	last := uint32(0)
	for len(rest) > 0 {
		var m []byte
		if len(rest) < 4 {
			ok = false
			break
		}
		n := binary.BigEndian.Uint32(rest)
		if m, rest, ok = cutPart(rest[4:], maxMaterial); !ok || n <= last {
			ok = false
			break
		}
		c.Materials[n], last = secret.Copy(m), n
	}
	if !ok || check(f, c) != nil {
		c.Destroy()
		return Content{}, malformed
	}
	return c, nil
}

// check holds a content to what the key's record says: each version that keeps its material has it, and no other. fault.MalformedFile.
func check(f Facts, c Content) error {
	k := c.Key
	bad := func(what string) error { return fault.New(fault.MalformedFile, "key backup").WithHint("%s", what) }
	if k.ID != f.Key || !keyring.ValidID(k.ID) || k.Namespace != f.Namespace || k.Name != f.Name || !maps.Equal(k.Labels, f.Labels) {
		return bad("it is not of the key that it names")
	}
	if err := k.Validate(); err != nil {
		return err
	}
	numbers, handles, want := uint32(0), map[uint32]bool{}, 0
	for v := range k.All() {
		if v.Number <= numbers || v.Handle == 0 || handles[v.Handle] {
			return bad("its versions are not in order")
		}
		numbers, handles[v.Handle] = v.Number, true
		if !slices.Contains(keyring.States(), v.State) || !slices.Contains(keyring.Phases(), v.Phase) {
			return bad("a version is in no state that there is")
		}
		if _, err := suite.ForPurpose(v.Algorithm, k.Purpose); err != nil {
			return err
		}
		m, there := c.Materials[v.Number]
		if k.KeepsMaterial(v) != there || there && m.IsZero() {
			return bad("material is missing, or there is too much of it")
		}
		if there {
			want++
		}
	}
	if numbers == 0 || want != len(c.Materials) || max(numbers, k.Above) > maxNumber {
		return bad("it has no versions, material of none, or numbers that nobody reaches")
	}
	return nil
}
