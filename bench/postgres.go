package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/postgres"
)

// pgCommits are the commits of a round. The bare loop makes one transaction of each.
const pgCommits = 4_000

// onPostgres measures the engine on a PostgreSQL of its own against bare loops of pgx on the same server: the same transaction (lock and read the
// head, read the record's revision, write record, log and head), and for information the same without an order: a sequence in the place of the head.
func onPostgres(ctx context.Context, o options) (rows []Row, err error) {
	url, stop, err := startPostgres(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench: start postgres:", err)
		return []Row{{Name: "postgres", Against: "a server that scripts/services installs", Bar: "it runs"}}, nil
	}
	defer stop()
	s, err := postgres.Open(ctx, url, postgres.Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	pool, err := pgxpool.New(ctx, url+"?pool_max_conns="+strconv.Itoa(writers))
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	if _, err := pool.Exec(ctx, bareSchema); err != nil {
		return nil, err
	}
	value := noise(256)
	key := func(n int) string { return fmt.Sprintf("bench/%05d", n%records) }
	engine := &measured{name: "commits", work: pgCommits, unit: "/s", f: func() error {
		return together(pgCommits, func(n int) error {
			_, err := s.Commit(ctx, nil, []store.Op{{Key: key(n), Value: value}})
			return err
		})
	}}
	bare := func(name, take, keep string) *measured {
		return &measured{name: name, work: pgCommits, unit: "/s", f: func() error {
			return together(pgCommits, func(n int) error { return bareCommit(ctx, pool, take, keep, key(n), value) })
		}}
	}
	same := bare("bare loop", `SELECT rev FROM bare.head FOR UPDATE`, `UPDATE bare.head SET rev = $1`)
	unordered := bare("bare loop without order", `SELECT nextval('bare.seq')`, `SELECT $1::bigint`)
	read := &measured{name: "reads", work: pgCommits, unit: "/s", f: func() error {
		return together(pgCommits, func(n int) error {
			_, err := s.Get(ctx, key(n))
			return err
		})
	}}
	if err := takeTurns(ctx, max(o.rounds/2, 1), engine, same, unordered, read); err != nil {
		return nil, err
	}
	return []Row{
		atLeast("postgres_commits_64_writers", *engine, *same, "the same transaction, one for each commit", 0.7),
		atLeast("postgres_commits_64_writers", *engine, *unordered, "the same with a sequence, which a watch could not follow", 0),
		{"postgres_reads", read.rate(), "/s", "one round trip each; the keyring reads from memory", 0, "", true, read.noise()},
	}, nil
}

const bareSchema = `CREATE SCHEMA bare; CREATE TABLE bare.head (one boolean PRIMARY KEY DEFAULT true, rev bigint NOT NULL) WITH (fillfactor = 10);
	INSERT INTO bare.head (rev) VALUES (0); CREATE SEQUENCE bare.seq;
	CREATE TABLE bare.records (key bytea PRIMARY KEY, value bytea NOT NULL, rev bigint NOT NULL); CREATE TABLE bare.commits (rev bigint, events bytea NOT NULL)`

// bareCommit is one transaction in two round trips, as the engine's.
func bareCommit(ctx context.Context, pool *pgxpool.Pool, take, keep, key string, value []byte) error {
	return pool.AcquireFunc(ctx, func(c *pgxpool.Conn) error {
		var rev int64
		b := &pgx.Batch{}
		b.Queue("BEGIN")
		b.Queue(take).QueryRow(func(r pgx.Row) error { return r.Scan(&rev) })
		b.Queue(`SELECT rev FROM bare.records WHERE key = $1`, []byte(key))
		if err := c.SendBatch(ctx, b).Close(); err != nil {
			return err
		}
		rev++
		b = &pgx.Batch{}
		b.Queue(`INSERT INTO bare.records (key, value, rev) VALUES ($1, $2, $3) ON CONFLICT (key) DO UPDATE SET value = excluded.value, rev = excluded.rev`, []byte(key), value, rev)
		b.Queue(`INSERT INTO bare.commits (rev, events) VALUES ($1, $2)`, rev, append([]byte(key), value...))
		b.Queue(keep, rev)
		b.Queue("COMMIT")
		return c.SendBatch(ctx, b).Close()
	})
}

// startPostgres starts a server with its defaults, durable, on a free port, as nobody when we are root. stop ends it and removes its data.
func startPostgres(ctx context.Context) (url string, stop func(), err error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(found) == 0 {
		return "", nil, errors.New("no PostgreSQL in /usr/lib/postgresql")
	}
	bin := slices.Max(found)
	dir, err := os.MkdirTemp("", "rotor-bench-postgres-")
	if err != nil {
		return "", nil, err
	}
	attr := &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if os.Getuid() == 0 {
		nobody, err := user.Lookup("nobody")
		if err != nil {
			return "", nil, err
		}
		id, _ := strconv.ParseUint(nobody.Uid, 10, 32) // the system's own number
		attr.Credential = &syscall.Credential{Uid: uint32(id), Gid: uint32(id)}
		if err := os.Chown(dir, int(id), int(id)); err != nil {
			return "", nil, err
		}
	}
	run := func(name string, args ...string) *exec.Cmd {
		c := exec.CommandContext(ctx, filepath.Join(bin, name), args...)
		c.Dir, c.SysProcAttr, c.Stderr = "/", attr, io.Discard
		return c
	}
	data := filepath.Join(dir, "data")
	if err := run("initdb", "-D", data, "-U", "rotor", "-A", "trust", "-E", "UTF8", "--locale=C").Run(); err != nil {
		return "", nil, errors.Join(fmt.Errorf("initdb: %w", err), os.RemoveAll(dir))
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	_, port, _ := net.SplitHostPort(l.Addr().String()) // it is one
	if err := l.Close(); err != nil {
		return "", nil, err
	}
	server := run("postgres", "-D", data, "-p", port, "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="+dir, "-c", "max_connections=200")
	if err := server.Start(); err != nil {
		return "", nil, err
	}
	var ended atomic.Bool
	done := make(chan struct{})
	go func() {
		_ = server.Wait() // it is killed
		ended.Store(true)
		close(done)
	}()
	stop = func() {
		_ = server.Process.Signal(syscall.SIGINT) // gone already is fine
		<-done
		_ = os.RemoveAll(dir) // a temporary directory
	}
	url = "postgres://rotor@127.0.0.1:" + port + "/postgres"
	for {
		conn, err := pgx.Connect(ctx, url)
		if err == nil {
			return url, stop, conn.Close(ctx)
		}
		if ended.Load() || ctx.Err() != nil {
			stop()
			return "", nil, err
		}
		time.Sleep(50 * time.Millisecond)
	}
}
