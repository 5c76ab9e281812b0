package cli_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"
	"go.yaml.in/yaml/v3"

	"github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/internal/cli"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/bolt"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"rotor": func() { // as cmd/rotor
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		context.AfterFunc(ctx, stop)
		os.Exit(cli.Run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}})
}

// TestScripts runs testdata/script: a file for each group of commands, against servers that are processes of their own.
func TestScripts(t *testing.T) { runScripts(t, "script") }

// runScripts runs the scripts of a directory in testdata.
func runScripts(t *testing.T, dir string) {
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", dir),
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("GORACE", "atexit_sleep_ms=0") // under the race detector each of the many processes would sleep a second at its end
			e.Setenv("XDG_CONFIG_HOME", filepath.Join(e.WorkDir, "config"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "startserver": startServer, "stopserver": stopServer, "sighup": sighup, "procstatus": procStatus, "interrupt": interrupt, "interruptfed": interruptFed, "serversays": serverSays,
			"flip": flip, "record": record, "hold": hold, "startboard": startBoard, "truncate": truncate, "capture": capture, "extract": extract, "empty": empty, "reorder": reorder, "forms": forms, "page": page,
		},
	})
}

// page FILE writes the sh blocks of a page of docs, in order, to page.sh.
func page(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: page FILE")
	}
	b, err := os.ReadFile(filepath.Join(docs, args[0]))
	ts.Check(err)
	var script bytes.Buffer
	for _, block := range regexp.MustCompile("(?ms)^```sh\n(.*?)^```").FindAllSubmatch(b, -1) {
		script.Write(block[1])
	}
	if script.Len() == 0 {
		ts.Fatalf("%s has no sh block", args[0])
	}
	ts.Check(os.WriteFile(ts.MkAbs("page.sh"), script.Bytes(), 0o600))
}

// docs is where the pages are, whatever directory a script is in.
var docs = func() string {
	dir, err := filepath.Abs(filepath.Join("..", "..", "docs"))
	if err != nil {
		panic(err)
	}
	return dir
}()

// exits CODE PROGRAM ARGS... runs a program that must end with the exit status.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARGS...")
	}
	err := ts.Exec(args[1], args[2:]...)
	if got := strconv.Itoa(statusOf(err)); got != args[0] {
		ts.Fatalf("exit status %s, want %s (%v)", got, args[0], err)
	}
}

func statusOf(err error) int {
	var e *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return e.ExitCode()
	}
	return -1
}

// process prepares a run of rotor in the script's directory and environment.
func process(ts *testscript.TestScript, args []string) (*exec.Cmd, *logged) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second) // a process that hangs fails its script
	ts.Defer(cancel)
	cmd := exec.CommandContext(ctx, "rotor", args...)
	cmd.Dir = ts.MkAbs(".")
	for _, name := range []string{"PATH", "HOME", "XDG_CONFIG_HOME", "ROTOR_IDENTITY", "ROTOR_ADDRESS", "TMPDIR", "GORACE", "GODEBUG", "SOFTHSM2_CONF"} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	log := &logged{grown: make(chan struct{})}
	cmd.Stderr = log
	return cmd, log
}

// logged is what a process wrote on its standard error.
type logged struct {
	mu    sync.Mutex // guards what follows
	text  []byte
	grown chan struct{} // closed and replaced at each write
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, b...)
	close(l.grown)
	l.grown = make(chan struct{})
	return len(b), nil
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text)
}

// wait returns once the text contains what is asked for, false when that takes too long.
func (l *logged) wait(want string) bool {
	late := time.After(10 * time.Second)
	for {
		l.mu.Lock()
		grown := l.grown
		l.mu.Unlock()
		if strings.Contains(l.String(), want) {
			return true
		}
		select {
		case <-grown:
		case <-late:
			return false
		}
	}
}

// running is the server of each script, by its directory. Guarded by scripts, as scripts run in parallel.
var (
	scripts sync.Mutex
	running = map[string]*exec.Cmd{}
)

// startServer runs a server (startserver run --dir D …, startserver dev …) until the script ends, and sets ROTOR_ADDRESS. The rest
// of what it prints on standard output goes to the file "server.out".
func startServer(ts *testscript.TestScript, _ bool, args []string) {
	cmd, log := process(ts, append(args, "--listen", "127.0.0.1:0"))
	out, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	scripts.Lock()
	running[ts.MkAbs(".")] = cmd
	scripts.Unlock()
	ts.Defer(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill() // the script failed before stopserver
			_ = cmd.Wait()
		}
		ts.Logf("server: %s", log)
	})
	lines := bufio.NewReader(out)
	first, err := lines.ReadString('\n')
	address, ok := strings.CutPrefix(strings.TrimSpace(first), "listening on ")
	if err != nil || !ok {
		ts.Fatalf("the server did not start: %q %v", first, err)
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", cmd.Process.Pid))
	ts.Check(err)
	if !regexp.MustCompile(`(?m)^Max core file size +0 +0 `).Match(limits) {
		ts.Fatalf("the server may dump core: %s", limits)
	}
	ts.Setenv("ROTOR_ADDRESS", address)
	if args[0] == "dev" {
		for range 2 {
			line, err := lines.ReadString('\n')
			ts.Check(err)
			first += line
		}
	}
	ts.Check(os.WriteFile(ts.MkAbs("server.out"), []byte(first), 0o600))
}

