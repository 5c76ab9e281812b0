// Package clients_test has the programs and libraries that people point at HashiCorp Vault or OpenBao do their whole job: keys, use, rotation, rewrapping, old
// ciphertext, login, renewal, a policy that refuses. They do it at a true Vault, which proves the jobs, and unchanged at rotor.
package clients_test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
)

// steps are the parts of a job, in the order of the table that TestMain prints.
var steps = []string{"keys", "use", "rotate", "rewrap", "old", "login", "renew", "denied", "more", "newer", "batch"}

// results says how each step of each client went at each server.
var results = struct {
	sync.Mutex // guards went
	went       map[[3]string]string
}{went: map[[3]string]string{}}

func record(server, client, step, how string) {
	results.Lock()
	defer results.Unlock()
	results.went[[3]string{server, client, step}] = how
}

func TestMain(m *testing.M) {
	code := m.Run()
	report()
	os.Exit(code)
}

// report prints the table of clients and steps.
func report() {
	rows := map[[2]string]bool{}
	for k := range results.went {
		rows[[2]string{k[0], k[1]}] = true
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "server\tclient\t%s\n", strings.Join(steps, "\t"))
	for _, r := range slices.SortedFunc(maps.Keys(rows), func(a, b [2]string) int { return strings.Compare(a[0]+a[1], b[0]+b[1]) }) {
		fmt.Fprintf(w, "%s\t%s", r[0], r[1])
		for _, s := range steps {
			how := results.went[[3]string{r[0], r[1], s}]
			if how == "" {
				how = "-" // the client has no such thing
			}
			fmt.Fprintf(w, "\t%s", how)
		}
		fmt.Fprintln(w)
	}
	_ = w.Flush() // standard output is all there is
}

// gaps are the steps that a server is known not to do, with a part of what it answers; one that is done after all fails the test, so that the table stays true.
var gaps = map[string]string{
	"vault/vault-api/newer": "unknown key type ml-dsa", // its version is 1.14
	"vault/command/newer":   "enterprise-only feature",
	"vault/agent/newer":     "enterprise-only feature",
	"vault/proxy/newer":     "enterprise-only feature",
}

// job is what one client does at one server.
type job struct {
	*server
	client string
	ctx    context.Context // of the test
}

// check stops a step at the first thing that is not as expected.
type check struct{}

// wrong is why a step stopped.
type wrong struct{ error }

func (check) fail(format string, args ...any) { panic(wrong{fmt.Errorf(format, args...)}) }

// ok wants no error.
func (c check) ok(err error, doing string) {
	if err != nil {
		c.fail("%s: %w", doing, err)
	}
}

// same wants two values of the same text.
func (c check) same(got, want any, what string) {
	if g, w := fmt.Sprint(got), fmt.Sprint(want); g != w {
		c.fail("%s is %s, not %s", what, g, w)
	}
}

// says wants an error with a text.
func (c check) says(err error, text, doing string) {
	if err == nil {
		c.fail("%s is done, and should be refused: %s", doing, text)
	}
	if !strings.Contains(err.Error(), text) {
		c.fail("%s is refused by %q, not by %q", doing, err, text)
	}
}

// step runs a part of a job and records how it went.
func (j job) step(t *testing.T, name string, do func(c check)) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		j.went(t, name, run(do))
	})
}

// run does a step and returns why it stopped. A step stops by a panic, because a failed test cannot be looked at for an expected gap.
func run(do func(c check)) (err error) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case wrong:
			err = r.error
		default: // such as a client that a step before did not get
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	do(check{})
	return nil
}

// went compares how a step ended with what is expected of the server.
func (j job) went(t *testing.T, step string, err error) {
	t.Helper()
	if !slices.Contains(steps, step) {
		t.Fatalf("there is no step %q", step)
	}
	gap := gaps[j.name+"/"+j.client+"/"+step]
	switch {
	case gap == "" && err == nil:
		record(j.name, j.client, step, "ok")
	case gap == "":
		record(j.name, j.client, step, "FAILED")
		t.Error(err)
	case err == nil:
		record(j.name, j.client, step, "ok?")
		t.Errorf("is done, and the table of gaps expects %q", gap)
	case strings.Contains(err.Error(), gap):
		record(j.name, j.client, step, "not there")
	default:
		record(j.name, j.client, step, "FAILED")
		t.Errorf("%v; the table of gaps expects %q", err, gap)
	}
}

// all runs the jobs of every client.
func all(t *testing.T, s *server) {
	for name, do := range map[string]func(*testing.T, job){
		"vault-api": vaultAPI, "openbao-api": openBao, "tink": tinkHCVault, "gocloud": gocloud, "go-kms-wrapping": kmsWrapping,
		"command": command, "agent": agent, "proxy": proxy, "hvac": hvac, "node-vault": nodeVault, "sops": sops,
		"auto-unseal": autoUnseal, "terraform": terraform, "hvac-pollers": pollers, "howto": howto,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			do(t, job{server: s, client: name, ctx: t.Context()})
		})
	}
}

// TestVault proves the jobs at a true Vault.
func TestVault(t *testing.T) {
	t.Parallel()
	all(t, startVault(t))
}

// tree is a path within rotor's tree.
func tree(t testing.TB, path string) string {
	t.Helper()
	abs, err := filepath.Abs(filepath.Join("../..", path))
	if err != nil {
		t.Fatal(err)
	}
	return abs
}
