package clients_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// lines are the steps that the scripts of other languages have.
var lines = []string{"keys", "use", "rotate", "rewrap", "old", "login", "renew", "denied", "more"}

// script runs a job in another language, which prints a line of JSON for each step.
func (j job) script(t *testing.T, more []string, program string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(j.ctx, program, append(args, lines...)...)
	cmd.Env = append(j.environment(j.token, t.TempDir()), more...)
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	if err := cmd.Run(); err != nil {
		t.Errorf("%s: %v (make test-interop installs it)\n%s", program, err, log.String())
	}
	results := map[string]error{}
	for line := range strings.Lines(out.String()) {
		var r struct{ Step, Error string }
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%s prints %q: %v", program, line, err)
		}
		results[r.Step] = nil
		if r.Error != "" {
			results[r.Step] = fmt.Errorf("%s", r.Error)
		}
	}
	for _, step := range lines {
		t.Run(step, func(t *testing.T) {
			err, told := results[step]
			if !told {
				t.Fatal("the script does not tell of it")
			}
			j.went(t, step, err)
		})
	}
}

// hvac is the Python library.
func hvac(t *testing.T, j job) {
	j.script(t, nil, tree(t, ".cache/interop/python/bin/python"), "python/client.py")
}

// nodeVault is the npm package.
func nodeVault(t *testing.T, j job) {
	j.script(t, []string{"NODE_PATH=" + tree(t, ".cache/interop/node/node_modules")}, "node", "node/client.cjs")
}

// program runs a command that people type, and returns what it printed.
func (j job) program(dir, token string, args ...string) (string, error) {
	cmd := exec.CommandContext(j.ctx, args[0], args[1:]...)
	cmd.Dir, cmd.Env = dir, j.environment(token, dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w\n%s", filepath.Base(args[0]), err, out)
	}
	return string(out), nil
}
