//go:build services

package testenv

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// EtcdCluster is a cluster of the test's own.
type EtcdCluster struct {
	Endpoints []string // http://127.0.0.1:port of each member

	t     testing.TB
	ready []string // host:port of each member's health, without TLS
	bin   string
	args  [][]string
	procs []*process
}

// EtcdVersions are the servers that every test of the engine runs on.
var EtcdVersions = []string{"3.4", "3.7"}

// Etcd starts a cluster of so many members, each with further arguments; version is one of EtcdVersions. It is ended with the test.
func Etcd(t testing.TB, version string, members int, args ...string) *EtcdCluster {
	t.Helper()
	e := &EtcdCluster{t: t, bin: etcdBinary(t, version), procs: make([]*process, members)}
	var peers, initial []string
	scheme := "http"
	if slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "--cert-file") }) {
		scheme = "https"
	}
	for i := range members {
		e.Endpoints = append(e.Endpoints, fmt.Sprintf("%s://127.0.0.1:%d", scheme, FreePort(t)))
		e.ready = append(e.ready, fmt.Sprintf("http://127.0.0.1:%d", FreePort(t)))
		peers = append(peers, fmt.Sprintf("http://127.0.0.1:%d", FreePort(t)))
		initial = append(initial, fmt.Sprintf("m%d=%s", i, peers[i]))
	}
	for i := range members {
		e.args = append(e.args, append([]string{
			"--name", fmt.Sprintf("m%d", i), "--data-dir", filepath.Join(t.TempDir(), "etcd"), "--listen-client-urls", e.Endpoints[i],
			"--advertise-client-urls", e.Endpoints[i], "--listen-peer-urls", peers[i], "--initial-advertise-peer-urls", peers[i],
			"--initial-cluster", strings.Join(initial, ","), "--heartbeat-interval", "50", "--election-timeout", "500", "--log-level", "error",
			"--listen-metrics-urls", e.ready[i],
		}, args...))
	}
	t.Cleanup(func() {
		for i := range members {
			e.Kill(i)
		}
	})
	for i := range members {
		e.launch(i)
	}
	for i := range members {
		e.wait(i)
	}
	return e
}

func etcdBinary(t testing.TB, version string) string {
	t.Helper()
	if version == "3.4" {
		return "/usr/bin/etcd"
	}
	return inTree(t, ".cache/bin/etcd-"+version)
}

func (e *EtcdCluster) launch(i int) { e.procs[i] = start(e.t, 0, e.bin, e.args[i]...) }

// Hosts are the endpoints as a store's URL has them.
func (e *EtcdCluster) Hosts() string { return hosts.Replace(strings.Join(e.Endpoints, ",")) }

var hosts = strings.NewReplacer("http://", "", "https://", "")

// wait waits until a member knows a leader.
func (e *EtcdCluster) wait(i int) {
	e.procs[i].await(e.t, func(ctx context.Context) bool {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.ready[i]+"/health", nil)
		if err != nil {
			return false
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// Start starts a member again after Kill and waits until it answers.
func (e *EtcdCluster) Start(i int) {
	e.t.Helper()
	e.launch(i)
	e.wait(i)
}

// Kill ends a member at once.
func (e *EtcdCluster) Kill(i int) {
	if e.procs[i] != nil {
		e.procs[i].kill()
	}
}

// Freeze stops a member (SIGSTOP); Thaw lets it go on.
func (e *EtcdCluster) Freeze(i int) { e.procs[i].signal(syscall.SIGSTOP) }

// Thaw undoes Freeze.
func (e *EtcdCluster) Thaw(i int) { e.procs[i].signal(syscall.SIGCONT) }
