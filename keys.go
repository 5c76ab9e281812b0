package rotor

import (
	"context"
	"time"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/suite"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// Key is a named key. What its custody is decides where an operation runs: a fleet key works in this process, without the network;
// any other works at the server.
type Key struct {
	client *Client
	held   *held
}

// unknownFor is how long a handle that the server did not know is refused without asking again.
const unknownFor = 10 * time.Second

// askEvery is how often a key that was refused is asked for again, when it is used.
const askEvery = time.Second

// fetchTime bounds the one question to the server about an unknown version.
const fetchTime = 3 * time.Second

// Key returns a key by name. It asks nobody; the first use or Ready does.
func (c *Client) Key(name string) *Key {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.held[name]
	if h == nil {
		h = newHeld(name)
		c.held[name] = h
		if c.dir.IsInstance() {
			c.wish(name, nil)
		}
	}
	return &Key{c, h}
}

// wish asks for a key on the present stream; the next stream asks for all of them anyway. answered is closed when the server has
// answered and what it answered is installed. Call with mu held.
func (c *Client) wish(name string, answered chan struct{}) {
	if answered != nil {
		c.wanted[name] = append(c.wanted[name], answered)
	} else if _, ok := c.wanted[name]; !ok {
		c.wanted[name] = nil
	}
	select {
	case c.wished <- struct{}{}:
	default:
	}
}

// wishes takes what is wanted: one question for all who asked meanwhile.
func (c *Client) wishes() (names []string, waiters []chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, w := range c.wanted {
		names, waiters = append(names, name), append(waiters, w...)
	}
	waiters, c.orphans = append(waiters, c.orphans...), nil
	clear(c.wanted)
	return names, waiters
}

// Name is the key's name.
func (k *Key) Name() string { return k.held.name }

// Ready returns once the key can be used, or with the server's refusal, or when ctx ends. A key that stays at the server is ready
// at once.
func (k *Key) Ready(ctx context.Context) error {
	if !k.client.dir.IsInstance() {
		return nil
	}
	err := k.held.ready(ctx)
	if fault.CodeOf(err) == fault.WrongPurpose { // its material never leaves the server
		return nil
	}
	return err
}

// Version is the number and epoch of the primary version as this process knows it; zero for a key that it does not hold.
func (k *Key) Version() (number uint32, epoch uint64) {
	st := k.held.state.Load()
	if st == nil {
		return 0, 0
	}
	return st.protects.Number, st.key.Snapshot.Epoch.Counter
}

// local says whether the key works in this process; it waits until that is known.
func (k *Key) local(ctx context.Context) (bool, error) {
	if st := k.held.state.Load(); st != nil {
		return st.key.Snapshot.Custody == keyring.CustodyFleet, nil
	}
	if !k.client.dir.IsInstance() {
		return false, nil
	}
	err := k.held.ready(ctx)
	if fault.CodeOf(err) == fault.WrongPurpose {
		return false, nil
	}
	if err != nil {
		k.client.askAgain(k.held)
		return false, err
	}
	st := k.held.state.Load()
	if st == nil {
		return false, k.held.absent() // taken away meanwhile
	}
	return st.key.Snapshot.Custody == keyring.CustodyFleet, nil
}

// askAgain asks once more for a key that was refused, at most once in askEvery: the rules or the key may be there by now.
func (c *Client) askAgain(h *held) {
	now := c.config.clock.Now()
	h.mu.Lock()
	due := h.refusal != nil && now.Sub(h.asked) >= askEvery
	if due {
		h.asked = now
	}
	h.mu.Unlock()
	if due {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.wish(h.name, nil)
	}
}

// Encrypt makes a message of a plaintext (at most 1 MiB at the server, unlimited here) under the primary version. The parts are bound to it and
// have to be given to Decrypt again. Its length is the plaintext's + 45 bytes (spec/message.md).
func (k *Key) Encrypt(ctx context.Context, plaintext []byte, parts ...Part) ([]byte, error) {
	return k.AppendEncrypt(ctx, nil, plaintext, parts...)
}

// AppendEncrypt is Encrypt that appends to dst.
func (k *Key) AppendEncrypt(ctx context.Context, dst, plaintext []byte, parts ...Part) ([]byte, error) {
	if local, err := k.local(ctx); err != nil {
		return nil, err
	} else if !local {
		return k.remoteEncrypt(ctx, dst, plaintext, parts)
	}
	st, now, err := k.held.begin(k.client.config.clock)
	if err != nil {
		return nil, err
	}
	if err := st.mayProtect(now); err != nil {
		return nil, err
	}
	out, err := st.primary.Encrypt(dst, plaintext, parts...)
	if err != nil {
		return nil, err
	}
	if err := k.held.end(st, k.client.config.clock); err != nil {
		return nil, err
	}
	return out, nil
}

// mayProtect is holder.Protect without the search for the primary, which build has done.
func (st *state) mayProtect(now time.Time) error {
	v := &st.protects
	if st.primary != nil && v.State == keyring.Active && v.Phase == keyring.PhasePrimary && (v.NotAfter.IsZero() || now.Before(v.NotAfter)) {
		return nil
	}
	if _, err := st.key.Protect(now); err != nil {
		return err
	}
	return fault.New(fault.WrongPurpose, "key "+st.key.Snapshot.Name+" is for "+string(st.key.Snapshot.Purpose))
}

// opener is holder.Process with the key that opens, counting attempts on retired versions, without the search for the primary, which most messages are under.
func (h *held) opener(st *state, handle uint32, now time.Time) (*envelope.MessageKey, error) {
	v := &st.protects
	if st.primary != nil && v.Handle == handle && v.State == keyring.Active && v.Phase == keyring.PhasePrimary && (v.Expires.IsZero() || now.Before(v.Expires)) {
		return st.primary, nil
	}
	found, err := st.key.Process(handle, now)
	if err != nil {
		h.attempted(found, err)
		return nil, err
	}
	m := st.messages[found.Handle]
	if m == nil {
		return nil, fault.New(fault.WrongPurpose, "key "+st.key.Snapshot.Name+" is for "+string(st.key.Snapshot.Purpose))
	}
	return m, nil
}

// Decrypt opens a message that any version of the key made, with the parts that it was made with. Codes: decrypt_failed,
// unknown_version, version_retired, version_destroyed, wrong_state, period_over; lease_over and stale when the process has lost the
// server for too long.
func (k *Key) Decrypt(ctx context.Context, message []byte, parts ...Part) ([]byte, error) {
	return k.AppendDecrypt(ctx, nil, message, parts...)
}

// AppendDecrypt is Decrypt that appends to dst.
func (k *Key) AppendDecrypt(ctx context.Context, dst, message []byte, parts ...Part) ([]byte, error) {
	if local, err := k.local(ctx); err != nil {
		return nil, err
	} else if !local {
		return k.remoteDecrypt(ctx, dst, message, parts)
	}
	handle, err := envelope.MessageHandle(message)
	if err != nil {
		return nil, err
	}
	for asked := false; ; asked = true {
		st, now, err := k.held.begin(k.client.config.clock)
		if err != nil {
			return nil, err
		}
		m, err := k.held.opener(st, handle, now)
		if fault.CodeOf(err) == fault.UnknownVersion && !asked {
			newer, ferr := k.fetch(ctx, handle, st)
			if ferr != nil {
				return nil, ferr
			}
			if newer {
				continue
			}
		}
		if err != nil {
			return nil, err
		}
		out, err := m.Decrypt(dst, message, parts...)
		if err != nil {
			return nil, err
		}
		if err := k.held.end(st, k.client.config.clock); err != nil {
			clear(out[len(dst):])
			return nil, err
		}
		return out, nil
	}
}

// fetch asks the server once about a handle that st does not know, and returns whether a newer epoch came. Callers that ask at the
// same time share the question and its answer. What the server did not know is not asked again for unknownFor.
// fault.Unavailable when the server cannot be asked.
func (k *Key) fetch(ctx context.Context, handle uint32, st *state) (newer bool, err error) {
	h := k.held
	if h.state.Load() != st {
		return true, nil
	}
	if h.isUnknown(handle, k.client.config.clock.Now()) {
		return false, nil
	}
	answered := make(chan struct{})
	k.client.mu.Lock()
	k.client.wish(h.name, answered)
	k.client.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	select {
	case <-answered:
	case <-ctx.Done():
		if h.state.Load() != st {
			return true, nil
		}
		return false, fault.Wrap(fault.Unavailable, "key "+h.name, ctx.Err()).WithHint("the message is of a version that this process does not know, and the server could not be asked")
	}
	if h.state.Load() != st {
		return true, nil
	}
	h.noteUnknown(handle, k.client.config.clock.Now())
	return false, nil
}

// Sign signs a message with the primary version of a signing key, or authenticates it with that of a MAC key. It returns the version
// that did, which Verify needs.
func (k *Key) Sign(ctx context.Context, message []byte) (signature []byte, version uint32, err error) {
	if st := k.held.state.Load(); st != nil && st.key.Snapshot.Custody == keyring.CustodyFleet {
		return k.localTag(message)
	}
	out, err := k.client.admin.Keys.Sign(ctx, connect.NewRequest(&rotorv1.SignRequest{Key: k.ref(), Message: message}))
	if err != nil {
		return nil, 0, err
	}
	return out.Msg.GetSignature(), out.Msg.GetVersion(), nil
}

func (k *Key) localTag(message []byte) ([]byte, uint32, error) {
	st, now, err := k.held.begin(k.client.config.clock)
	if err != nil {
		return nil, 0, err
	}
	v, err := st.key.Protect(now)
	if err != nil {
		return nil, 0, err
	}
	tag, err := suite.Tag(v.Algorithm, st.materials[v.Number], message)
	if err != nil {
		return nil, 0, err
	}
	return tag, v.Number, k.held.end(st, k.client.config.clock)
}

// Verify checks what Sign made: here if the process holds the key (its public halves for a signing key), else at the server. Code
// token_invalid when it does not match.
func (k *Key) Verify(ctx context.Context, message, signature []byte, version uint32) error {
	if k.held.state.Load() == nil {
		m := &rotorv1.VerifyRequest{Key: k.ref(), Message: message, Signature: signature, Version: version}
		_, err := k.client.admin.Keys.Verify(ctx, connect.NewRequest(m))
		return err
	}
	st, now, err := k.held.begin(k.client.config.clock)
	if err != nil {
		return err
	}
	v, err := st.byNumber(version)
	if err != nil {
		return err
	}
	if v, err = st.key.Process(v.Handle, now); err != nil {
		k.held.attempted(v, err)
		return err
	}
	if st.key.Snapshot.Purpose == suite.MAC {
		err = suite.VerifyTag(v.Algorithm, st.materials[v.Number], message, signature)
	} else {
		err = suite.Verify(v.Algorithm, v.Public, message, signature)
	}
	if err != nil {
		return err
	}
	return k.held.end(st, k.client.config.clock)
}

func (st *state) byNumber(n uint32) (keyring.SnapshotVersion, error) {
	for _, v := range st.key.Snapshot.Versions {
		if v.Number == n {
			return v, nil
		}
	}
	return keyring.SnapshotVersion{}, fault.New(fault.UnknownVersion, "key "+st.key.Snapshot.Name)
}

func (k *Key) ref() *rotorv1.KeyRef { return &rotorv1.KeyRef{Name: k.held.name} }

func (k *Key) remoteEncrypt(ctx context.Context, dst, plaintext []byte, parts []Part) ([]byte, error) {
	m := &rotorv1.EncryptRequest{Key: k.ref(), Plaintext: plaintext, Parts: partMessages(parts)}
	out, err := k.client.admin.Keys.Encrypt(ctx, connect.NewRequest(m))
	if err != nil {
		return nil, err
	}
	return append(dst, out.Msg.GetCiphertext()...), nil
}

func (k *Key) remoteDecrypt(ctx context.Context, dst, message []byte, parts []Part) ([]byte, error) {
	m := &rotorv1.DecryptRequest{Key: k.ref(), Ciphertext: message, Parts: partMessages(parts)}
	out, err := k.client.admin.Keys.Decrypt(ctx, connect.NewRequest(m))
	if err != nil {
		return nil, err
	}
	return append(dst, out.Msg.GetPlaintext()...), nil
}

func partMessages(parts []Part) []*rotorv1.Part {
	var out []*rotorv1.Part
	for _, p := range parts {
		out = append(out, &rotorv1.Part{Label: p.Label, Value: p.Value})
	}
	return out
}
