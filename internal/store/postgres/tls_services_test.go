//go:build services

package postgres_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/postgres"
	"github.com/rotorkms/rotor/internal/testenv"
)

// certificate writes a self-signed one for 127.0.0.1 where the server can read it.
func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "rotor-postgres-tls-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "postgres"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if os.Getuid() == 0 { // the server runs as this user then
		nobody, err := user.Lookup("nobody")
		if err != nil {
			t.Fatal(err)
		}
		id, _ := strconv.Atoi(nobody.Uid)
		for _, path := range []string{dir, cert, key} {
			if err := os.Chown(path, id, id); err != nil {
				t.Fatal(err)
			}
		}
	}
	return cert, key
}

// TestEncrypted: what the URL says of TLS is done: the server's certificate is checked against the named root and name, and no answer of the
// server makes a connection plain.
func TestEncrypted(t *testing.T) {
	cert, key := certificate(t)
	other, _ := certificate(t)
	server := testenv.Postgres(t, "ssl=on", "ssl_cert_file="+cert, "ssl_key_file="+key)
	full := server.URL + "?sslmode=verify-full&sslrootcert="
	s := mustOpen(t, full+cert+"&schema=tls", postgres.Options{})
	mustCommit(t, s, put("k", "v"))
	var plain, encrypted int
	err := admin(t, server.URL).QueryRow(t.Context(), `SELECT count(*) FILTER (WHERE NOT ssl), count(*) FILTER (WHERE ssl) FROM pg_stat_ssl
		JOIN pg_stat_activity USING (pid) WHERE application_name = 'rotor'`).Scan(&plain, &encrypted)
	if err != nil || plain != 0 || encrypted < 2 {
		t.Errorf("%d plain connections, %d encrypted, %v", plain, encrypted, err)
	}
	bare := testenv.Postgres(t)
	for name, url := range map[string]string{
		"another root":     full + other,
		"another name":     strings.Replace(full, "127.0.0.1", "localhost", 1) + cert,
		"no TLS":           strings.Replace(full, strconv.Itoa(server.Port), strconv.Itoa(bare.Port), 1) + cert,
		"no TLS, required": bare.URL + "?sslmode=require",
	} {
		if _, err := postgres.Open(t.Context(), url, postgres.Options{Log: quiet}); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
