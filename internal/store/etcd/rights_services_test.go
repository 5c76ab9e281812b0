//go:build services

package etcd_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/etcd"
	"github.com/rotorkms/rotor/internal/testenv"
)

// certificate writes a self-signed one for 127.0.0.1, good for server and client.
func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "etcd"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// refused checks that a store cannot be opened.
func refused(t *testing.T, what, hosts, prefix string, parameters url.Values) {
	t.Helper()
	parameters.Set("timeout", "500ms")
	config, err := etcd.ParseURL(etcd.Scheme + hosts + "/" + prefix + "?" + parameters.Encode())
	if err != nil {
		t.Fatal(err)
	}
	if s, err := etcd.Open(t.Context(), config); err == nil {
		t.Errorf("%s: opened", what)
		s.Close()
	}
}

// TestRights: TLS with certificates on both sides, and a user who may write under the prefix alone; a token that the member has forgotten is replaced.
func TestRights(t *testing.T) {
	onVersions(t, func(t *testing.T, version string) {
		cert, key := certificate(t)
		other, otherKey := certificate(t)
		c := testenv.Etcd(t, version, 1, "--cert-file="+cert, "--key-file="+key, "--client-cert-auth", "--trusted-ca-file="+cert)
		password := filepath.Join(t.TempDir(), "password")
		if err := os.WriteFile(password, []byte("fine for a test\nnot this\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		admin, err := clientv3.New(clientv3.Config{Endpoints: c.Endpoints, Logger: zap.NewNop(), TLS: &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true}})
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
		do(admin.UserAdd(ctx, "rotor", "fine for a test"))
		do(admin.RoleAdd(ctx, "rotor"))
		do(admin.RoleGrantPermission(ctx, "rotor", "mine/", clientv3.GetPrefixRangeEnd("mine/"), clientv3.PermissionType(clientv3.PermReadWrite)))
		do(admin.UserGrantRole(ctx, "rotor", "rotor"))
		do(admin.AuthEnable(ctx))

		with := func(change ...string) url.Values {
			v := url.Values{"ca_file": {cert}, "cert_file": {cert}, "key_file": {key}, "user": {"rotor"}, "password_file": {password}}
			for i := 0; i < len(change); i += 2 {
				if v.Del(change[i]); change[i+1] != "" {
					v.Set(change[i], change[i+1])
				}
			}
			return v
		}
		refused(t, "no TLS", c.Hosts(), "mine", url.Values{})
		refused(t, "another authority", c.Hosts(), "mine", with("ca_file", other))
		refused(t, "another certificate", c.Hosts(), "mine", with("cert_file", other, "key_file", otherKey))
		refused(t, "no certificate", c.Hosts(), "mine", with("cert_file", "", "key_file", ""))
		refused(t, "a wrong password", c.Hosts(), "mine", with("password_file", cert))
		refused(t, "another prefix", c.Hosts(), "others", with())

		s := open(t, c.Hosts(), "mine", with("history", "2"))
		rev := commit(t, s, put("k", "1"))
		c.Kill(0) // simple tokens live in the member's memory
		c.Start(0)
		if _, err := s.Commit(ctx, []store.Cond{{Key: "k", Rev: rev}}, []store.Op{put("k", "2")}); err != nil && !errors.Is(err, store.ErrUnknown) {
			t.Errorf("commit with a token that is forgotten: %v", err)
		}
		for range 4 {
			commit(t, s, put("k", "3"))
		}
		for events, err := range s.Watch(ctx, "", rev) {
			if err != nil || len(events) != 1 {
				t.Errorf("watch: %v, %v", events, err)
			}
			break
		}
		// Who has rights on a prefix alone may not compact the cluster, from some version on: docs/howto/etcd.md says what to do then.
		if err := s.Compact(ctx); err != nil && (version == "3.4" || !errors.Is(err, rpctypes.ErrPermissionDenied)) {
			t.Errorf("compact: %v", err)
		}
	})
}
