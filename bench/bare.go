package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// bareWord makes the process the bare server: what Go's net/http takes for a stream of HTTP/2 over TLS with a client certificate, one connection
// each, and for one message on each. No server on it can take less.
const bareWord = "bare-child"

// bareServer serves /hold, a stream that is sent what /update is asked for, and /settle, which gives back all the memory that is free.
func bareServer(context.Context) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	chain, key, err := selfSigned()
	if err != nil {
		return err
	}
	conf := &tls.Config{
		MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519MLKEM768}, NextProtos: []string{"h2"}, ClientAuth: tls.RequireAnyClientCert,
		Certificates: []tls.Certificate{{Certificate: chain, PrivateKey: key}},
	}
	var mu sync.Mutex // guards all
	all := map[chan []byte]bool{}
	mux := http.NewServeMux()
	mux.HandleFunc("/hold", func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadFull(r.Body, make([]byte, 1)); err != nil {
			return
		}
		news := make(chan []byte, 1)
		mu.Lock()
		all[news] = true
		mu.Unlock()
		control := http.NewResponseController(w)
		for control.Flush() == nil {
			select {
			case b := <-news:
				_, _ = w.Write(b) // Flush tells
			case <-r.Context().Done():
				return
			}
		}
	})
	mux.HandleFunc("/update", func(w http.ResponseWriter, r *http.Request) {
		size, _ := strconv.Atoi(r.FormValue("size"))
		b := make([]byte, size)
		mu.Lock()
		defer mu.Unlock()
		for news := range all {
			news <- b
		}
	})
	mux.HandleFunc("/settle", func(http.ResponseWriter, *http.Request) {
		for range 4 { // stacks shrink by half each time
			debug.FreeOSMemory()
		}
	})
	fmt.Println("listening on", l.Addr())
	s := &http.Server{Handler: mux, TLSConfig: conf, ReadHeaderTimeout: time.Minute}
	return s.Serve(tls.NewListener(l, conf))
}

func selfSigned() ([][]byte, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	return [][]byte{der}, key, err
}

// bareCrowd is what the limit is measured on.
type bareCrowd struct {
	*process
	client *http.Client // for /update and /settle
	bodies []io.Closer
	pipes  []io.Closer
	heard  atomic.Int64 // bytes of messages
	news   chan struct{}
}

// measureBare measures the bare server with n streams and messages of a size: KB and µs for each.
func measureBare(ctx context.Context, n, size int) (memory, cpu float64, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, 0, err
	}
	b := &bareCrowd{process: &process{cmd: exec.CommandContext(ctx, self, bareWord)}, news: make(chan struct{}, 1)}
	b.cmd.Stderr = os.Stderr
	line, err := b.start()
	if err != nil {
		return 0, 0, err
	}
	defer b.close()
	_, _ = fmt.Sscanf(line, "listening on %s", &b.address)
	chain, key, err := selfSigned()
	if err != nil {
		return 0, 0, err
	}
	conf := &tls.Config{
		MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519MLKEM768}, NextProtos: []string{"h2"},
		InsecureSkipVerify: true, //nolint:gosec // it talks to its own child
		Certificates:       []tls.Certificate{{Certificate: chain, PrivateKey: key}},
	}
	b.client = &http.Client{Transport: &http.Transport{TLSClientConfig: conf.Clone(), ForceAttemptHTTP2: true}}
	idle, err := b.rest()
	if err != nil {
		return 0, 0, err
	}
	for i := range n {
		if err := b.hold(ctx, i, conf); err != nil {
			return 0, 0, err
		}
	}
	full, err := b.rest()
	if err != nil {
		return 0, 0, err
	}
	cpu, err = b.updates(ctx, n, size)
	return (full - idle) / float64(n), cpu, err
}

func (b *bareCrowd) rest() (float64, error) {
	if err := b.ask("settle"); err != nil {
		return 0, err
	}
	return b.memory("VmRSS")
}

func (b *bareCrowd) ask(what string) error {
	r, err := b.client.Get("https://" + b.address + "/" + what)
	if err != nil {
		return err
	}
	return r.Body.Close()
}

func (b *bareCrowd) hold(ctx context.Context, i int, conf *tls.Config) error {
	h := &http.Transport{TLSClientConfig: conf.Clone(), ForceAttemptHTTP2: true, DialContext: dialer(i).DialContext}
	up, w := io.Pipe()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+b.address+"/hold", up)
	if err != nil {
		return err
	}
	go func() { _, _ = w.Write([]byte{0}) }() // ends when it is read
	resp, err := h.RoundTrip(r)
	if err != nil {
		return err
	}
	b.bodies, b.pipes = append(b.bodies, resp.Body), append(b.pipes, w)
	go func() { // ends with the body, which close closes
		buf := make([]byte, 4096)
		for {
			n, err := resp.Body.Read(buf)
			if err != nil {
				return
			}
			b.heard.Add(int64(n))
			select {
			case b.news <- struct{}{}:
			default:
			}
		}
	}()
	return nil
}

// updates is the mean µs of the server for a message on each of n streams.
func (b *bareCrowd) updates(ctx context.Context, n, size int) (float64, error) {
	before, err := b.cpu()
	if err != nil {
		return 0, err
	}
	for i := range rounds {
		if err := b.ask(fmt.Sprintf("update?size=%d", size)); err != nil {
			return 0, err
		}
		for b.heard.Load() < int64((i+1)*n*size) {
			select {
			case <-b.news:
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		}
	}
	after, err := b.cpu()
	return float64((after - before).Microseconds()) / float64(n*rounds), err
}

func (b *bareCrowd) close() {
	for i := range b.bodies {
		_ = errors.Join(b.pipes[i].Close(), b.bodies[i].Close()) // it ends anyway
	}
	b.client.CloseIdleConnections()
	_ = b.cmd.Process.Kill() // it may have ended
	_ = b.cmd.Wait()
}

// dialer spreads connections over the addresses of this machine, whose ports would not be enough of one.
func dialer(i int) *net.Dialer {
	return &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+i%16))}}
}
