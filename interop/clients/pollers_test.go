package clients_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

const (
	pollerCount   = 50
	rotationCount = 20
)

// pollers are Python clients that poll a key's latest version, write with it and read what was written with all before, while the Go client rotates it.
func pollers(t *testing.T, j job) {
	const mount = "interop/pollers"
	var e transit
	var token string
	j.step(t, "keys", func(c check) {
		e = j.owner(c, mount, "orders", nil)
		token = j.comesIn(c, orders(mount))
	})
	j.step(t, "rotate", func(c check) {
		cmd := exec.CommandContext(j.ctx, tree(t, ".cache/interop/python/bin/python"), "python/pollers.py", mount, "orders", fmt.Sprint(pollerCount), fmt.Sprint(rotationCount))
		cmd.Env = j.environment(token, t.TempDir())
		var log bytes.Buffer
		cmd.Stderr = &log
		out, err := cmd.StdoutPipe()
		c.ok(err, "make a pipe")
		c.ok(cmd.Start(), "start the pollers")
		last := ""
		for lines := bufio.NewScanner(out); lines.Scan(); last = lines.Text() {
			if seen, ok := strings.CutPrefix(lines.Text(), "seen "); ok && seen != fmt.Sprint(rotationCount+1) {
				e.write("keys/orders/rotate", nil)
			}
		}
		if err := cmd.Wait(); err != nil {
			c.fail("the pollers end: %w\n%s", err, log.String())
		}
		var done struct {
			Polled, Written, Read, Failed int
			Why                           []string
			Versions                      []int
		}
		c.ok(json.Unmarshal([]byte(last), &done), "read what was done")
		t.Logf("%d pollers polled %d times, wrote %d and read %d texts of %d versions; %d failed", pollerCount, done.Polled, done.Written, done.Read, len(done.Versions), done.Failed)
		if done.Failed != 0 || len(done.Versions) != rotationCount+1 || done.Written < pollerCount*rotationCount/2 {
			c.fail("%+v", done)
		}
	})
}
