package testenv

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
)

// TransitToken is the token that a Transit takes.
const TransitToken = "s.0123456789"

// Transit is the transit engine of a Vault-compatible server from what is known of its HTTP API. Neither the true server nor its documentation was
// at hand.
type Transit struct {
	path string // file that keeps the keys; empty: they are gone with the process

	mu   sync.Mutex // guards keys
	keys map[string]*transitKey
}

type transitKey struct {
	Key       []byte `json:"key"`
	Deletable bool   `json:"deletable"`
}

// NewTransit makes an engine that keeps its keys in a file, or in memory alone.
func NewTransit(path string) (*Transit, error) {
	e := &Transit{path: path, keys: map[string]*transitKey{}}
	if path == "" {
		return e, nil
	}
	b, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return e, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &e.keys)
	}
	return e, err
}

// Keys are the names of the keys that there are.
func (e *Transit) Keys() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Sorted(maps.Keys(e.keys))
}

// TransitFail answers as the true server does when it has no answer.
func TransitFail(w http.ResponseWriter, status int, why ...string) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": why})
}

func transitData(w http.ResponseWriter, data map[string]any) {
	_ = json.NewEncoder(w).Encode(map[string]any{"data": data})
}

type transitBody struct {
	Plaintext       []byte `json:"plaintext"`
	Ciphertext      string `json:"ciphertext"`
	Type            string `json:"type"`
	DeletionAllowed bool   `json:"deletion_allowed"`
}

// ServeHTTP implements http.Handler.
func (e *Transit) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("X-Vault-Token") != TransitToken {
		TransitFail(w, http.StatusForbidden, "permission denied")
		return
	}
	var body transitBody
	if r.ContentLength > 0 && json.NewDecoder(r.Body).Decode(&body) != nil {
		TransitFail(w, http.StatusBadRequest, "failed to parse JSON input")
		return
	}
	path, ok := strings.CutPrefix(r.URL.Path, "/v1/transit/")
	op, key, _ := strings.Cut(path, "/")
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case !ok:
		TransitFail(w, http.StatusNotFound)
	case op == "keys":
		e.manage(w, r, key, body)
	case (op == "encrypt" || op == "decrypt") && e.keys[key] == nil:
		TransitFail(w, http.StatusBadRequest, "encryption key not found")
	case op == "encrypt":
		nonce := make([]byte, 12)
		rand.Read(nonce)
		transitData(w, map[string]any{"ciphertext": "vault:v1:" + base64.StdEncoding.EncodeToString(e.keys[key].aead().Seal(nonce, nonce, body.Plaintext, nil))})
	case op == "decrypt":
		e.keys[key].decrypt(w, body.Ciphertext)
	default:
		TransitFail(w, http.StatusMethodNotAllowed, "unsupported operation")
	}
}

// manage lists, makes, configures and deletes keys. Call with mu held.
func (e *Transit) manage(w http.ResponseWriter, r *http.Request, key string, body transitBody) {
	key, config := strings.CutSuffix(key, "/config")
	there := e.keys[key]
	switch {
	case key == "" && r.URL.Query().Get("list") == "true":
		if len(e.keys) == 0 {
			TransitFail(w, http.StatusNotFound)
			return
		}
		transitData(w, map[string]any{"keys": slices.Sorted(maps.Keys(e.keys))})
		return
	case r.Method == http.MethodDelete && (there == nil || !there.Deletable):
		TransitFail(w, http.StatusBadRequest, "deletion is not allowed for this key")
		return
	case r.Method == http.MethodDelete:
		delete(e.keys, key)
	case config && there != nil:
		there.Deletable = body.DeletionAllowed
	case r.Method == http.MethodPost && body.Type == "aes256-gcm96":
		if there == nil {
			e.keys[key] = &transitKey{Key: make([]byte, 32)}
			rand.Read(e.keys[key].Key)
		}
	default:
		TransitFail(w, http.StatusMethodNotAllowed, "unsupported operation")
		return
	}
	if err := e.save(); err != nil {
		TransitFail(w, http.StatusInternalServerError, err.Error())
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// save keeps the keys before an answer says that they are there. Call with mu held.
func (e *Transit) save() error {
	if e.path == "" {
		return nil
	}
	b, err := json.Marshal(e.keys)
	if err != nil {
		return err
	}
	if err := os.WriteFile(e.path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(e.path+".new", e.path)
}

func (k *transitKey) aead() cipher.AEAD {
	block, err := aes.NewCipher(k.Key)
	if err != nil {
		panic(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return gcm
}

func (k *transitKey) decrypt(w http.ResponseWriter, text string) {
	body, ok := strings.CutPrefix(text, "vault:v1:")
	b, err := base64.StdEncoding.Strict().DecodeString(body)
	if !ok || err != nil || len(b) < 12 {
		TransitFail(w, http.StatusBadRequest, "invalid ciphertext")
		return
	}
	plain, err := k.aead().Open(nil, b[:12], b[12:], nil)
	if err != nil {
		TransitFail(w, http.StatusBadRequest, "cipher: message authentication failed")
		return
	}
	transitData(w, map[string]any{"plaintext": plain})
}
