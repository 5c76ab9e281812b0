package rotor_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/rotorkms/rotor"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// dial joins an instance with a configuration of the test's.
func (c *cluster) dial(name string, config rotor.Config) (*rotor.Client, error) {
	c.t.Helper()
	out, err := c.admin.Admin().Fleet.Invite(c.t.Context(), connect.NewRequest(&rotorv1.InviteRequest{Name: name}))
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), 20*time.Second)
	defer cancel()
	config.Identity, config.JoinToken = filepath.Join(c.t.TempDir(), name), out.Msg.GetToken()
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	client, err := rotor.Dial(ctx, config)
	if err == nil {
		c.t.Cleanup(func() { _ = client.Close() })
	}
	return client, err
}

func (c *cluster) mustDial(name string, config rotor.Config) *rotor.Client {
	c.t.Helper()
	client, err := c.dial(name, config)
	if err != nil {
		c.t.Fatal(err)
	}
	return client
}

func (c *cluster) stopServer() {
	c.t.Helper()
	if err := c.Close(); err != nil {
		c.t.Fatal(err)
	}
}

// roundTrip encrypts and decrypts, and returns the first error's code.
func roundTrip(t *testing.T, k *rotor.Key) rotor.Code {
	t.Helper()
	m, err := k.Encrypt(t.Context(), []byte("x"))
	if err != nil {
		return rotor.CodeOf(err)
	}
	_, err = k.Decrypt(t.Context(), m)
	return rotor.CodeOf(err)
}

// TestServerGoneBlock: without the server a block fleet goes on, until max_stale.
func TestServerGoneBlock(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.create(&rotorv1.Key{Name: "records", Purpose: "encrypt", Custody: "fleet"})
	clock := &rotor.Clock{}
	k := c.mustDial("a", rotor.Config{Keys: []string{"records"}}.WithClock(clock)).Key("records")
	old, err := k.Encrypt(t.Context(), []byte("before"))
	if err != nil {
		t.Fatal(err)
	}
	c.stopServer()
	for _, at := range []struct {
		pass time.Duration
		want rotor.Code
	}{{0, ""}, {24 * time.Hour, ""}, {58 * time.Minute, ""}, {2 * time.Minute, "stale"}, {time.Hour, "stale"}} {
		clock.Pass(at.pass)
		if got := roundTrip(t, k); got != at.want {
			t.Errorf("%v later: %q, want %q", at.pass, got, at.want)
		}
	}
	if _, err := k.Decrypt(t.Context(), old); rotor.CodeOf(err) != "stale" {
		t.Errorf("decrypt: %v", err)
	}
}

// TestClocks: whichever clock says so ends what the process may do; none prolongs it.
func TestClocks(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.create(&rotorv1.Key{Name: "fenced", Purpose: "encrypt", Custody: "fleet", Rotation: &rotorv1.Rotation{Silence: "fence"}})
	c.create(&rotorv1.Key{Name: "blocked", Purpose: "encrypt", Custody: "fleet"})
	for i, at := range []struct {
		name       string
		boot, real time.Duration
		fence      rotor.Code // with a lease of 2 s
		block      rotor.Code // with max_stale 25 h
	}{
		{"nothing happened", 0, 0, "", ""},
		{"the lease is over", 2 * time.Second, 2 * time.Second, "lease_over", ""},
		{"time of day set forward", 0, 2 * time.Second, "lease_over", ""},
		{"time of day set back while the lease ran out", 2 * time.Second, -time.Hour, "lease_over", ""},
		{"suspended for longer than the lease", time.Minute, time.Minute, "lease_over", ""},
		{"suspended for longer than max_stale, time of day lost", 26 * time.Hour, 0, "lease_over", "stale"},
		{"time of day set forward by more than max_stale", 0, 26 * time.Hour, "lease_over", "stale"},
	} {
		t.Run(at.name, func(t *testing.T) {
			clock, gone := &rotor.Clock{}, &atomic.Bool{}
			a := c.mustDial(fmt.Sprintf("a%d", i), gate(gone, "fenced", "blocked").WithClock(clock))
			gone.Store(true)
			clock.Set(at.boot, at.real)
			if got := roundTrip(t, a.Key("fenced")); got != at.fence {
				t.Errorf("fence: %q, want %q", got, at.fence)
			}
			// In block mode the cheap clock is read against BOOTTIME at each try to reach the server.
			got := roundTrip(t, a.Key("blocked"))
			for got != at.block && got == "" {
				runtime.Gosched()
				got = roundTrip(t, a.Key("blocked"))
			}
			if got != at.block {
				t.Errorf("block: %q, want %q", got, at.block)
			}
		})
	}
}

// frames rewrites the messages of the hold stream below the SDK: a proxy that has broken TLS.
type frames struct {
	next http.RoundTripper
	up   func(*rotorv1.HoldUp) []*rotorv1.HoldUp     // nil: as they are
	down func(*rotorv1.HoldDown) []*rotorv1.HoldDown // none: the stream is cut
}

