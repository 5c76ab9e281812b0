package main

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// bareVaultWord makes the process a bare server: what net/http, encoding/json, the cryptography and a log whose lines are chained by hashes take,
// and nothing else. It has no policy, no versions, no store, and its log is not durable before the answer.
const bareVaultWord = "bare-vault-child"

// bareVault is the bare server.
type bareVault struct {
	aead cipher.AEAD
	sign ed25519.PrivateKey

	mu   sync.Mutex // guards what follows
	log  *os.File
	last [sha256.Size]byte
}

// bareItem is a request and an item of a batch.
type bareItem struct {
	Plaintext  string `json:"plaintext,omitempty"`
	Ciphertext string `json:"ciphertext,omitempty"`
	Input      string `json:"input,omitempty"`
	Signature  string `json:"signature,omitempty"`

	Batch   []bareItem `json:"batch_input,omitempty"`
	Results []bareItem `json:"batch_results,omitempty"`
}

// bareAnswer has the members that clients of Vault read.
type bareAnswer struct {
	RequestID     string   `json:"request_id"`
	LeaseID       string   `json:"lease_id"`
	Renewable     bool     `json:"renewable"`
	LeaseDuration int      `json:"lease_duration"`
	Data          bareItem `json:"data"`
	WrapInfo      *string  `json:"wrap_info"`
	Warnings      []string `json:"warnings"`
	Auth          *string  `json:"auth"`
}

func bareVaultServer(_ context.Context, dir string) error {
	raw := make([]byte, 32)
	rand.Read(raw)
	block, err := aes.NewCipher(raw)
	if err != nil {
		return err
	}
	b := &bareVault{}
	if b.aead, err = cipher.NewGCM(block); err != nil {
		return err
	}
	if _, b.sign, err = ed25519.GenerateKey(rand.Reader); err != nil {
		return err
	}
	if b.log, err = os.OpenFile(filepath.Join(dir, "bare.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600); err != nil {
		return err
	}
	mux := http.NewServeMux()
	for path, f := range map[string]func(*bareItem) error{"encrypt": b.encrypt, "decrypt": b.decrypt, "rewrap": b.rewrap, "datakey/plaintext": b.dataKey, "sign": b.signed} {
		mux.HandleFunc("POST /v1/transit/"+path+"/{key}", b.handle(path, f))
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	chain, key, err := selfSigned()
	if err != nil {
		return err
	}
	conf := &tls.Config{
		MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256}, NextProtos: []string{"h2", "http/1.1"},
		Certificates: []tls.Certificate{{Certificate: chain, PrivateKey: key}},
	}
	fmt.Println("listening on", l.Addr())
	s := &http.Server{Handler: mux, TLSConfig: conf, ReadHeaderTimeout: time.Minute}
	return s.Serve(tls.NewListener(l, conf))
}

func (b *bareVault) handle(path string, f func(*bareItem) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var item bareItem
		if err := json.NewDecoder(r.Body).Decode(&item); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		out := bareAnswer{RequestID: bareID()}
		items := []bareItem{item}
		if len(item.Batch) > 0 {
			items = item.Batch
		}
		for i := range items {
			if err := f(&items[i]); err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
		}
		if out.Data = items[0]; len(item.Batch) > 0 {
			out.Data = bareItem{Results: items}
		}
		if err := b.note(path, r.PathValue("key"), out.RequestID); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(out) // who hung up has no use of it
	}
}

func bareID() string {
	var id [16]byte
	rand.Read(id[:])
	return hex.EncodeToString(id[:])
}

// bareLine is a line of the log.
type bareLine struct {
	Time     time.Time `json:"time"`
	ID       string    `json:"id"`
	Path     string    `json:"path"`
	Key      string    `json:"key"`
	Previous string    `json:"previous"`
}

func (b *bareVault) note(path, key, id string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	line, err := json.Marshal(bareLine{time.Now(), id, path, key, hex.EncodeToString(b.last[:])})
	if err != nil {
		return err
	}
	b.last = sha256.Sum256(line)
	_, err = b.log.Write(append(line, '\n'))
	return err
}

func (b *bareVault) encrypt(i *bareItem) error {
	plain, err := base64.StdEncoding.DecodeString(i.Plaintext)
	if err != nil {
		return err
	}
	*i = bareItem{Ciphertext: b.seal(plain)}
	return nil
}

func (b *bareVault) seal(plain []byte) string {
	nonce := make([]byte, b.aead.NonceSize(), b.aead.NonceSize()+len(plain)+b.aead.Overhead())
	rand.Read(nonce)
	return "vault:v1:" + base64.StdEncoding.EncodeToString(b.aead.Seal(nonce, nonce, plain, nil))
}

func (b *bareVault) open(text string) ([]byte, error) {
	sealed, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(text, "vault:v1:"))
	if err != nil {
		return nil, err
	}
	n := b.aead.NonceSize()
	if len(sealed) < n {
		return nil, fmt.Errorf("%d bytes", len(sealed))
	}
	return b.aead.Open(nil, sealed[:n], sealed[n:], nil)
}

func (b *bareVault) decrypt(i *bareItem) error {
	plain, err := b.open(i.Ciphertext)
	*i = bareItem{Plaintext: base64.StdEncoding.EncodeToString(plain)}
	return err
}

func (b *bareVault) rewrap(i *bareItem) error {
	plain, err := b.open(i.Ciphertext)
	*i = bareItem{Ciphertext: b.seal(plain)}
	return err
}

func (b *bareVault) dataKey(i *bareItem) error {
	key := make([]byte, 32)
	rand.Read(key)
	*i = bareItem{Plaintext: base64.StdEncoding.EncodeToString(key), Ciphertext: b.seal(key)}
	return nil
}

func (b *bareVault) signed(i *bareItem) error {
	msg, err := base64.StdEncoding.DecodeString(i.Input)
	*i = bareItem{Signature: "vault:v1:" + base64.StdEncoding.EncodeToString(ed25519.Sign(b.sign, msg))}
	return err
}
