package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	rotor "github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/internal/delivery"
	"github.com/rotorkms/rotor/internal/identity"
	"github.com/rotorkms/rotor/internal/rpc"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// crowd is many instances. They share one private key, which saves this process time; the server does not notice.
type crowd struct {
	server *process
	admin  *rotor.Client
	first  *identity.Dir // an identity that pins the server
	key    *ecdsa.PrivateKey
	public []byte        // HPKE
	base   float64       // KB of the server before
	began  time.Duration // of its connections
	all    []*watcher
	parcel atomic.Int64  // bytes of the last one
	dir    string        // of profiles; empty: none are taken
	news   chan struct{} // something arrived; a hint
}

type watcher struct {
	crowd       *crowd
	name        string
	chain       [][]byte
	incarnation []byte // of the process, whatever becomes of its streams
	number      int
	stop        func()
	ended       chan struct{}
	why         error                     // read after ended
	seen        [2 * rounds]atomic.Uint64 // epoch of each watched key + 1
}

func newCrowd(ctx context.Context, s *process, o options) (*crowd, error) {
	c := &crowd{server: s, news: make(chan struct{}, 1), dir: o.profiles}
	var err error
	if c.admin, err = rotor.Dial(ctx, rotor.Config{Identity: filepath.Join(s.dir, "admin"), Address: s.address}); err != nil {
		return nil, err
	}
	for _, name := range watched {
		k := &rotorv1.Key{Name: name, Purpose: "sign", Custody: "server"}
		if strings.HasPrefix(name, "material") {
			k.Purpose, k.Custody = "encrypt", "fleet"
		}
		if _, err := c.admin.Admin().Keys.Create(ctx, connect.NewRequest(&rotorv1.CreateRequest{Key: k})); err != nil {
			return nil, err
		}
	}
	if c.first, err = identity.Read(filepath.Join(s.dir, "admin")); err != nil {
		return nil, err
	}
	if c.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	private, err := delivery.NewPrivate()
	if err != nil {
		return nil, err
	}
	c.public = private.Public()
	if err := c.join(ctx, o.watchers); err != nil {
		return nil, err
	}
	if c.base, err = s.settled(ctx); err != nil {
		return nil, err
	}
	if err := c.profile("alone", "heap?gc=1", "heap?gc=1&debug=1"); err != nil {
		return nil, err
	}
	start := time.Now()
	err = c.connect(ctx, c.all)
	c.began = time.Since(start)
	return c, err
}

// each calls f for watchers, some at a time: strangers at one address have a limit.
func each(ctx context.Context, all []*watcher, at int, f func(context.Context, *watcher) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(at)
	for _, w := range all {
		g.Go(func() error { return f(ctx, w) })
	}
	return g.Wait()
}

func (c *crowd) join(ctx context.Context, n int) error {
	for i := range n {
		c.all = append(c.all, &watcher{crowd: c, name: fmt.Sprintf("w%05d", i), number: i, incarnation: nonce()})
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, c.key)
	if err != nil {
		return err
	}
	invited, err := c.admin.Admin().Fleet.Invite(ctx, connect.NewRequest(&rotorv1.InviteRequest{Name: "probe"}))
	if err != nil {
		return err
	}
	t, err := identity.ParseJoinToken(invited.Msg.GetToken())
	if err != nil {
		return err
	}
	h := identity.JoinClient(t)
	defer h.CloseIdleConnections()
	joins := rotorv1.NewJoinServiceClient(h, "https://"+c.server.address)
	return each(ctx, c.all, 32, func(ctx context.Context, w *watcher) error {
		invited, err := c.admin.Admin().Fleet.Invite(ctx, connect.NewRequest(&rotorv1.InviteRequest{Name: w.name}))
		if err != nil {
			return fmt.Errorf("invite %s: %w", w.name, err)
		}
		out, err := joins.Join(ctx, connect.NewRequest(&rotorv1.JoinRequest{Token: invited.Msg.GetToken(), Csr: csr}))
		if err != nil {
			return fmt.Errorf("join %s: %w", w.name, err)
		}
		w.chain = out.Msg.GetChain()
		return nil
	})
}