func (f *frames) RoundTrip(r *http.Request) (*http.Response, error) {
	if !strings.HasSuffix(r.URL.Path, "/Hold") {
		return f.next.RoundTrip(r)
	}
	r.Header.Del("Connect-Accept-Encoding")
	r.Header.Del("Accept-Encoding")
	if f.up != nil {
		r.Body = rewrite(r.Body, f.up)
	}
	out, err := f.next.RoundTrip(r)
	if err == nil && f.down != nil {
		out.Body = rewrite(out.Body, f.down)
	}
	return out, err
}

// rewrite passes enveloped messages (Connect protocol: flags 1 byte, length 4) through f.
func rewrite[M any, P interface {
	*M
	proto.Message
}](in io.ReadCloser, f func(P) []P) io.ReadCloser {
	out, w := io.Pipe()
	go func() {
		defer in.Close()
		var head [5]byte
		for {
			if _, err := io.ReadFull(in, head[:]); err != nil {
				_ = w.CloseWithError(err)
				return
			}
			body := make([]byte, binary.BigEndian.Uint32(head[1:]))
			if _, err := io.ReadFull(in, body); err != nil {
				_ = w.CloseWithError(err)
				return
			}
			if head[0] != 0 { // the end of the stream, or compressed
				_, _ = w.Write(append(head[:], body...))
				continue
			}
			m := P(new(M))
			if err := proto.Unmarshal(body, m); err != nil {
				_ = w.CloseWithError(err)
				return
			}
			send := f(m)
			if send == nil {
				_ = w.CloseWithError(io.ErrUnexpectedEOF)
				return
			}
			for _, m := range send {
				b, _ := proto.Marshal(m)
				head := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b)))
				if _, err := w.Write(append(head, b...)); err != nil {
					return
				}
			}
		}
	}()
	return struct {
		io.Reader
		io.Closer
	}{out, out}
}

func proxy(up func(*rotorv1.HoldUp) []*rotorv1.HoldUp, down func(*rotorv1.HoldDown) []*rotorv1.HoldDown) rotor.Config {
	return rotor.Config{Keys: []string{"records"}}.WithTransport(func(next http.RoundTripper) http.RoundTripper {
		return &frames{next, up, down}
	})
}

// gate is a network that is gone once a test says so.
func gate(gone *atomic.Bool, keys ...string) rotor.Config {
	return rotor.Config{Keys: keys}.WithTransport(func(next http.RoundTripper) http.RoundTripper {
		return &frames{next, func(m *rotorv1.HoldUp) []*rotorv1.HoldUp {
			if gone.Load() {
				return nil
			}
			return []*rotorv1.HoldUp{m}
		}, func(m *rotorv1.HoldDown) []*rotorv1.HoldDown {
			if gone.Load() {
				return nil
			}
			return []*rotorv1.HoldDown{m}
		}}
	})
}

// journal is a log that a test reads.
type journal struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) has(s string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Contains(j.b.String(), s)
}

// TestProxySwapsDeliveryKey: material can only be sealed to the key that the certificate's key has signed.
func TestProxySwapsDeliveryKey(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.create(&rotorv1.Key{Name: "records", Purpose: "encrypt", Custody: "fleet"})
	swaps := map[string]func(*rotorv1.Hello){
		"delivery key": func(h *rotorv1.Hello) { h.HpkePublic[40] ^= 1 },
		"incarnation":  func(h *rotorv1.Hello) { h.Incarnation[0] ^= 1 },
		"session":      func(h *rotorv1.Hello) { h.Session[0] ^= 1 },
		"signature":    func(h *rotorv1.Hello) { h.Signature[10] ^= 1 },
	}
	n := 0
	for name, swap := range swaps {
		up := func(m *rotorv1.HoldUp) []*rotorv1.HoldUp {
			if h := m.GetHello(); h != nil {
				swap(h)
			}
			return []*rotorv1.HoldUp{m}
		}
		n++
		if _, err := c.dial(fmt.Sprintf("a%d", n), proxy(up, nil)); rotor.CodeOf(err) != "unauthenticated" {
			t.Errorf("%s swapped: %v", name, err)
		}
	}
}

// TestProxyReplays: an older snapshot after a newer one changes nothing.
func TestProxyReplays(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.create(&rotorv1.Key{Name: "records", Purpose: "encrypt", Custody: "fleet"})
	var seen []*rotorv1.HoldDown
	replay := func(m *rotorv1.HoldDown) []*rotorv1.HoldDown {
		if m.GetParcel() == nil {
			return []*rotorv1.HoldDown{m}
		}
		seen = append(seen, m)
		out := []*rotorv1.HoldDown{m}
		return append(out, seen...)
	}
	var j journal
	config := proxy(nil, replay)
	config.Log = slog.New(slog.NewTextHandler(&j, nil))
	a := c.mustDial("a", config)
	for range 3 {
		k := c.rotate("records")
		if n, _ := a.Key("records").Version(); n != k.GetPrimary() {
			t.Errorf("version %d, want %d", n, k.GetPrimary())
		}
	}
	if !j.has("snapshot_refused") {
		t.Error("nothing was reported")
	}
}

