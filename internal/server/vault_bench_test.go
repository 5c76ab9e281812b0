package server_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// bare is the least that does the same: net/http, encoding/json, AES-GCM, and a line of a log whose hashes are chained.
type bare struct {
	aead cipher.AEAD
	log  *os.File
	mu   sync.Mutex // guards last and the order of lines
	last [32]byte
}

type bareItem struct {
	Plaintext  string `json:"plaintext,omitempty"`
	Ciphertext string `json:"ciphertext,omitempty"`
}

func newBare(b *testing.B) *httptest.Server {
	b.Helper()
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		b.Fatal(err)
	}
	h := &bare{}
	if h.aead, err = cipher.NewGCM(block); err != nil {
		b.Fatal(err)
	}
	if h.log, err = os.Create(filepath.Join(b.TempDir(), "log")); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = h.log.Close() })
	s := httptest.NewUnstartedServer(h)
	s.TLS = &tls.Config{MinVersion: tls.VersionTLS13}
	s.StartTLS()
	b.Cleanup(s.Close)
	return s
}

func (h *bare) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var in struct {
		bareItem
		Batch []bareItem `json:"batch_input"`
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	data := map[string]any{}
	if in.Batch == nil {
		data["ciphertext"] = h.seal(in.Plaintext)
	} else {
		out := make([]bareItem, len(in.Batch))
		for i, it := range in.Batch {
			out[i].Ciphertext = h.seal(it.Plaintext)
		}
		data["batch_results"] = out
	}
	h.note(r)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"data": data})
}

func (h *bare) seal(text string) string {
	plain, _ := base64.StdEncoding.DecodeString(text)
	nonce := make([]byte, 12, 12+len(plain)+16)
	_, _ = rand.Read(nonce)
	return "vault:v1:" + base64.StdEncoding.EncodeToString(h.aead.Seal(nonce, nonce, plain, nil))
}

func (h *bare) note(r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	line, _ := json.Marshal(map[string]any{"time": time.Now(), "path": r.URL.Path, "from": r.RemoteAddr, "before": hex.EncodeToString(h.last[:])})
	h.last = sha256.Sum256(line)
	_, _ = h.log.Write(append(line, '\n'))
}

// flood sends b.N requests over 16 connections and says how many a second were answered.
func flood(b *testing.B, url, token string, body []byte) {
	b.Helper()
	const connections = 16
	var left atomic.Int64
	left.Store(int64(b.N))
	var all sync.WaitGroup
	b.ResetTimer()
	began := time.Now()
	for range connections {
		all.Go(func() {
			tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
			defer tr.CloseIdleConnections()
			c := &http.Client{Transport: tr}
			for left.Add(-1) >= 0 {
				r, err := http.NewRequest(http.MethodPost, url, bytes.NewReader(body)) //nolint:noctx // the benchmark ends with it
				if err != nil {
					b.Error(err)
					return
				}
				r.Header.Set("X-Vault-Token", token)
				resp, err := c.Do(r)
				if err != nil {
					b.Error(err)
					return
				}
				if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
					b.Errorf("%d, %v", resp.StatusCode, err)
				}
				resp.Body.Close()
			}
		})
	}
	all.Wait()
	b.ReportMetric(float64(b.N)/time.Since(began).Seconds(), "req/s")
}

// BenchmarkVault compares the front end, with policy and audit, with the bare handler: encrypt of 256 bytes, and of batches of 100.
func BenchmarkVault(b *testing.B) {
	one := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("x"), 256))
	single := []byte(`{"plaintext":"` + one + `"}`)
	batch := []byte(`{"batch_input":[` + strings.TrimSuffix(strings.Repeat(`{"plaintext":"`+one+`"},`, 100), ",") + `]}`)
	w := newWorld(b)
	c := w.operator()
	c.must("POST", "transit/keys/k", nil)
	for name, body := range map[string][]byte{"one": single, "batch": batch} {
		b.Run(fmt.Sprintf("%s/rotor", name), func(b *testing.B) { flood(b, c.address+"transit/encrypt/k", c.token, body) })
		b.Run(fmt.Sprintf("%s/bare", name), func(b *testing.B) { flood(b, newBare(b).URL+"/v1/transit/encrypt/k", c.token, body) })
	}
}
