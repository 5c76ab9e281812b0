// Command fleet is rotor's main job as a program that anyone can run: a rotor server, a record store and 50 instances, each a
// process of its own, that go on serving while all their keys rotate and while processes are killed, frozen and added. It uses rotor
// as any user would: the public package and the rotor command.
//
//	fleet run        starts everything, breaks what it can, and reports
//	fleet bench      measures how long a rotation takes, without faults
//	fleet instance   one instance (started by run)
//	fleet board      the record store (started by run)
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "fleet:", err)
		os.Exit(1)
	}
}

func command(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("usage: fleet run|bench|instance|board [flags]")
	}
	switch args[0] {
	case "run":
		return runCommand(ctx, args[1:])
	case "bench":
		return benchCommand(ctx, args[1:])
	case "instance":
		return instanceCommand(ctx, args[1:])
	case "board":
		return boardCommand(ctx, args[1:])
	}
	return fmt.Errorf("unknown command %q", args[0])
}
