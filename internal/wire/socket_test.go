package wire_test

import (
	"crypto/tls"
	"io"
	"net"
	"testing"

	"github.com/rotorkms/rotor/internal/wire"
)

// listen opens a listener of its own for the test.
func listen(t *testing.T, c *tls.Config) net.Listener {
	t.Helper()
	s, err := wire.Bind(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s.Listen(c)
}

// TestSocket: who connects while nobody accepts is served by the next listener, and the one before hears that it is closed.
func TestSocket(t *testing.T) {
	t.Parallel()
	s, err := wire.Bind(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	for range 50 {
		first := s.Listen(&tls.Config{MinVersion: tls.VersionTLS13})
		go func() {
			_, err := first.Accept()
			ended <- err
		}()
		if err := first.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err == nil {
			t.Fatal("a closed listener accepts")
		}
		c, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		second := s.Listen(&tls.Config{MinVersion: tls.VersionTLS13})
		accepted, err := second.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if err := accepted.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); err != io.EOF { //nolint:errorlint // net.Conn returns it bare
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if c, err := net.Dial("tcp", s.Addr().String()); err == nil {
		c.Close()
		t.Error("a closed socket takes connections")
	}
}
