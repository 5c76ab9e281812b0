//go:build pkcs11

package hsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/miekg/pkcs11"

	"github.com/rotorkms/rotor/internal/secret"
)

const (
	patience = 10 * time.Second // that a token has for one operation, with coming back
	maxPIN   = 255              // bytes
)

var (
	errNoToken = errors.New("no token of this label is in a slot")
	errEmpty   = errors.New("the token shows no such key")
)

// Token is one token of one login. Safe for concurrent use.
type Token struct {
	config Config
	module *module

	mu      sync.Mutex // guards what follows
	epoch   uint64     // of the module, that what follows is of
	idle    []pkcs11.SessionHandle
	handles map[object][]pkcs11.ObjectHandle
	missing map[object]bool // what was not there when the library had just been begun
	refused secret.Bytes    // the PIN that the token refused
}

// session is one session for the time of one call.
type session struct {
	token *Token
	lib   *pkcs11.Ctx
	epoch uint64
	at    pkcs11.SessionHandle
	fresh bool // the library was begun for this call
}

// Label is the token's.
func (t *Token) Label() string { return t.config.Token }

// do has an operation carried out in a session, and once more in a new one when the session or the token went away under it; so it has to be one that may be repeated.
// ErrAway, ErrUnable, and what f returns.
func (t *Token) do(ctx context.Context, f func(*session) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("no answer within %s", patience))
	defer cancel()
	seen, err := t.try(ctx, false, f)
	if lost(err) {
		if again := t.module.restart(ctx, seen); again != nil {
			return away(again)
		}
		_, err = t.try(ctx, true, f)
	}
	if lost(err) {
		return away(err)
	}
	if _, code := codeOf(err); code && !errors.Is(err, ErrAway) && !errors.Is(err, ErrRefused) {
		return fmt.Errorf("%w: %w", ErrUnable, err)
	}
	return err
}

func codeOf(err error) (pkcs11.Error, bool) {
	var e pkcs11.Error
	ok := errors.As(err, &e)
	return e, ok
}

func away(err error) error { return fmt.Errorf("%w: %w", ErrAway, err) }

// try returns the epoch in which it was tried, for restart.
func (t *Token) try(ctx context.Context, fresh bool, f func(*session) error) (epoch uint64, err error) {
	seen := make(chan uint64, 1)
	err = t.module.call(ctx, func() error {
		epoch, broken := t.module.state() // and stays it: whoever begins the library again waits for this call
		seen <- epoch
		if broken != nil {
			return pkcs11.Error(pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED)
		}
		s, err := t.enter(epoch)
		if err != nil {
			return err
		}
		s.fresh = fresh
		err = f(s)
		t.putBack(s, err)
		return err
	})
	if !lost(err) {
		return 0, err
	}
	return <-seen, err
}

// enter takes a session that is idle, or opens one and logs in.
func (t *Token) enter(epoch uint64) (*session, error) {
	s := &session{token: t, lib: t.module.lib, epoch: epoch}
	t.mu.Lock()
	if t.epoch != epoch { // the old ones went with the old epoch
		t.epoch, t.idle, t.handles, t.missing = epoch, nil, map[object][]pkcs11.ObjectHandle{}, map[object]bool{}
	}
	if n := len(t.idle); n > 0 {
		s.at, t.idle = t.idle[n-1], t.idle[:n-1]
		t.mu.Unlock()
		return s, nil
	}
	t.mu.Unlock()
	slot, err := t.slot()
	if err != nil {
		return nil, err
	}
	if s.at, err = s.lib.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION); err != nil {
		return nil, fmt.Errorf("open session: %w", err)
	}
	if err := t.login(s, slot); err != nil {
		_ = s.lib.CloseSession(s.at) // the login says what is wrong
		return nil, err
	}
	return s, nil
}