func serverOf(ts *testscript.TestScript) *exec.Cmd {
	scripts.Lock()
	defer scripts.Unlock()
	return running[ts.MkAbs(".")]
}

// stopServer ends the server with SIGTERM; it must end well. Its log goes to the file "server.log".
func stopServer(ts *testscript.TestScript, _ bool, _ []string) {
	cmd := serverOf(ts)
	ts.Check(cmd.Process.Signal(syscall.SIGTERM))
	ts.Check(cmd.Wait())
	log, _ := cmd.Stderr.(*logged)
	ts.Check(os.WriteFile(ts.MkAbs("server.log"), []byte(log.String()), 0o600))
}

// sighup TEXT makes the server read its rules again and waits until its log contains the text.
func sighup(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(serverOf(ts).Process.Signal(syscall.SIGHUP))
	serverSays(ts, false, args)
}

// serverSays TEXT waits until the log of the server contains the text.
func serverSays(ts *testscript.TestScript, _ bool, args []string) {
	if log, _ := serverOf(ts).Stderr.(*logged); !log.wait(args[0]) {
		ts.Fatalf("the log does not say %q: %s", args[0], log)
	}
}

// procStatus PATTERN looks into what the kernel says of the server's process.
func procStatus(ts *testscript.TestScript, neg bool, args []string) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", serverOf(ts).Process.Pid))
	ts.Check(err)
	if regexp.MustCompile(strings.ReplaceAll(args[0], `\t`, "\t")).Match(b) == neg {
		ts.Fatalf("%s: %s", args[0], b)
	}
}

// interrupt PATTERN ARGS... runs rotor, sends SIGINT once a line of its standard error contains the pattern, and expects exit
// status 1. What it printed goes to the file "interrupted".
func interrupt(ts *testscript.TestScript, _ bool, args []string) {
	cmd, _ := process(ts, args[1:])
	cmd.Stderr = nil
	pipe, err := cmd.StderrPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	var all strings.Builder
	lines, sent := bufio.NewScanner(pipe), false
	for lines.Scan() {
		all.WriteString(lines.Text() + "\n")
		if !sent && strings.Contains(lines.Text(), args[0]) {
			ts.Check(cmd.Process.Signal(os.Interrupt))
			sent = true
		}
	}
	if got := statusOf(cmd.Wait()); got != 1 || !sent {
		ts.Fatalf("exit status %d, interrupted %v: %s", got, sent, all.String())
	}
	ts.Check(os.WriteFile(ts.MkAbs("interrupted"), []byte(all.String()), 0o600))
}

// interruptFed SIGNAL ARGS... runs rotor, feeds it more than a pipe holds, so that it is known to be at work, and sends the signal
// while it waits for more. It expects exit status 1.
func interruptFed(ts *testscript.TestScript, _ bool, args []string) {
	sig := map[string]os.Signal{"SIGINT": syscall.SIGINT, "SIGTERM": syscall.SIGTERM}[args[0]]
	cmd, log := process(ts, args[1:])
	in, err := cmd.StdinPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	_, err = io.Copy(in, io.LimitReader(zeros{}, 4<<20))
	ts.Check(err)
	ts.Check(cmd.Process.Signal(sig))
	if got := statusOf(cmd.Wait()); got != 1 {
		ts.Fatalf("exit status %d: %s", got, log)
	}
	ts.Check(os.WriteFile(ts.MkAbs("interrupted"), []byte(log.String()), 0o600))
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// flip FILE OFFSET changes one bit; a negative offset counts from the end.
func flip(ts *testscript.TestScript, _ bool, args []string) {
	b, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	at, err := strconv.Atoi(args[1])
	ts.Check(err)
	if at < 0 {
		at += len(b)
	}
	b[at] ^= 1
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o600))
}

