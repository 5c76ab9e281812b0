package cli_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/examples/fleet/board"
)

// startBoard TOKENFILE N joins as the instance of the join token, which holds the key records, and serves a board with N records of it
// until the script ends. BOARD is its URL.
func startBoard(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	client, err := rotor.Dial(ctx, rotor.Config{
		Identity: ts.MkAbs("board"), JoinToken: strings.TrimSpace(ts.ReadFile(args[0])), Keys: []string{"records"}, Log: slog.New(slog.DiscardHandler),
	})
	ts.Check(err)
	ts.Defer(func() { ts.Check(client.Close()) })
	b, err := board.Open(ts.MkAbs("board.db"))
	ts.Check(err)
	ts.Defer(func() { ts.Check(b.Close()) })
	for i := range n {
		id := fmt.Sprintf("r%d", i)
		m, err := client.Key("records").Encrypt(ctx, []byte("record "+id), board.Parts(id)...)
		ts.Check(err)
		_, err = b.Put(id, 0, m)
		ts.Check(err)
	}
	ts.Setenv("BOARD", "https://"+serveBoard(ts, client, b)+"/rotor-dataset/v1")
}

func serveBoard(ts *testscript.TestScript, client *rotor.Client, b *board.Board) (address string) {
	l, err := tls.Listen("tcp", "127.0.0.1:0", client.ServerTLS(nil))
	ts.Check(err)
	const server = "rotor server"
	peer := func(r *http.Request) string {
		name, isServer, ok := client.PeerName(r.TLS)
		switch {
		case !ok:
			return ""
		case isServer:
			return server
		}
		return name
	}
	s := &http.Server{Handler: b.Handler(peer, server), ReadHeaderTimeout: 5 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }() // ends with Close, below
	ts.Defer(func() {
		ts.Check(s.Close())
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			ts.Fatalf("board: %v", err)
		}
	})
	return l.Addr().String()
}
