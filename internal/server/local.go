package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rotorkms/rotor/internal/fault"
)

// Bounds of the local socket.
const (
	maxSocketPath = 107      // bytes: what the kernel takes (unix(7), sun_path)
	maxLocal      = 64 << 10 // of a request, in bytes
	localTime     = time.Minute
)

// LocalSocket is a socket of the machine itself, for processes of the server's own user and of root: there the server says how it is, takes shares, and, once,
// makes its cluster. It stays while a server of the process starts again.
type LocalSocket struct {
	http    *http.Server
	handler atomic.Pointer[http.Handler]
	done    chan struct{}
}

// openLocal listens on a path, where a socket that nobody listens on any more may stand. fault.Unavailable.
func openLocal(ctx context.Context, path string, log *slog.Logger) (*LocalSocket, error) {
	failed := func(err error) (*LocalSocket, error) {
		return nil, fault.Wrap(fault.Unavailable, "local socket "+path, err)
	}
	if at, err := os.Lstat(path); err == nil && at.Mode().Type() == os.ModeSocket {
		var d net.Dialer
		if c, err := d.DialContext(ctx, "unix", path); err == nil {
			return failed(errors.Join(errors.New("another server listens there"), c.Close()))
		}
		if err := os.Remove(path); err != nil {
			return failed(err)
		}
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return failed(err)
	}
	if err := os.Chmod(path, 0o600); err != nil { // whoever connects before is asked for who it is, too
		return failed(errors.Join(err, l.Close()))
	}
	s := &LocalSocket{done: make(chan struct{})}
	s.http = &http.Server{
		Handler:           http.MaxBytesHandler(http.HandlerFunc(s.serve), maxLocal),
		ReadHeaderTimeout: headerTime, ReadTimeout: localTime, WriteTimeout: localTime, IdleTimeout: localTime, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	go func() { // ends with Close
		defer close(s.done)
		_ = s.http.Serve(ours{l, log}) // it says nothing that Close does not know
	}()
	return s, nil
}

const headerTime = 10 * time.Second

func (s *LocalSocket) serve(w http.ResponseWriter, r *http.Request) {
	if h := s.handler.Load(); h != nil {
		(*h).ServeHTTP(w, r)
		return
	}
	http.Error(w, "the server starts", http.StatusServiceUnavailable)
}

// answer has h answer from now on. A nil socket is none.
func (s *LocalSocket) answer(h http.Handler) {
	if s != nil {
		s.handler.Store(&h)
	}
}

// Close lets the requests in flight finish for a moment, and ends the socket.
func (s *LocalSocket) Close() error {
	if s == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), askAgain)
	defer cancel()
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = s.http.Close()
	}
	<-s.done
	return err
}

// ours is a listener that takes connections of the server's own user and of root alone.
type ours struct {
	net.Listener
	log *slog.Logger
}

// Accept implements net.Listener.
func (l ours) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		uid, err := peerUID(c)
		if err == nil && (uid == 0 || uid == os.Geteuid()) {
			return c, nil
		}
		l.log.Warn("a process of another user came to the local socket", "uid", uid, "error", err)
		_ = c.Close() // it is not talked to
	}
}

// peerUID is the user whose process connected (unix(7), SO_PEERCRED).
func peerUID(c net.Conn) (int, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return -1, fmt.Errorf("%T is no socket of this machine", c)
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return -1, err
	}
	var cred *unix.Ucred
	var got error
	if err := raw.Control(func(fd uintptr) { cred, got = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil || got != nil {
		return -1, errors.Join(err, got)
	}
	return int(cred.Uid), nil
}
