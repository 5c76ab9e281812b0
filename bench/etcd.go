package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/etcd"
)

// etcdCommits are the commits of a round.
const etcdCommits = 4_000

// onEtcd measures the engine on an etcd 3.7 of its own, one member, against a bare loop of clientv3 on the same server: the same transaction
// (the record, and the head that says what the newest commit is).
func onEtcd(ctx context.Context, o options) (rows []Row, err error) {
	address, stop, err := startEtcd(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench: start etcd:", err)
		return []Row{{Name: "etcd", Against: "a server that scripts/services builds", Bar: "it runs"}}, nil
	}
	defer stop()
	config, err := etcd.ParseURL(etcd.Scheme + address + "/bench")
	if err != nil {
		return nil, err
	}
	s, err := etcd.Open(ctx, config)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{address}, Logger: zap.NewNop()})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	value := noise(256)
	key := func(n int) string { return fmt.Sprintf("bench/%05d", n%records) }
	engine := &measured{name: "commits", work: etcdCommits, unit: "/s", f: func() error {
		return together(etcdCommits, func(n int) error {
			_, err := s.Commit(ctx, nil, []store.Op{{Key: key(n), Value: value}})
			return err
		})
	}}
	bare := &measured{name: "bare loop", work: etcdCommits, unit: "/s", f: func() error {
		return together(etcdCommits, func(n int) error {
			_, err := client.Txn(ctx).Then(clientv3.OpPut("bare/k/"+key(n), string(value)), clientv3.OpPut("bare/head", "a number of 26 letters ...")).Commit()
			return err
		})
	}}
	read := &measured{name: "reads", work: etcdCommits, unit: "/s", f: func() error {
		return together(etcdCommits, func(n int) error {
			_, err := s.Get(ctx, key(n))
			return err
		})
	}}
	if err := takeTurns(ctx, max(o.rounds/2, 1), engine, bare, read); err != nil {
		return nil, err
	}
	return []Row{
		atLeast("etcd_commits_64_writers", *engine, *bare, "the same transaction by clientv3", 0.7),
		{"etcd_reads", read.rate(), "/s", "linearizable, one round trip each; the keyring reads from memory", 0, "", true, read.noise()},
	}, nil
}

// startEtcd starts a member with its defaults, durable, on free ports. stop ends it and removes its data.
func startEtcd(ctx context.Context) (address string, stop func(), err error) {
	dir, err := os.MkdirTemp("", "rotor-bench-etcd-")
	if err != nil {
		return "", nil, err
	}
	var free [2]string
	for i := range free {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return "", nil, err
		}
		free[i] = l.Addr().String()
		if err := l.Close(); err != nil {
			return "", nil, err
		}
	}
	client, peer := "http://"+free[0], "http://"+free[1]
	server := exec.CommandContext(ctx, ".cache/bin/etcd-3.7", "--name=m", "--data-dir="+dir, "--listen-client-urls="+client, "--advertise-client-urls="+client,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=m="+peer, "--log-level=error")
	server.SysProcAttr, server.Stderr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}, io.Discard
	if err := server.Start(); err != nil {
		return "", nil, errors.Join(err, os.RemoveAll(dir))
	}
	stop = func() {
		_ = server.Process.Kill() // gone already is fine
		_ = server.Wait()         // it was killed
		_ = os.RemoveAll(dir)     // a temporary directory
	}
	config, err := etcd.ParseURL(etcd.Scheme + free[0] + "/start?timeout=1s")
	if err != nil {
		stop()
		return "", nil, err
	}
	for deadline := time.Now().Add(30 * time.Second); ; {
		s, err := etcd.Open(ctx, config)
		if err == nil {
			return free[0], stop, s.Close()
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			stop()
			return "", nil, err
		}
	}
}
