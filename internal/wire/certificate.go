package wire

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
)

// lookEvery is how often the files of a certificate are looked at, at most.
const lookEvery = 10 * time.Second

// KeyPair is a server's own certificate in PEM files, which are read again when they change: with the first connection that comes more than ten
// seconds later. What was read before stays when the new files are wrong. Safe for concurrent use.
type KeyPair struct {
	certificate, key string
	now              func() time.Time
	log              *slog.Logger

	mu     sync.Mutex // guards what follows
	pair   *tls.Certificate
	seen   [2]stamp
	looked time.Time
}

// stamp is what changes with a file.
type stamp struct {
	time time.Time
	size int64
}

// NewKeyPair reads a certificate and its key. fault.Invalid.
func NewKeyPair(certificate, key string, now func() time.Time, log *slog.Logger) (*KeyPair, error) {
	k := &KeyPair{certificate: certificate, key: key, now: now, log: log}
	if err := k.read(k.stamps()); err != nil {
		return nil, err
	}
	k.looked = now()
	return k, nil
}

func (k *KeyPair) stamps() (s [2]stamp) {
	for i, path := range []string{k.certificate, k.key} {
		if info, err := os.Stat(path); err == nil {
			s[i] = stamp{info.ModTime(), info.Size()}
		}
	}
	return s
}

// read loads the files and checks that they belong together. Call with mu held, or before anybody else knows of it.
func (k *KeyPair) read(seen [2]stamp) error {
	pair, err := tls.LoadX509KeyPair(k.certificate, k.key)
	if err != nil {
		return fault.Wrap(fault.Invalid, k.certificate, err).WithHint("PEM files of a certificate, with those between it and its root, and of its private key")
	}
	if pair.Leaf == nil {
		if pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
			return fmt.Errorf("parse %s: %w", k.certificate, err)
		}
	}
	k.pair, k.seen = &pair, seen
	return nil
}

// Get implements tls.Config.GetCertificate.
func (k *KeyPair) Get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if now := k.now(); now.Sub(k.looked) >= lookEvery || now.Before(k.looked) {
		k.looked = now
		if seen := k.stamps(); seen != k.seen {
			if err := k.read(seen); err != nil {
				k.seen = seen // said once, until the files change again
				k.log.Error("certificate not reloaded, the old one stays", "error", err)
			} else {
				k.log.Info("certificate reloaded", "path", k.certificate, "until", k.pair.Leaf.NotAfter)
			}
		}
	}
	return k.pair, nil
}

// OwnTLS is TLS for a listener with a certificate of its own, for callers that know hosts and not SPIFFE IDs. TLS 1.3 unless old asks for 1.2 too,
// which then has forward secrecy and authenticated encryption alone.
func OwnTLS(k *KeyPair, old bool) *tls.Config {
	c := &tls.Config{
		MinVersion: tls.VersionTLS13, ClientAuth: tls.RequestClientCert, NextProtos: []string{"h2", "http/1.1"}, GetCertificate: k.Get,
		CurvePreferences: []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256},
	}
	if old {
		c.MinVersion = tls.VersionTLS12
		c.CipherSuites = []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		}
	}
	return c
}
