//go:build services

package testenv

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// TransitServer is a Transit in a process of its own, which keeps its keys.
type TransitServer struct {
	Address   string // https://127.0.0.1:port
	CAFile    string
	TokenFile string

	t    testing.TB
	dir  string
	http *http.Client
	proc *process
}

// transitChild is the first argument of a test's binary that is to be a Transit.
const transitChild = "transit-server"

// Child makes of a test's binary, which StartTransit runs again, what it is to be. Call it first in TestMain.
func Child() {
	if len(os.Args) == 4 && os.Args[1] == transitChild {
		fmt.Fprintln(os.Stderr, serveTransit(os.Args[2], os.Args[3]))
		os.Exit(1)
	}
}

func serveTransit(dir, address string) error {
	e, err := NewTransit(filepath.Join(dir, "keys.json"))
	if err != nil {
		return err
	}
	s := &http.Server{Addr: address, Handler: e, ReadHeaderTimeout: startTime}
	return s.ListenAndServeTLS(filepath.Join(dir, "ca.pem"), filepath.Join(dir, "key.pem"))
}

// StartTransit starts a server. TestMain has to call Child. It is ended with the test.
func StartTransit(t testing.TB) *TransitServer {
	t.Helper()
	dir := t.TempDir()
	s := &TransitServer{
		t: t, dir: dir, Address: fmt.Sprintf("https://127.0.0.1:%d", FreePort(t)), CAFile: filepath.Join(dir, "ca.pem"), TokenFile: filepath.Join(dir, "token"),
	}
	pool := Certificate(t, s.CAFile, filepath.Join(dir, "key.pem"))
	if err := os.WriteFile(s.TokenFile, []byte(TransitToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.http = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}}
	t.Cleanup(s.Kill)
	s.Start()
	return s
}

// Certificate makes a certificate for the loopback, its own authority, for servers and clients.
func Certificate(t testing.TB, certificate, key string) *x509.CertPool {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tpl, tpl, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	for path, b := range map[string]*pem.Block{certificate: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return pool
}

// Start starts the server again after Kill, with its keys, and waits until it answers.
func (s *TransitServer) Start() {
	s.t.Helper()
	self, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	s.proc = start(s.t, 0, self, transitChild, s.dir, s.Address[len("https://"):])
	s.proc.await(s.t, func(ctx context.Context) bool {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Address+"/v1/transit/keys?list=true", nil)
		if err != nil {
			return false
		}
		resp, err := s.http.Do(r)
		if err != nil {
			return false
		}
		return resp.Body.Close() == nil
	})
}

// Kill ends the server at once.
func (s *TransitServer) Kill() {
	if s.proc != nil {
		s.proc.kill()
	}
}

// Freeze stops the server (SIGSTOP); Thaw lets it go on.
func (s *TransitServer) Freeze() { s.proc.signal(syscall.SIGSTOP) }

// Thaw undoes Freeze.
func (s *TransitServer) Thaw() { s.proc.signal(syscall.SIGCONT) }
