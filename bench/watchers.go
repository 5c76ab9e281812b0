package main

import (
	"bufio"
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
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	rotor "github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/internal/delivery"
	"github.com/rotorkms/rotor/internal/identity"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// Bars of many connections: seconds until all have an update, KB and µs of the server for each, seconds until all are served again.
const (
	barUpdate    = 2.0
	barMemory    = 60.0
	barCPU       = 50.0
	barReconnect = 30.0
	barStorm     = 2.0
)

const crowdRules = `version: 1
rules:
  - {name: administrators, callers: ["admin/*"], actions: ["*"], keys: {namespace: "**", names: ["**"]}}
  - {name: watchers, callers: ["spiffe://rotor.local/instance/*"], actions: [deliver, verify], keys: {namespace: default, names: ["*"]}}
`

// watched are the keys that every watcher holds: each is updated once. The last one's material is sealed to each process.
var watched = []string{"public-1", "public-2", "public-3", "material"}

// watchers measures a server of its own with many instances on it, each with its own TLS connection.
func watchers(ctx context.Context, o options) ([]Row, error) {
	if o.rotor == "" {
		return nil, nil
	}
	if err := raiseFiles(o.watchers); err != nil {
		return nil, err
	}
	s, err := startServer(ctx, o)
	if err != nil {
		return nil, err
	}
	defer s.stop()
	c, err := newCrowd(ctx, s, o)
	if err != nil {
		return nil, err
	}
	defer c.close()
	return c.measure(ctx)
}

// raiseFiles lets this process and the server that it starts have a connection for each watcher.
func raiseFiles(n int) error {
	want := uint64(n + 1000)
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil || l.Cur >= want {
		return err
	}
	return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: want, Max: max(l.Max, want)})
}

// kms is a server in a process of its own.
type kms struct {
	dir, address string
	cmd          *exec.Cmd
}

func startServer(ctx context.Context, o options) (*kms, error) {
	s := &kms{dir: filepath.Join(o.dir, "crowd")}
	flags := []string{"--dir", s.dir, "--listen", "127.0.0.1:0", "--rules", filepath.Join(o.dir, "crowd.yaml")}
	if err := os.WriteFile(filepath.Join(o.dir, "crowd.yaml"), []byte(crowdRules), 0o600); err != nil {
		return nil, err
	}
	if out, err := exec.CommandContext(ctx, o.rotor, append([]string{"server", "init", "--local-admin"}, flags...)...).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("init a server: %w: %s", err, out)
	}
	s.cmd = exec.CommandContext(ctx, o.rotor, append([]string{"server", "run", "--lease-ttl", "1h"}, flags...)...)
	log, err := os.Create(filepath.Join(o.dir, "crowd.log"))
	if err != nil {
		return nil, err
	}
	s.cmd.Stderr = log
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("start a server: %w", err)
	}
	s.address = strings.TrimSpace(strings.TrimPrefix(line, "listening on "))
	return s, nil
}

func (s *kms) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	_ = s.cmd.Wait()                          // how is nobody's question
}

// cpu is the time that the server has computed (proc_pid_stat(5), in 10 ms).
func (s *kms) cpu() (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	user, err := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond, errors.Join(err, err2)
}

// memory is a line of the server's /proc/PID/status, in KB of 1000 bytes.
func (s *kms) memory(line string) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for l := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(l, line+":"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
			return kib * 1.024, err
		}
	}
	return 0, errors.New("the kernel does not tell " + line)
}

// forgetPeak makes VmHWM begin anew (proc_pid_clear_refs(5)).
func (s *kms) forgetPeak() error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", s.cmd.Process.Pid), []byte("5"), 0o600)
}

// crowd is many instances. They share one private key, which saves this process time; the server does not notice.
type crowd struct {
	server *kms
	admin  *rotor.Client
	first  *identity.Dir // an identity that pins the server
	key    *ecdsa.PrivateKey
	public []byte  // HPKE
	base   float64 // KB of the server before
	all    []*watcher
	news   chan struct{} // something arrived; a hint
}

type watcher struct {
	crowd *crowd
	name  string
	chain [][]byte
	stop  func()
	ended chan struct{}
	seen  [4]atomic.Uint64 // epoch of each watched key + 1
}

