// Package local seals with a key file. Beside the store it protects against theft of the store alone; on another disk, against
// theft of the store's disk.
package local

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

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
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil, fault.New(fault.Exists, "seal key "+path)
	}
	if err != nil {
		return nil, fmt.Errorf("create seal key: %w", err)
	}
	if err := f.Close(); err != nil {
		return nil, fmt.Errorf("create seal key: %w", err)
	}
	return s, s.save()
}

// Open reads a key file. fault.SealWrong when others may read it or it does not parse, fault.NotFound.
func Open(path string) (*Sealer, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "seal key "+path)
	}
	if err != nil {
		return nil, fmt.Errorf("open seal key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 || info.Size() > maxFile {
		return nil, fault.New(fault.SealWrong, "seal key "+path).WithHint("chmod 600 it: others may read it now")
	}
	b, err := os.ReadFile(path)
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

func parse(b []byte) (file, error) {
	var f file
	d := json.NewDecoder(strings.NewReader(string(b)))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return f, errors.New("not a seal key file")
	}
	if f.Version != 1 || len(f.ID) != 16 {
		return f, errors.New("not a seal key file of version 1")
	}
	if f.Keys == nil {
		f.Keys = map[uint64]string{}
	}
	return f, nil
}

// ID implements seal.Sealer.
func (s *Sealer) ID() string { return "local:" + s.file.ID }

// Wrap implements seal.Sealer. The blob is generation 8, nonce 24, ciphertext, tag 16.
func (s *Sealer) Wrap(_ context.Context, root secret.Bytes, generation uint64) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if generation < s.file.Forgotten {
		return nil, seal.ErrForgotten
	}
	if s.file.Keys[generation] == "" {
		key := secret.Random(suite.XAESKeySize)
		s.file.Keys[generation] = base64.StdEncoding.EncodeToString(key.Reveal())
		if err := s.save(); err != nil {
			delete(s.file.Keys, generation)
			return nil, err
		}
	}
	aead, err := s.aead(generation)
	if err != nil {
		return nil, err
	}
	blob := binary.BigEndian.AppendUint64(nil, generation)
	nonce := secret.Random(suite.XAESNonceSize).Reveal()
	return aead.Seal(append(blob, nonce...), nonce, root.Reveal(), s.data(blob[:8])), nil
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
	nonce, body := blob[8:8+suite.XAESNonceSize], blob[8+suite.XAESNonceSize:]
	root, err := aead.Open(nil, nonce, body, s.data(blob[:8]))
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
	s.file.Forgotten = max(s.file.Forgotten, before)
	for g := range s.file.Keys {
		if g < before {
			delete(s.file.Keys, g)
		}
	}
	return s.save()
}

func (s *Sealer) aead(generation uint64) (aead interface {
	Seal(dst, nonce, plaintext, data []byte) []byte
	Open(dst, nonce, ciphertext, data []byte) ([]byte, error)
}, err error) {
	b, err := base64.StdEncoding.DecodeString(s.file.Keys[generation])
	if err != nil || len(b) != suite.XAESKeySize {
		return nil, seal.ErrWrongSealer
	}
	return suite.NewXAES(secret.Take(b))
}

// data binds a blob to the sealer and its generation.
func (s *Sealer) data(generation []byte) []byte {
	return append([]byte("rotor/seal/local/1\x00"+s.file.ID), generation...)
}

// save replaces the file atomically. Call with mu held.
func (s *Sealer) save() error {
	b, err := json.MarshalIndent(s.file, "", "  ")
	if err != nil {
		return fmt.Errorf("encode seal key: %w", err)
	}
	defer clear(b)
	tmp, err := os.CreateTemp(filepath.Dir(s.path), ".seal-*") // mode 0600
	if err != nil {
		return fmt.Errorf("write seal key: %w", err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // gone already after the rename
	_, err = tmp.Write(b)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return fmt.Errorf("write seal key: %w", err)
	}
	if err := os.Rename(tmp.Name(), s.path); err != nil {
		return fmt.Errorf("write seal key: %w", err)
	}
	dir, err := os.Open(filepath.Dir(s.path))
	if err != nil {
		return fmt.Errorf("write seal key: %w", err)
	}
	return errors.Join(dir.Sync(), dir.Close())
}
