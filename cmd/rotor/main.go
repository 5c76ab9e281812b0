// Command rotor is the server, the tools and the administrator's hand: everything is in package cli.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/rotorkms/rotor/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(cli.Run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
