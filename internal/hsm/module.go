//go:build pkcs11

package hsm

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/miekg/pkcs11"

	"github.com/rotorkms/rotor/internal/fault"
)

// maxCalls bounds the calls that are in one library at a time, and so the threads that a token which does not answer can hold.
const maxCalls = 8

// modules are the libraries of this process by their path. Cryptoki has one state for each process that loads a library (2.40, 6.4): to begin or end it is to begin
// or end it for every user of the library, so there is one module for all of them, as long as the process lives.
var modules struct {
	sync.Mutex // guards byPath and tokens
	byPath     map[string]*module
	tokens     map[Config]*Token
}

// module is a library in use.
type module struct {
	path  string
	lib   *pkcs11.Ctx
	calls chan struct{} // has a slot for each call in the library; who holds all of them may end the library and begin it again
	again chan struct{} // one who does so at a time
	alone sync.Mutex    // over each call that makes, names, destroys or looks for objects: SoftHSM 2.6 mixes up what a thread makes while another looks

	mu     sync.Mutex // guards what follows
	epoch  uint64     // how often it was begun
	broken error      // why it could not be begun; nil: it was
}

// Open loads the module of a token and begins it. The token may be away: then each call says so until it is there. Calls with the same configuration share one Token, its
// sessions and its login, for as long as the process lives. fault.Invalid, NotFound when the library does not load.
func Open(c Config) (*Token, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	modules.Lock()
	defer modules.Unlock()
	if t := modules.tokens[c]; t != nil {
		return t, nil
	}
	m := modules.byPath[c.Module]
	if m == nil {
		lib := pkcs11.New(c.Module)
		if lib == nil {
			return nil, fault.New(fault.NotFound, "PKCS #11 module "+c.Module).WithHint("it is not there, not a library for this machine, or needs one that is missing: try ldd")
		}
		m = &module{path: c.Module, lib: lib, calls: make(chan struct{}, maxCalls), again: make(chan struct{}, 1)}
		m.begin()
		if modules.byPath == nil {
			modules.byPath, modules.tokens = map[string]*module{}, map[Config]*Token{}
		}
		modules.byPath[c.Module] = m
	}
	t := &Token{config: c, module: m}
	modules.tokens[c] = t
	return t, nil
}

// begin begins the library, or begins it again. No call may be in it.
func (m *module) begin() {
	_ = m.lib.Finalize() // what was not begun cannot be ended
	err := m.lib.Initialize()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.epoch++
	if m.broken = nil; err != nil {
		m.broken = fmt.Errorf("begin %s: %w", m.path, err)
	}
}

func (m *module) state() (epoch uint64, broken error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.epoch, m.broken
}

// restart begins the library again, once for all who saw it fail in the same epoch. It waits until no call is in it: one that does not return keeps it from
// being begun again.
func (m *module) restart(ctx context.Context, seen uint64) error {
	if err := take(ctx, m.again); err != nil {
		return err
	}
	if epoch, broken := m.state(); epoch != seen {
		<-m.again
		return broken
	}
	for n := range maxCalls {
		if err := take(ctx, m.calls); err != nil {
			m.leave(n)
			<-m.again
			return err
		}
	}
	done := make(chan struct{})
	go func() { // ends with the call, which nothing can give up
		m.begin()
		m.leave(maxCalls)
		<-m.again
		close(done)
	}()
	select {
	case <-done:
		_, broken := m.state()
		return broken
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (m *module) leave(n int) {
	for range n {
		<-m.calls
	}
}

// call carries a function out on a goroutine of its own, with a slot that it gives back when it ends: nothing can end a call into the library, so it goes on when the
// caller has given up. ErrAway then.
func (m *module) call(ctx context.Context, f func() error) error {
	if err := take(ctx, m.calls); err != nil {
		return away(err)
	}
	done := make(chan error, 1)
	go func() {
		defer m.leave(1)
		done <- f()
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return away(context.Cause(ctx))
	}
}

// take takes a slot, or gives up with the context.
func take(ctx context.Context, slots chan struct{}) error {
	select {
	case slots <- struct{}{}:
		return nil
	default:
	}
	select {
	case slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// lost says whether an error means that the session, the login, the token or the library is gone, so that a new one may do. An object that is not there is
// believed after that alone: a token that was taken away looks empty to some libraries.
func lost(err error) bool {
	if errors.Is(err, errEmpty) || errors.Is(err, errNoToken) {
		return true
	}
	var e pkcs11.Error
	if !errors.As(err, &e) {
		return false
	}
	switch e {
	case pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_DEVICE_ERROR,
		pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_TOKEN_NOT_RECOGNIZED, pkcs11.CKR_SLOT_ID_INVALID, pkcs11.CKR_USER_NOT_LOGGED_IN,
		pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED, pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_FUNCTION_FAILED, pkcs11.CKR_OBJECT_HANDLE_INVALID, pkcs11.CKR_KEY_HANDLE_INVALID,
		pkcs11.CKR_OPERATION_ACTIVE, pkcs11.CKR_OPERATION_NOT_INITIALIZED:
		return true
	}
	return false
}