// connect opens a stream for each and waits until every one has every key.
func (c *crowd) connect(ctx context.Context, some []*watcher) error {
	if err := each(ctx, some, 256, func(_ context.Context, w *watcher) error { return w.open(ctx) }); err != nil {
		return err
	}
	for i := range watched {
		if err := c.await(ctx, some, i, 1); err != nil {
			return err
		}
	}
	return nil
}

// await waits until all of some have a key at an epoch.
func (c *crowd) await(ctx context.Context, some []*watcher, key int, epoch uint64) error {
	for _, w := range some {
		for w.seen[key].Load() < epoch {
			select {
			case <-c.news:
			case <-w.ended:
				return fmt.Errorf("the stream of %s ended: %w", w.name, w.why)
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return nil
}

// profile takes profiles of the server, if a directory for them is named.
func (c *crowd) profile(when string, what ...string) error {
	if c.dir == "" {
		return nil
	}
	for _, name := range what {
		r, err := c.first.HTTPClient().Get("https://" + c.server.address + "/debug/pprof/" + name)
		if err != nil {
			return err
		}
		b, err := io.ReadAll(r.Body)
		if err := errors.Join(err, r.Body.Close()); err != nil {
			return err
		}
		path := filepath.Join(c.dir, when+"-"+strings.NewReplacer("?", "-", "=", "", "&", "-").Replace(name))
		if err := os.WriteFile(path, b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (c *crowd) close() {
	for _, w := range c.all {
		if w.stop != nil {
			w.stop()
		}
	}
	_ = c.admin.Close() // only asked
}

// open starts a stream on a connection of its own.
func (w *watcher) open(ctx context.Context) error {
	c := w.crowd
	conf := c.first.ClientTLS(func(id string) bool { return id == c.first.ServerID() })
	conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &tls.Certificate{Certificate: w.chain, PrivateKey: c.key}, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	conn, err := dialer(w.number).DialContext(ctx, "tcp", c.server.address)
	if err != nil {
		cancel()
		return err
	}
	w.stop = func() { // as when the machine goes away: without a farewell
		_ = conn.Close()
		cancel()
	}
	h := &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true, DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}
	w.ended = make(chan struct{})
	for i := range w.seen {
		w.seen[i].Store(0)
	}
	stream := rotorv1.NewFleetServiceClient(&http.Client{Transport: h}, "https://"+c.server.address, connect.WithGRPC()).Hold(ctx)
	a := delivery.Address{Cluster: c.first.Cluster(), Instance: w.name, Incarnation: w.incarnation, Session: nonce()}
	sum := sha256.Sum256(delivery.HelloInput(a, c.public))
	signature, err := c.key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		return err
	}
	hello := &rotorv1.Hello{Incarnation: a.Incarnation, Session: a.Session, HpkePublic: c.public, Signature: signature}
	if err := stream.Send(&rotorv1.HoldUp{Hello: hello}); err != nil {
		return err
	}
	if err := stream.Send(&rotorv1.HoldUp{Keys: watched[:], Beat: 1}); err != nil {
		return err
	}
	go w.listen(stream, h) // ends with the stream, which stop ends
	return nil
}

func nonce() []byte {
	b := make([]byte, delivery.NonceSize)
	rand.Read(b)
	return b
}

func (w *watcher) listen(stream *connect.BidiStreamForClient[rotorv1.HoldUp, rotorv1.HoldDown], h *http.Transport) {
	defer close(w.ended)
	defer h.CloseIdleConnections()
	for {
		m, err := stream.Receive()
		if err != nil {
			w.why = err
			return
		}
		if r := m.GetRefusal(); r != nil {
			w.why = rpc.Parse(r.GetFault())
			return
		}
		if m.GetParcel() == nil {
			continue
		}
		w.crowd.parcel.Store(int64(proto.Size(m)))
		var b delivery.Body
		if json.Unmarshal(m.GetParcel().GetBody(), &b) != nil {
			return
		}
		for i, name := range watched {
			if name == b.Snapshot.Name {
				w.seen[i].Store(b.Snapshot.Epoch.Counter + 1)
			}
		}
		select {
		case w.crowd.news <- struct{}{}:
		default:
		}
	}
}