// TestUnknownVersion: one question to the server for all who ask at the same time; then a typed error, and no question for a while.
func TestUnknownVersion(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.create(&rotorv1.Key{Name: "records", Purpose: "encrypt", Custody: "fleet"})
	var asked atomic.Int32
	clock := &rotor.Clock{}
	a := c.mustDial("a", proxy(func(m *rotorv1.HoldUp) []*rotorv1.HoldUp {
		if len(m.GetKeys()) > 0 {
			asked.Add(1)
		}
		return []*rotorv1.HoldUp{m}
	}, nil).WithClock(clock))
	k := a.Key("records")
	m, err := k.Encrypt(t.Context(), []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	m[1] ^= 0xff // the handle
	decrypt := func(m []byte) rotor.Code {
		_, err := k.Decrypt(t.Context(), m)
		return rotor.CodeOf(err)
	}
	before := asked.Load()
	for range 3 {
		if got := decrypt(m); got != "unknown_version" {
			t.Fatal(got)
		}
	}
	if n := asked.Load() - before; n != 1 {
		t.Errorf("asked %d times, want once", n)
	}
	clock.Pass(rotor.UnknownFor)
	if got := decrypt(m); got != "unknown_version" || asked.Load()-before != 2 {
		t.Errorf("%s, asked %d times after the memory ended", got, asked.Load()-before)
	}
	var all sync.WaitGroup
	before = asked.Load()
	for i := range 2 * rotor.MaxUnknown {
		all.Go(func() {
			garbage := bytes.Clone(m)
			binary.BigEndian.PutUint32(garbage[1:], uint32(i))
			if got := decrypt(garbage); got != "unknown_version" {
				t.Error(got)
			}
		})
	}
	all.Wait()
	if n := asked.Load() - before; n > rotor.MaxUnknown/2 {
		t.Errorf("%d questions for %d at the same time", n, 2*rotor.MaxUnknown)
	}
	c.stopServer()
	clock.Pass(rotor.UnknownFor)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := k.Decrypt(ctx, m); rotor.CodeOf(err) != "unavailable" {
		t.Errorf("the server cannot be asked: %v", err)
	}
	if got := roundTrip(t, k); got != "" {
		t.Errorf("local operations without the server: %s", got)
	}
}

// TestCompromise: a compromised primary is replaced at once, though a member is silent; whoever meets the new version first fetches it.
func TestCompromise(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.create(&rotorv1.Key{Name: "records", Purpose: "encrypt", Custody: "fleet"})
	var hold atomic.Bool
	late := c.mustDial("late", proxy(nil, func(m *rotorv1.HoldDown) []*rotorv1.HoldDown {
		if hold.Load() && m.GetParcel() != nil {
			return []*rotorv1.HoldDown{}
		}
		return []*rotorv1.HoldDown{m}
	}))
	a := c.join("a", "records")
	hold.Store(true)
	ref := &rotorv1.KeyRef{Name: "records"}
	if _, err := c.admin.Admin().Keys.Change(t.Context(), connect.NewRequest(&rotorv1.ChangeRequest{Key: ref, Version: 1, Event: "compromise", Reason: "test"})); err != nil {
		t.Fatal(err)
	}
	for n, _ := a.Key("records").Version(); n != 2; n, _ = a.Key("records").Version() {
		runtime.Gosched()
	}
	m, err := a.Key("records").Encrypt(t.Context(), []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	hold.Store(false)
	if _, err := late.Key("records").Decrypt(t.Context(), m); err != nil {
		t.Errorf("fetch on a miss: %v", err)
	}
}

// TestRemoved: an instance that was removed stops at once, though its key is in block mode.
func TestRemoved(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.create(&rotorv1.Key{Name: "records", Purpose: "encrypt", Custody: "fleet"})
	a := c.join("a", "records")
	if _, err := c.admin.Admin().Fleet.Remove(t.Context(), connect.NewRequest(&rotorv1.RemoveRequest{Name: "a"})); err != nil {
		t.Fatal(err)
	}
	for roundTrip(t, a.Key("records")) == "" {
		runtime.Gosched()
	}
	if got := roundTrip(t, a.Key("records")); got != "denied" {
		t.Error(got)
	}
}

// TestClose: operations that race with Close end with a result or an error, never under bytes that are being overwritten.
func TestClose(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.create(&rotorv1.Key{Name: "records", Purpose: "encrypt", Custody: "fleet"})
	b := c.join("b", "records")
	a := c.mustDial("a", rotor.Config{Keys: []string{"records"}})
	var all sync.WaitGroup
	var mu sync.Mutex
	var made [][]byte
	for range 4 {
		all.Go(func() {
			for {
				m, err := a.Key("records").Encrypt(t.Context(), []byte("x"))
				if err != nil {
					if rotor.CodeOf(err) != "unavailable" {
						t.Error(err)
					}
					return
				}
				mu.Lock()
				made = append(made, m)
				mu.Unlock()
			}
		})
	}
	c.rotate("records")
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	all.Wait()
	for _, m := range made {
		if _, err := b.Key("records").Decrypt(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	c.rotate("records") // a left: nobody waits for it
}
