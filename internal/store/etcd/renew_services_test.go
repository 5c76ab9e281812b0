//go:build services

package etcd_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/etcd"
	"github.com/rotorkms/rotor/internal/testenv"
)

// replace puts another file in the place of one, as operators do.
func replace(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := errors.Join(os.WriteFile(path+".new", content, 0o600), os.Rename(path+".new", path)); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// worksAgain commits, with the tries that a cut of the connections costs, and sees it come back through a watch that was there before.
func worksAgain(t *testing.T, s *etcd.Store, watched *watched, value string) {
	t.Helper()
	for {
		rev, err := s.Commit(t.Context(), nil, []store.Op{put("k", value)})
		if err == nil {
			watched.await(t, rev)
			return
		}
		if !errors.Is(err, store.ErrUnknown) && !errors.Is(err, store.ErrUnavailable) || t.Context().Err() != nil {
			t.Fatalf("with what the files say now: %v", err)
		}
	}
}

// watched is a watch that goes on over everything.
type watched struct {
	mu   sync.Mutex // guards what follows
	at   store.Rev
	err  error
	more chan struct{}
}

func watchAll(t *testing.T, s *etcd.Store) *watched {
	w := &watched{more: make(chan struct{})}
	ctx := t.Context()
	var wait sync.WaitGroup
	wait.Go(func() {
		for events, err := range s.Watch(ctx, "", 0) {
			w.mu.Lock()
			if err != nil {
				w.err = err
			} else {
				w.at = events[0].Rev
			}
			close(w.more)
			w.more = make(chan struct{})
			w.mu.Unlock()
		}
	})
	t.Cleanup(wait.Wait)
	return w
}

func (w *watched) await(t *testing.T, rev store.Rev) {
	t.Helper()
	for {
		w.mu.Lock()
		at, err, more := w.at, w.err, w.more
		w.mu.Unlock()
		if err != nil {
			t.Fatalf("the watch has ended: %v", err)
		}
		if at >= rev {
			return
		}
		<-more
	}
}

// TestNewSecrets: the user's password, and then every certificate and authority, is another one; the open store takes what its files say, and a watch goes on.
func TestNewSecrets(t *testing.T) {
	onVersions(t, func(t *testing.T, version string) {
		cert, key := certificate(t)
		c := testenv.Etcd(t, version, 1, "--cert-file="+cert, "--key-file="+key, "--client-cert-auth", "--trusted-ca-file="+cert)
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		admin, err := clientv3.New(clientv3.Config{
			Endpoints: c.Endpoints, Logger: zap.NewNop(), TLS: &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer admin.Close()
		ctx := t.Context()
		do := func(_ any, err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		do(admin.UserAdd(ctx, "root", "root"))
		do(admin.UserGrantRole(ctx, "root", "root"))
		do(admin.UserAdd(ctx, "rotor", "first"))
		do(admin.UserGrantRole(ctx, "rotor", "root"))
		do(admin.AuthEnable(ctx))
		dir := t.TempDir()
		password, ca := filepath.Join(dir, "password"), filepath.Join(dir, "ca.pem")
		replace(t, password, []byte("first\n"))
		replace(t, ca, read(t, cert))
		s := open(t, c.Hosts(), "mine", url.Values{"ca_file": {ca}, "cert_file": {cert}, "key_file": {key}, "user": {"rotor"}, "password_file": {password}, "timeout": {"2s"}})
		w := watchAll(t, s)
		worksAgain(t, s, w, "1")

		root, err := clientv3.New(clientv3.Config{
			Endpoints: c.Endpoints, Logger: zap.NewNop(), Username: "root", Password: "root",
			TLS: &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		replace(t, password, []byte("second\n"))
		do(root.UserChangePassword(ctx, "rotor", "second")) // which ends the tokens that it has
		worksAgain(t, s, w, "2")

		newCert, newKey := certificate(t)
		c.Kill(0)
		replace(t, ca, read(t, newCert))
		replace(t, cert, read(t, newCert))
		replace(t, key, read(t, newKey))
		c.Start(0)
		worksAgain(t, s, w, "3")
	})
}

// logged is a log that a test reads.
type logged struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logged) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), text)
}

// TestCompactionFails: a history that cannot be bounded is counted each time, and said once.
func TestCompactionFails(t *testing.T) {
	c := testenv.Etcd(t, "3.4", 1)
	config, err := etcd.ParseURL(etcd.Scheme + c.Hosts() + "/x?history=1&timeout=100ms")
	if err != nil {
		t.Fatal(err)
	}
	var log logged
	config.Log, config.CompactEvery = slog.New(slog.NewTextHandler(&log, nil)), time.Millisecond
	s, err := etcd.Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.CompactionsFailed() != 0 {
		t.Error("it fails from the start")
	}
	c.Kill(0)
	for s.CompactionsFailed() < 3 {
		time.Sleep(10 * time.Millisecond)
	}
	if n := log.count("not compacted"); n < 1 || int64(n) >= s.CompactionsFailed()+1 {
		t.Errorf("%d lines for %d failures: %s", n, s.CompactionsFailed(), log.buf.String())
	}
}
