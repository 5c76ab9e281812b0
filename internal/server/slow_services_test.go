//go:build services

package server_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/server"
)

// TestEveryListenerHasLimits: rotor's own listener, the operator's and that of a sealed server close connections of who does not do its part, and refuse what
// is too large. The times are those that users have; package wire tries the rest with shorter ones.
func TestEveryListenerHasLimits(t *testing.T) {
	w := newWorld(t)
	certificate, key := selfSigned(t)
	w.reconfigure(func(c *server.Config) {
		c.Public = server.Public{Listen: "127.0.0.1:0", Certificate: w.file("tls.crt", string(certificate)), Key: w.file("tls.key", string(key))}
	})
	sealed, _ := sealedWorld(t, "shamir:2/3")
	h := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}}
	defer h.CloseIdleConnections()
	var all sync.WaitGroup // 10 s each, at once
	for listener, address := range map[string]string{"own": w.Address(), "public": w.PublicAddress(), "sealed": sealed.Address()} {
		for name, c := range map[string]struct{ proto, says, drips string }{
			"no hello": {}, "drips a hello": {"", "\x16\x03\x01\x02\x00\x01", "\x00"}, "drips headers": {"http/1.1", "GET /healthz HTTP/1.1\r\nHost: x\r\n", "A: b\r\n"},
			"no preface of HTTP/2": {"h2", "", ""},
		} {
			all.Go(func() {
				if err := loses(address, c.proto, c.says, c.drips); err != nil {
					t.Errorf("%s, %s: %v", listener, name, err)
				}
			})
		}
		resp, err := h.Post("https://"+address+"/rotor.v1.SealService/Unseal", "application/proto", bytes.NewReader(make([]byte, 32<<20)))
		if err == nil {
			_ = resp.Body.Close()
		}
		if err != nil || resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("%s: 32 MiB: %v, %v", listener, resp, err)
		}
	}
	all.Wait()
	for listener, address := range map[string]string{"own": w.Address(), "public": w.PublicAddress(), "sealed": sealed.Address()} {
		if resp, err := h.Get("https://" + address + "/healthz"); err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("%s: somebody else: %v, %v", listener, resp, err)
		} else {
			_ = resp.Body.Close()
		}
	}
}

// loses says something, goes on with little, and waits until the server has closed the connection; nil: it has.
func loses(address, proto, says, drips string) error {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil { // a server that waits for ever fails the test
		return err
	}
	if proto != "" {
		s := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{proto}})
		if err := s.Handshake(); err != nil {
			return err
		}
		conn = s
	}
	_, err = io.WriteString(conn, says)
	stop, drip := make(chan struct{}), time.NewTicker(500*time.Millisecond)
	defer drip.Stop()
	defer close(stop)
	go func() { // ends with the caller
		for drips != "" {
			select {
			case <-stop:
				return
			case <-drip.C:
				_, _ = io.WriteString(conn, drips) // closed is what is waited for
			}
		}
	}()
	if err == nil {
		_, err = io.Copy(io.Discard, conn)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errors.New("it is connected still")
	}
	return nil
}
