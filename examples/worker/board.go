package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/examples/fleet/board"
)

// records is how many records a new board begins with.
const records = 20

// server is what a board calls the rotor server; no instance can have this name.
const server = "rotor server"

// served is a board that answers.
type served struct {
	board *board.Board
	http  *http.Server
	done  chan struct{}
}

// openBoard opens a board, fills a new one, and serves it to the fleet: records to every instance, the data-set protocol to the rotor
// server alone.
func openBoard(ctx context.Context, client *rotor.Client, file, listen string) (*served, error) {
	b, err := board.Open(file)
	if err != nil {
		return nil, err
	}
	if err := fill(ctx, client.Key("records"), b); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	l, err := tls.Listen("tcp", listen, client.ServerTLS(nil))
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	peer := func(r *http.Request) string {
		name, isServer, ok := client.PeerName(r.TLS)
		if ok && isServer {
			return server
		}
		return name
	}
	s := &served{b, &http.Server{
		Handler: b.Handler(peer, server), ReadHeaderTimeout: 5 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0),
	}, make(chan struct{})}
	go func() { // ends with close
		defer close(s.done)
		if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			fmt.Println("board:", err)
		}
	}()
	fmt.Printf("%s serves %d records at %s\n", client.Instance(), records, l.Addr())
	return s, nil
}

// fill writes the first records, each bound to its name, and leaves those alone that are there.
func fill(ctx context.Context, key *rotor.Key, b *board.Board) error {
	for n := range records {
		id := fmt.Sprintf("record-%d", n)
		message, err := key.Encrypt(ctx, []byte("content of "+id), board.Parts(id)...)
		if err != nil {
			return err
		}
		if _, err := b.Put(id, 0, message); err != nil && !errors.Is(err, board.ErrCondition) {
			return err
		}
	}
	return nil
}

func (s *served) close() {
	_ = s.http.Close() // who still waits is gone
	<-s.done
	_ = s.board.Close()
}