// putBack keeps a session that is in order for the next call.
func (t *Token) putBack(s *session, err error) {
	if lost(err) && !errors.Is(err, errEmpty) {
		_ = s.lib.CloseSession(s.at) // it is gone, or goes
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.epoch == s.epoch {
		t.idle = append(t.idle, s.at)
	}
}

// slot finds the token by its label.
func (t *Token) slot() (uint, error) {
	slots, err := t.module.lib.GetSlotList(true)
	if err != nil {
		return 0, fmt.Errorf("list slots: %w", err)
	}
	var found []uint
	for _, s := range slots {
		if info, err := t.module.lib.GetTokenInfo(s); err == nil && info.Label == t.config.Token {
			found = append(found, s)
		}
	}
	switch len(found) {
	case 0:
		return 0, errNoToken
	case 1:
		return found[0], nil
	}
	return 0, away(fmt.Errorf("%d tokens have the label %q", len(found), t.config.Token))
}

// login logs the process in. A PIN that the token refused is not tried again before its file changes, and the last try is left to people: a token locks itself after a
// few wrong ones.
func (t *Token) login(s *session, slot uint) error {
	pin, err := t.pin()
	if err != nil {
		return away(err)
	}
	defer pin.Destroy()
	t.mu.Lock()
	known := !t.refused.IsZero() && t.refused.Equal(pin)
	t.mu.Unlock()
	if known {
		return away(errors.New("the token refused this PIN before; it is tried again when the file has another"))
	}
	info, err := s.lib.GetTokenInfo(slot)
	switch {
	case err != nil:
		return fmt.Errorf("ask the token: %w", err)
	case info.Flags&pkcs11.CKF_USER_PIN_LOCKED != 0:
		return away(errors.New("the user's PIN is locked"))
	case info.Flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0:
		return away(errors.New("one more wrong PIN locks the token: log in once with the vendor's tool"))
	}
	b := pin.Reveal()
	err = s.lib.Login(s.at, pkcs11.CKU_USER, unsafe.String(unsafe.SliceData(b), len(b))) //nolint:gosec // a string of its own could not be overwritten; the library copies it
	switch {
	case err == nil, errors.Is(err, pkcs11.Error(pkcs11.CKR_USER_ALREADY_LOGGED_IN)):
		return nil
	case errors.Is(err, pkcs11.Error(pkcs11.CKR_PIN_INCORRECT)):
		t.mu.Lock()
		t.refused = secret.Copy(b)
		t.mu.Unlock()
		return away(errors.New("the token refused the PIN"))
	case lost(err):
		return fmt.Errorf("log in: %w", err)
	}
	return away(fmt.Errorf("log in: %w", err))
}

// pin reads the PIN's file: one line.
func (t *Token) pin() (secret.Bytes, error) {
	f, err := os.OpenFile(t.config.PINFile, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe does not hold it up
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("open PIN file: %w", err)
	}
	defer func() { _ = f.Close() }() // it was only read
	info, err := f.Stat()
	switch {
	case err != nil:
		return secret.Bytes{}, fmt.Errorf("open PIN file: %w", err)
	case !info.Mode().IsRegular():
		return secret.Bytes{}, errors.New("the PIN file is not a file")
	case info.Mode().Perm()&0o077 != 0:
		return secret.Bytes{}, errors.New("others may read or change the PIN file: chmod 600")
	}
	b, err := io.ReadAll(io.LimitReader(f, maxPIN+2))
	defer clear(b)
	line := bytes.TrimRight(b, "\r\n")
	switch {
	case err != nil:
		return secret.Bytes{}, fmt.Errorf("read PIN file: %w", err)
	case len(line) == 0 || len(line) > maxPIN || bytes.ContainsAny(line, "\r\n\x00"):
		return secret.Bytes{}, errors.New("the PIN file is one line of at most 255 bytes")
	}
	return secret.Copy(line), nil
}

// Info asks the token what it is, without logging in. ErrAway.
func (t *Token) Info(ctx context.Context) (Info, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("no answer within %s", patience))
	defer cancel()
	found := make(chan Info, 1)
	err := t.module.call(ctx, func() error {
		slot, err := t.slot()
		if err != nil {
			return away(err)
		}
		i, err := t.module.lib.GetTokenInfo(slot)
		if err != nil {
			return away(err)
		}
		l, err := t.module.lib.GetInfo()
		if err != nil {
			return away(err)
		}
		found <- Info{i.Label, i.ManufacturerID, i.Model, i.SerialNumber, fmt.Sprintf("%s %d.%d", l.LibraryDescription, l.LibraryVersion.Major, l.LibraryVersion.Minor)}
		return nil
	})
	if err != nil {
		return Info{}, err
	}
	return <-found, nil
}