// record save|put|delete DB PREFIX FILE copies the first record under a prefix of a store that nobody has open to a file, puts what a file holds
// in its place, or deletes it, past everything that rotor does.
func record(ts *testscript.TestScript, _ bool, args []string) {
	db, err := bolt.Open(ts.MkAbs(args[1]), bolt.Options{})
	ts.Check(err)
	defer func() { ts.Check(db.Close()) }()
	var found *store.Record
	_, records := db.List(context.Background(), args[2])
	for r, err := range records {
		ts.Check(err)
		found = &r
		break
	}
	if found == nil {
		ts.Fatalf("no record under %s", args[2])
	}
	op := store.Op{Key: found.Key, Delete: true}
	switch args[0] {
	case "save":
		ts.Check(os.WriteFile(ts.MkAbs(args[3]), found.Value, 0o600))
		return
	case "put":
		op.Delete, op.Value = false, []byte(ts.ReadFile(args[3]))
	}
	_, err = db.Commit(context.Background(), nil, []store.Op{op})
	ts.Check(err)
}

// hold IDENTITY KEY is one life of a process of an instance that holds a key of the server at ROTOR_ADDRESS: it hears how far the log is, and
// tells what it has heard before. With ! the server must refuse it for good, with recovery.
func hold(ts *testscript.TestScript, neg bool, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	log := &logged{grown: make(chan struct{})}
	c, err := rotor.Dial(ctx, rotor.Config{
		Identity: ts.MkAbs(args[0]), Address: ts.Getenv("ROTOR_ADDRESS"), Log: slog.New(slog.NewTextHandler(log, nil)),
	})
	ts.Check(err)
	defer func() { ts.Check(c.Close()) }()
	key := c.Key(args[1])
	if !neg {
		ts.Check(key.Ready(ctx))
		return
	}
	go func() { _ = key.Ready(ctx) }() // ends with ctx: there is nothing to be had
	if !log.wait("recovery") {
		ts.Fatalf("the server took the instance: %s", log)
	}
}

// truncate FILE N cuts the last N bytes off.
func truncate(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	info, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Check(os.Truncate(ts.MkAbs(args[0]), info.Size()-int64(n)))
}

// reorder FILE changes the places of the first two chunks of an encrypted file.
func reorder(ts *testscript.TestScript, _ bool, args []string) {
	b, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	h, err := envelope.ReadHeader(bytes.NewReader(b), int64(len(b)))
	ts.Check(err)
	const front, chunk = 56, 16<<10 + 16 // salt and commitment; a chunk with its tag (spec/file.md)
	first := b[h.PayloadOffset()+front:][:chunk]
	next := b[h.PayloadOffset()+front+chunk:][:chunk]
	for i := range first {
		first[i], next[i] = next[i], first[i]
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o600))
}

// forms ARGS... runs rotor with each output form: JSON and YAML hold the same value, and the forms for people say something too.
func forms(ts *testscript.TestScript, _ bool, args []string) {
	var values []any
	for _, form := range []string{"json", "yaml", "table", ""} {
		run := args
		if form != "" {
			run = append(slices.Clone(args), "-o", form)
		}
		ts.Check(ts.Exec("rotor", run...))
		out := ts.ReadFile("stdout")
		var value any
		switch form {
		case "json":
			ts.Check(json.Unmarshal([]byte(out), &value))
		case "yaml":
			ts.Check(yaml.Unmarshal([]byte(out), &value))
			b, err := json.Marshal(value) // so that numbers compare
			ts.Check(err)
			value = nil
			ts.Check(json.Unmarshal(b, &value))
		default:
			if strings.HasPrefix(out, "{") || strings.HasPrefix(out, "[") {
				ts.Fatalf("%v in form %q is JSON: %s", args, form, out)
			}
			continue
		}
		values = append(values, value)
	}
	if diff := cmp.Diff(values[0], values[1]); diff != "" {
		ts.Fatalf("%v: JSON and YAML differ: %s", args, diff)
	}
}

// capture NAME sets a variable to the last standard output, without the space around it.
func capture(ts *testscript.TestScript, _ bool, args []string) {
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
}

// extract PATTERN NAME writes the word of the last standard output that begins with a pattern to a file, and sets a variable to it.
func extract(ts *testscript.TestScript, _ bool, args []string) {
	word := regexp.MustCompile(args[0] + `\S*`).FindString(ts.ReadFile("stdout"))
	word = strings.Trim(word, `",`)
	if word == "" {
		ts.Fatalf("no %s", args[0])
	}
	ts.Setenv(args[1], word)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(word+"\n"), 0o600))
}

// empty DIR expects a directory without files.
func empty(ts *testscript.TestScript, _ bool, args []string) {
	all, err := os.ReadDir(ts.MkAbs(args[0]))
	ts.Check(err)
	if len(all) > 0 {
		ts.Fatalf("%s holds %v", args[0], all)
	}
}
