package wire_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/rotorkms/rotor/internal/wire"
)

// TestSilentConnections: who connects and says nothing is counted, holds up nobody, and is let go when the server stops.
func TestSilentConnections(t *testing.T) {
	t.Parallel()
	const silent = 50
	s, url := serve(t, func(http.ResponseWriter, *http.Request) {})
	var all []net.Conn
	for range silent {
		c, err := net.Dial("tcp", strings.TrimPrefix(url, "https://"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		all = append(all, c)
	}
	resp, err := client(t, 7).Get(url)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if n := s.Load().Connections; n != silent+1 { // they were accepted in their order
		t.Errorf("%d connections", n)
	}
	s.Shutdown(context.Background())
	for _, c := range all {
		if n, err := io.Copy(io.Discard, c); n > 0 {
			t.Errorf("it was sent %d bytes, %v", n, err)
		}
	}
	if n := s.Load().Connections; n != 0 {
		t.Errorf("%d connections after the end", n)
	}
}

// TestPlain: who forgot the s of https is told so; nothing of the request is served, and other bytes get no answer.
func TestPlain(t *testing.T) {
	s, url := serve(t, func(http.ResponseWriter, *http.Request) { t.Error("it was served") })
	resp, err := http.Post(strings.Replace(url, "https", "http", 1)+"/v1/sys/health", "", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusBadRequest || !strings.Contains(string(text), "begins with https://") {
		t.Errorf("%s %q, %v", resp.Status, text, err)
	}
	c, err := net.Dial("tcp", strings.TrimPrefix(url, "https://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, "EHLO client.example\r\n")
	if text, _ := io.ReadAll(c); strings.Contains(string(text), "HTTP") {
		t.Errorf("%q", text)
	}
	s.Shutdown(context.Background())
	if n := s.Load().Connections; n != 0 {
		t.Errorf("%d connections are left", n)
	}
}

// TestAside: a panic is one of the caller's.
func TestAside(t *testing.T) {
	t.Parallel()
	ran := false
	wire.Aside(func() { ran = true })
	defer func() {
		if r := recover(); r != "a mistake" || !ran {
			t.Errorf("%v, %v", r, ran)
		}
	}()
	wire.Aside(func() { panic("a mistake") })
}
