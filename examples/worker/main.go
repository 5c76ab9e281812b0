// Command worker is the smallest instance of a fleet: a process that holds the key "records", uses it all the time, and says when the
// version that it uses changes. With -board it also keeps encrypted records in a file, and serves them to rotor as a data set.
//
//	worker -identity DIR [-board FILE -listen HOST:PORT]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/rotorkms/rotor"
)

func main() {
	identity := flag.String("identity", "", "directory that rotor instance join has made")
	file := flag.String("board", "", "file to keep encrypted records in")
	listen := flag.String("listen", "127.0.0.1:7430", "host:port to serve the records at")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *identity, *file, *listen)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "worker:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, identity, file, listen string) (err error) {
	client, err := rotor.Dial(ctx, rotor.Config{Identity: identity, Keys: []string{"records"}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close()) }() // leaves the fleet, so that no rotation waits for it
	if file != "" {
		b, err := openBoard(ctx, client, file, listen)
		if err != nil {
			return err
		}
		defer b.close()
	}
	for said := ""; ctx.Err() == nil; pause(ctx) {
		if now := use(ctx, client.Key("records")); now != said && ctx.Err() == nil {
			fmt.Printf("%s: %s\n", client.Instance(), now)
			said = now
		}
	}
	return nil
}

// use encrypts and decrypts, both in this process, and says with which version.
func use(ctx context.Context, key *rotor.Key) string {
	id := rotor.Part{Label: "id", Value: []byte("7")}
	message, err := key.Encrypt(ctx, []byte("hello"), id)
	if err == nil {
		_, err = key.Decrypt(ctx, message, id)
	}
	if err != nil {
		return string(rotor.CodeOf(err))
	}
	n, _ := key.Version()
	return fmt.Sprintf("version %d", n)
}

func pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(20 * time.Millisecond):
	}
}
