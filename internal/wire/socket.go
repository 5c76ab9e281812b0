package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
)

// Socket is a TCP socket on which one listener after another accepts, such as that of a sealed server and that of the open one. Who connects between two of
// them waits in the kernel's queue, and is not refused.
type Socket struct {
	tcp *net.TCPListener

	mu   sync.Mutex // guards last
	last *lent
	ends sync.Once
}

// Bind opens a socket. fault.Unavailable.
func Bind(ctx context.Context, address string) (*Socket, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, "listen on "+address, err)
	}
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		return nil, errors.Join(fault.New(fault.Internal, "listener"), l.Close())
	}
	return &Socket{tcp: tcp}, nil
}

// Addr is where it listens.
func (s *Socket) Addr() net.Addr { return s.tcp.Addr() }

// Listen is the next listener, for TLS. The one before it has to be closed. Close of it leaves the socket open.
func (s *Socket) Listen(c *tls.Config) net.Listener {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last != nil {
		_ = s.last.Close()      // it never fails
		s.last.accepting.Lock() // nobody waits in it any more
		defer s.last.accepting.Unlock()
	}
	_ = s.tcp.SetDeadline(time.Time{}) // an error shows at the next Accept
	s.last = &lent{TCPListener: s.tcp, closed: make(chan struct{})}
	return tls.NewListener(s.last, c)
}

// Close closes the socket, and the listener that accepts on it. A nil socket is closed.
func (s *Socket) Close() (err error) {
	if s == nil {
		return nil
	}
	s.ends.Do(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.last != nil {
			_ = s.last.Close() // it never fails
		}
		err = s.tcp.Close()
	})
	return err
}

// lent is a listener on a socket that outlives it.
type lent struct {
	*net.TCPListener
	accepting sync.Mutex // held while Accept waits
	once      sync.Once
	closed    chan struct{}
}

// Accept implements net.Listener.
func (l *lent) Accept() (net.Conn, error) {
	l.accepting.Lock()
	defer l.accepting.Unlock()
	select {
	case <-l.closed:
		return nil, net.ErrClosed
	default:
	}
	c, err := l.TCPListener.Accept()
	if err == nil {
		return c, nil
	}
	select {
	case <-l.closed:
		return nil, net.ErrClosed
	default:
		return nil, err
	}
}

// Close implements net.Listener: the Accept that waits returns, as by a deadline that has passed.
func (l *lent) Close() error {
	l.once.Do(func() {
		close(l.closed)
		_ = l.SetDeadline(time.Unix(1, 0)) // every TCP listener has deadlines
	})
	return nil
}
