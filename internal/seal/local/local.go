// Package local seals with a key file. Beside the store it protects against theft of the store alone; on another disk, against
// theft of the store's disk.
package local

import (
	"bytes"
	"context"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

// maxFile bounds the key file in bytes.
const maxFile = 1 << 20

// Sealer wraps under one key per generation, kept in a file of mode 0600.
type Sealer struct {
	path string

	mu   sync.Mutex // guards file
	file file
}

// file is the key file's content: JSON, keys in base64.
type file struct {
	Version   int               `json:"version"` // 1
	ID        string            `json:"id"`      // 8 random bytes in hex
	Forgotten uint64            `json:"forgotten_before"`
	Keys      map[uint64]string `json:"keys"` // generation -> 32 bytes
}

// Create makes a new key file. fault.Exists.
func Create(path string) (*Sealer, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make folder of seal key: %w", err)
	}
	var id [8]byte
	rand.Read(id[:])
	s := &Sealer{path: path, file: file{Version: 1, ID: hex.EncodeToString(id[:]), Keys: map[uint64]string{}}}
	// A link, unlike a rename, replaces nothing, and a crash leaves no empty file.
	err := s.write(s.file, os.Link)
	if errors.Is(err, fs.ErrExist) {
		return nil, fault.New(fault.Exists, "seal key "+path)
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Open reads a key file. fault.SealWrong when others may read or write it or it does not parse, fault.NotFound.
func Open(path string) (*Sealer, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe does not hold it up
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "seal key "+path).WithHint("check --dir and --seal-key; rotor server init makes a cluster")
	}
	if err != nil {
		return nil, fmt.Errorf("open seal key: %w", err)
	}
	defer func() { _ = f.Close() }() // it was only read
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("open seal key: %w", err)
	}
	switch {
	case !info.Mode().IsRegular():
		return nil, fault.New(fault.SealWrong, "seal key "+path).WithHint("it is not a file")
	case info.Mode().Perm()&0o077 != 0:
		return nil, fault.New(fault.SealWrong, "seal key "+path).WithHint("chmod 600 it: others may read or change it now")
	case info.Size() > maxFile:
		return nil, fault.New(fault.SealWrong, "seal key "+path).WithHint("it is too large to be a seal key")
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read seal key: %w", err)
	}
	defer clear(b)
	s := &Sealer{path: path}
	if s.file, err = parse(b); err != nil {
		return nil, fault.Wrap(fault.SealWrong, "seal key "+path, err)
	}
	return s, nil
}

// parse reads a key file strictly: a key that is lost here would make a root key unopenable much later.
func parse(b []byte) (file, error) {
	var f file
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return file{}, errors.New("not a seal key file") // the decoder's error may quote a key
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return file{}, errors.New("something follows the seal key")
	}
	if id, err := hex.DecodeString(f.ID); f.Version != 1 || err != nil || len(id) != 8 {
		return file{}, errors.New("not a seal key file of version 1")
	}
	for g, text := range f.Keys {
		key, err := base64.StdEncoding.Strict().DecodeString(text)
		clear(key)
		if err != nil || len(key) != suite.XAESKeySize || g < f.Forgotten {
			return file{}, fmt.Errorf("the key of generation %d is damaged", g)
		}
	}
	if f.Keys == nil {
		f.Keys = map[uint64]string{}
	}
	return f, nil
}

// ID implements seal.Sealer.
func (s *Sealer) ID() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return "local:" + s.file.ID
}

// Wrap implements seal.Sealer. The blob is generation 8, nonce 24, ciphertext, tag 16.
func (s *Sealer) Wrap(_ context.Context, root secret.Bytes, generation uint64) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if generation < s.file.Forgotten {
		return nil, seal.ErrForgotten
	}
	if s.file.Keys[generation] == "" {
		key := secret.Random(suite.XAESKeySize)
		defer key.Destroy()
		next := s.file
		next.Keys = maps.Clone(next.Keys)
		next.Keys[generation] = base64.StdEncoding.EncodeToString(key.Reveal())
		if err := s.save(next); err != nil {
			return nil, err
		}
	}
	aead, err := s.aead(generation)
	if err != nil {
		return nil, err
	}
	blob := binary.BigEndian.AppendUint64(nil, generation)
	return suite.Seal(aead, blob, root.Reveal(), s.data(blob)), nil
}

// Unwrap implements seal.Sealer.
func (s *Sealer) Unwrap(_ context.Context, blob []byte) (secret.Bytes, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(blob) < 8+suite.XAESNonceSize+suite.XAESTagSize {
		return secret.Bytes{}, seal.ErrWrongSealer
	}
	generation := binary.BigEndian.Uint64(blob)
	if generation < s.file.Forgotten {
		return secret.Bytes{}, seal.ErrForgotten
	}
	aead, err := s.aead(generation)
	if err != nil {
		return secret.Bytes{}, err
	}
	root, err := suite.Open(aead, nil, blob[8:], s.data(blob[:8]))
	if err != nil {
		return secret.Bytes{}, seal.ErrWrongSealer
	}
	return secret.Take(root), nil
}

// Forget implements seal.Sealer: the keys of older generations are removed from the file. What the file system keeps of the older
// file is out of reach.
func (s *Sealer) Forget(_ context.Context, before uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.file
	next.Forgotten = max(next.Forgotten, before)
	next.Keys = maps.Clone(next.Keys)
	maps.DeleteFunc(next.Keys, func(g uint64, _ string) bool { return g < next.Forgotten })
	return s.save(next)
}

func (s *Sealer) aead(generation uint64) (cipher.AEAD, error) {
	b, err := base64.StdEncoding.DecodeString(s.file.Keys[generation])
	if err != nil || len(b) != suite.XAESKeySize {
		return nil, seal.ErrWrongSealer
	}
	key := secret.Take(b)
	defer key.Destroy()
	return suite.NewXAES(key)
}

// data binds a blob to the sealer and its generation.
func (s *Sealer) data(generation []byte) []byte {
	return append([]byte("rotor/seal/local/1\x00"+s.file.ID), generation...)
}

// save replaces the file atomically, and the content in memory with it. Call with mu held. After an error the old file is there, or the
// new one whose folder could not be synced; the content in memory is the old then, and saving again puts that right.
func (s *Sealer) save(next file) error {
	if err := s.write(next, os.Rename); err != nil {
		return err
	}
	s.file = next
	return nil
}

// write writes a synced file beside the key file and puts it in its place.
func (s *Sealer) write(content file, place func(from, to string) error) error {
	b, err := json.MarshalIndent(content, "", "  ")
	if err != nil {
		return fmt.Errorf("encode seal key: %w", err)
	}
	defer clear(b)
	if len(b) > maxFile {
		return fmt.Errorf("write seal key: %d generations are too many, let it forget the old ones", len(content.Keys))
	}
	tmp, err := os.CreateTemp(filepath.Dir(s.path), ".seal-*") // mode 0600
	if err != nil {
		return fmt.Errorf("write seal key: %w", err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // gone already after a rename
	_, err = tmp.Write(b)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return fmt.Errorf("write seal key: %w", err)
	}
	if err := place(tmp.Name(), s.path); err != nil {
		return fmt.Errorf("write seal key: %w", err)
	}
	dir, err := os.Open(filepath.Dir(s.path))
	if err != nil {
		return fmt.Errorf("write seal key: %w", err)
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		return fmt.Errorf("write seal key: %w", err)
	}
	return nil
}
