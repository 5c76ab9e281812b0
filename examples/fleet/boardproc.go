package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/examples/fleet/board"
)

// boardCommand serves the board: instances write and read records, the rotor server counts and re-encrypts them.
func boardCommand(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("board", flag.ContinueOnError)
	work := f.String("work", "", "directory of the demo")
	if err := f.Parse(args); err != nil {
		return err
	}
	token, err := os.ReadFile(filepath.Join(*work, "tokens", "board"))
	if err != nil {
		return err
	}
	client, err := rotor.Dial(ctx, rotor.Config{Identity: filepath.Join(*work, "identities", "board"), JoinToken: string(token)})
	if err != nil {
		return fmt.Errorf("join: %w", err)
	}
	b, err := board.Open(filepath.Join(*work, "board.db"))
	if err != nil {
		return errors.Join(err, client.Close())
	}
	return errors.Join(serveBoard(ctx, client, b), b.Close(), client.Close())
}

func serveBoard(ctx context.Context, client *rotor.Client, b *board.Board) error {
	l, err := tls.Listen("tcp", "127.0.0.1:0", client.ServerTLS(nil))
	if err != nil {
		return err
	}
	const server = "rotor server" // what peer calls it; no instance can have this name
	peer := func(r *http.Request) string {
		name, isServer, ok := client.PeerName(r.TLS)
		if !ok {
			return ""
		}
		if isServer {
			return server
		}
		return name
	}
	s := &http.Server{Handler: b.Handler(peer, server), ReadHeaderTimeout: 5 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }() // ends with Shutdown, below
	(&talker{out: os.Stdout}).say(line{Kind: "ready", Address: l.Addr().String()})
	<-ctx.Done()
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	_ = s.Shutdown(end) // who still waits is gone
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
