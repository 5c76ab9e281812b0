// Command member is a client for TestTwoVersions, which builds it against rotor as it is and as it was: it holds a key, uses it and one at the
// servers without pause, exchanges messages with the other members through a directory, and counts what fails.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

const pause = 5 * time.Millisecond // the machine is small

// tally is what it prints at the end of its standard input.
type tally struct {
	Held, Read, Served, Failed int
	First                      string // error
}

func main() {
	if len(os.Args) != 5 {
		fmt.Fprintln(os.Stderr, "member NAME ADDRESSES IDENTITY DIR, with a join token on the first line of standard input")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3], os.Args[4]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(name, addresses, identity, dir string) error {
	var token string
	if _, err := fmt.Scanln(&token); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	c, err := rotor.Dial(ctx, rotor.Config{
		Identity: identity, JoinToken: token, Address: addresses, Keys: []string{"records"}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	ended := make(chan tally)
	go func() { ended <- work(ctx, c, name, dir) }() // ends with ctx, below
	_, _ = io.Copy(io.Discard, os.Stdin)             // its end is what is waited for
	stop()
	return errors.Join(json.NewEncoder(os.Stdout).Encode(<-ended), c.Close())
}

func work(ctx context.Context, c *rotor.Client, name, dir string) (t tally) {
	try := func(count *int, f func() error) {
		err := f()
		switch {
		case err == nil:
			*count++
		case ctx.Err() == nil:
			if t.Failed++; t.First == "" {
				t.First = err.Error()
			}
		}
	}
	for ctx.Err() == nil {
		try(&t.Held, func() error { return write(ctx, c, filepath.Join(dir, name)) })
		all, _ := filepath.Glob(filepath.Join(dir, "*.message")) // the pattern is a good one
		for _, path := range all {
			try(&t.Read, func() error { return read(ctx, c, path) })
		}
		try(&t.Served, func() error { return served(ctx, c) })
		time.Sleep(pause)
	}
	return t
}

// write leaves a message for the others.
func write(ctx context.Context, c *rotor.Client, path string) error {
	m, err := c.Key("records").Encrypt(ctx, []byte("text"))
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(path+".new", m, 0o600), os.Rename(path+".new", path+".message"))
}

func read(ctx context.Context, c *rotor.Client, path string) error {
	m, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	got, err := c.Key("records").Decrypt(ctx, m)
	if err == nil && string(got) != "text" {
		err = fmt.Errorf("%s: another text: %q", path, got)
	}
	return err
}

// served uses the key that the servers keep.
func served(ctx context.Context, c *rotor.Client) error {
	key := &rotorv1.KeyRef{Name: "server"}
	m, err := c.Admin().Keys.Encrypt(ctx, connect.NewRequest(&rotorv1.EncryptRequest{Key: key, Plaintext: []byte("text")}))
	if err != nil {
		return err
	}
	got, err := c.Admin().Keys.Decrypt(ctx, connect.NewRequest(&rotorv1.DecryptRequest{Key: key, Ciphertext: m.Msg.GetCiphertext()}))
	if err == nil && string(got.Msg.GetPlaintext()) != "text" {
		err = fmt.Errorf("another text: %q", got.Msg.GetPlaintext())
	}
	return err
}