func newCrowd(ctx context.Context, s *kms, o options) (*crowd, error) {
	c := &crowd{server: s, news: make(chan struct{}, 1)}
	var err error
	if c.admin, err = rotor.Dial(ctx, rotor.Config{Identity: filepath.Join(s.dir, "admin"), Address: s.address}); err != nil {
		return nil, err
	}
	for _, name := range watched {
		k := &rotorv1.Key{Name: name, Purpose: "sign", Custody: "server"}
		if name == "material" {
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
	if c.base, err = s.memory("VmRSS"); err != nil {
		return nil, err
	}
	return c, c.connect(ctx, c.all)
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
		c.all = append(c.all, &watcher{crowd: c, name: fmt.Sprintf("w%05d", i)})
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
				return fmt.Errorf("the stream of %s ended", w.name)
			case <-ctx.Done():
				return ctx.Err()
			}
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
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", c.server.address)
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
	a := delivery.Address{Cluster: c.first.Cluster(), Instance: w.name, Incarnation: make([]byte, 16), Session: make([]byte, 16)}
	rand.Read(a.Incarnation)
	rand.Read(a.Session)
	sum := sha256.Sum256(delivery.HelloInput(a, c.public))
	signature, err := c.key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		return err
	}
	hello := &rotorv1.Hello{Incarnation: a.Incarnation, Session: a.Session, HpkePublic: c.public, Signature: signature}
	if err := stream.Send(&rotorv1.HoldUp{Hello: hello}); err != nil {
		return err
	}
	if err := stream.Send(&rotorv1.HoldUp{Keys: watched, Beat: 1}); err != nil {
		return err
	}
	go w.listen(stream, h) // ends with the stream, which stop ends
	return nil
}

func (w *watcher) listen(stream *connect.BidiStreamForClient[rotorv1.HoldUp, rotorv1.HoldDown], h *http.Transport) {
	defer close(w.ended)
	defer h.CloseIdleConnections()
	for {
		m, err := stream.Receive()
		if err != nil {
			return
		}
		if m.GetRefusal() != nil {
			return
		}
		if m.GetParcel() == nil {
			continue
		}
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

func (c *crowd) measure(ctx context.Context) ([]Row, error) {
	n := float64(len(c.all))
	idle, err := c.server.memory("VmRSS")
	if err != nil {
		return nil, err
	}
	took, cpu, err := c.updates(ctx, 0, 3)
	if err != nil {
		return nil, err
	}
	sealedTook, sealedCPU, err := c.updates(ctx, 3, 4)
	if err != nil {
		return nil, err
	}
	name := func(what string) string { return fmt.Sprintf("%s_%d_watchers", what, len(c.all)) }
	rows := []Row{
		atMost(name("update"), took, "s", barUpdate),
		atMost(name("update_cpu"), cpu, "us", barCPU),
		atMost(name("memory"), (idle-c.base)/n, "KB", barMemory),
		atMost(name("sealed_update"), sealedTook, "s", barUpdate),
		atMost(name("sealed_update_cpu"), sealedCPU, "us", barCPU),
	}
	storm, err := c.storm(ctx)
	return append(rows, storm...), err
}

// updates changes keys one after the other and returns the best time, in seconds, until every watcher has heard, and the best µs of the
// server for each.
func (c *crowd) updates(ctx context.Context, from, to int) (took, cpu float64, err error) {
	for key := from; key < to; key++ {
		before, err := c.server.cpu()
		if err != nil {
			return 0, 0, err
		}
		epoch := c.all[0].seen[key].Load()
		start := time.Now()
		if _, err := c.admin.Admin().Keys.Rotate(ctx, connect.NewRequest(&rotorv1.RotateRequest{Key: &rotorv1.KeyRef{Name: watched[key]}})); err != nil {
			return 0, 0, err
		}
		if err := c.await(ctx, c.all, key, epoch+1); err != nil {
			return 0, 0, err
		}
		t := time.Since(start).Seconds()
		after, err := c.server.cpu()
		if err != nil {
			return 0, 0, err
		}
		used := float64((after - before).Microseconds()) / float64(len(c.all))
		if key == from || t < took {
			took = t
		}
		if key == from || used < cpu {
			cpu = used
		}
	}
	return took, cpu, nil
}

// storm ends half of the streams and opens them again at once.
func (c *crowd) storm(ctx context.Context) ([]Row, error) {
	some := c.all[:len(c.all)/2]
	for _, w := range some {
		w.stop()
	}
	for _, w := range some {
		<-w.ended
	}
	if err := c.server.forgetPeak(); err != nil {
		return nil, err
	}
	idle, err := c.server.memory("VmRSS")
	if err != nil {
		return nil, err
	}
	start := time.Now()
	if err := c.connect(ctx, some); err != nil {
		return nil, err
	}
	took := time.Since(start).Seconds()
	peak, err := c.server.memory("VmHWM")
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("reconnect_%d", len(some))
	return []Row{
		atMost(name, took, "s", barReconnect),
		{name + "_memory", peak / 1000, "MB", "idle", peak / idle, fmt.Sprintf("<= %g", barStorm), peak <= barStorm*idle, 0},
	}, nil
}
