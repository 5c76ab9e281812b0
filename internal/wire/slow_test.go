package wire_test

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/wire"
)

// rude is a client that does not do its part.
type rude struct {
	proto string // that is negotiated; empty: there is no TLS
	says  []byte // at first
	drips []byte // again and again, until the connection is closed
}

// preface begins a connection of HTTP/2 (RFC 9113, 3.4), with empty settings.
func preface() []byte {
	return append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), frame(4, 0, 0, nil)...)
}

// frame is one of HTTP/2 (RFC 9113, 4.1).
func frame(kind, flags byte, stream uint32, payload []byte) []byte {
	b := []byte{byte(len(payload) >> 16), byte(len(payload) >> 8), byte(len(payload)), kind, flags}
	return append(binary.BigEndian.AppendUint32(b, stream), payload...)
}

// headers is the block of a request by the static table of HPACK (RFC 7541, appendix A).
func headers(method byte, path string) []byte {
	b := append([]byte{0x80 | method, 0x87, 0x04, byte(len(path))}, path...)
	return append(b, 0x01, 1, 'x')
}

const (
	hpackGET, hpackPOST = 2, 3
	endStream, endHead  = 1, 4
)

func rudes() map[string]rude {
	post := "POST /rotor.v1.KeyService/Get HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
	return map[string]rude{
		"connects and is silent":         {},
		"half a hello":                   {says: []byte{22, 3, 1, 2, 0, 1}},
		"drips a hello":                  {says: []byte{22, 3, 1, 2, 0, 1}, drips: []byte{0}},
		"no request":                     {proto: "http/1.1"},
		"drips headers":                  {proto: "http/1.1", says: []byte("GET /healthz HTTP/1.1\r\nHost: x\r\n"), drips: []byte("A: b\r\n")},
		"drips a body":                   {proto: "http/1.1", says: []byte(post), drips: []byte("x")},
		"half a body":                    {proto: "http/1.1", says: []byte(post)},
		"keeps a connection":             {proto: "http/1.1", says: []byte("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")},
		"HTTP/2, silent":                 {proto: "h2", says: preface()},
		"HTTP/2, half the headers":       {proto: "h2", says: append(preface(), frame(1, endStream, 1, headers(hpackGET, "/healthz")[:4])...)},
		"HTTP/2, half a body":            {proto: "h2", says: append(preface(), frame(1, endHead, 1, headers(hpackPOST, "/healthz"))...)},
		"HTTP/2, keeps a connection":     {proto: "h2", says: append(preface(), frame(1, endStream|endHead, 1, headers(hpackGET, "/healthz"))...)},
		"HTTP/2, headers without an end": {proto: "h2", says: append(preface(), frame(1, endStream, 1, headers(hpackGET, "/healthz"))...), drips: frame(9, 0, 1, []byte{0x40, 1, 'a', 1, 'b'})},
	}
}

// TestSlowClients: whoever takes a connection and does not do its part loses it: before the TLS connection, in the headers, in the body, by not
// reading, by HTTP/1.1 and HTTP/2. Others do not notice.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	_, url := serveAs(t, wire.NewHastyServer, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // it fails, if the body does not come
	})
	var all sync.WaitGroup
	for name, c := range rudes() {
		all.Go(func() {
			if err := c.loses(certificate(t, 9), strings.TrimPrefix(url, "https://")); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	all.Wait()
	if got := get(t, client(t, 7), url+"/healthz"); got != http.StatusOK {
		t.Errorf("somebody else: %d", got)
	}
}

// loses does what the client does and waits until the server has closed the connection; nil: it has.
func (c rude) loses(certificate tls.Certificate, address string) error {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil { // a server that waits for ever fails the test
		return err
	}
	if c.proto != "" {
		s := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{c.proto}, Certificates: []tls.Certificate{certificate}})
		if err := s.Handshake(); err != nil {
			return err
		}
		conn = s
	}
	_, err = conn.Write(c.says)
	stop := make(chan struct{})
	defer close(stop)
	go func() { // ends with the caller
		for len(c.drips) > 0 {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
				_, _ = conn.Write(c.drips) // closed is what is waited for
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

// TestSlowReader: an answer that nobody reads ends, although the client shows signs of life.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	for _, proto := range []string{"http/1.1", "h2"} {
		ended := make(chan error, 1)
		_, url := serveAs(t, wire.NewHastyServer, func(w http.ResponseWriter, _ *http.Request) {
			var err error
			for much := make([]byte, 1<<20); err == nil; {
				_, err = w.Write(much)
			}
			ended <- err
		})
		conn, err := tls.Dial("tcp", strings.TrimPrefix(url, "https://"), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{proto}})
		if err != nil {
			t.Fatal(err)
		}
		says, alive := []byte("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"), []byte(nil)
		if proto == "h2" {
			says, alive = append(preface(), frame(1, endStream|endHead, 1, headers(hpackGET, "/healthz"))...), frame(6, 0, 0, make([]byte, 8))
		}
		if _, err := conn.Write(says); err != nil {
			t.Fatal(err)
		}
		for over := false; !over; {
			select {
			case err := <-ended:
				over = true
				if err == nil {
					t.Error(proto)
				}
			case <-time.After(20 * time.Millisecond):
				_, _ = conn.Write(alive) // it may be closed by now
			case <-t.Context().Done():
				t.Fatal(proto)
			}
		}
		conn.Close()
	}
}

// TestLargeRequests: what is too large is refused before it is read, and no more than the limit is read of what does not say its size.
func TestLargeRequests(t *testing.T) {
	t.Parallel()
	read := make(chan int64, 1)
	_, url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		read <- n
		if err != nil {
			http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
		}
	})
	body := make([]byte, 32<<20)
	for _, two := range []bool{false, true} {
		for name, c := range map[string]struct {
			serial int64
			path   string
			most   int64
		}{"a caller": {7, "/rotor.v1.KeyService/Get", wire.MaxMessage}, "a stranger": {0, "/rotor.v1.JoinService/Join", 64 << 10}} {
			for _, sized := range []bool{true, false} {
				what := fmt.Sprintf("%s, HTTP/2 %t, with its size %t", name, two, sized)
				h := client(t, c.serial)
				h.Transport.(*http.Transport).ForceAttemptHTTP2 = two
				var b io.Reader = bytes.NewReader(body)
				if !sized {
					b = io.MultiReader(b)
				}
				resp, err := h.Post(url+c.path, "application/proto", b)
				if err == nil {
					_ = resp.Body.Close()
				}
				if err == nil && resp.StatusCode != http.StatusRequestEntityTooLarge && resp.StatusCode != http.StatusBadRequest && resp.StatusCode != http.StatusTooManyRequests {
					t.Errorf("%s: %d", what, resp.StatusCode)
				}
				if !sized {
					if n := <-read; n > c.most {
						t.Errorf("%s: %d bytes were read", what, n)
					}
				}
				if len(read) > 0 {
					t.Errorf("%s: %d bytes were read", what, <-read)
				}
			}
		}
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/healthz", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X", strings.Repeat("x", 1<<20))
	if resp, err := client(t, 7).Do(r); err == nil {
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("large headers: %d", resp.StatusCode)
		}
	}
}
