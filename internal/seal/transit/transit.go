// Package transit seals with the transit engine of a Vault-compatible server (its HTTP API, "Transit secrets engine"): the root is encrypted
// there, under one key for each generation, and forgetting deletes keys. Two calls, no SDK.
package transit

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/secret"
)

const (
	version   = 1
	maxAnswer = 1 << 20
	maxBlob   = 4 << 10
	patience  = 10 * time.Second
	keyType   = "aes256-gcm96"
)

// Config says which server, and which keys of it.
type Config struct {
	Address   string // https://host:port
	Mount     string // of the engine, for example "transit"
	Key       string // keys are called KEY-GENERATION
	TokenFile string // read for each call, so that whoever renews it just writes it
	CAFile    string // PEM; empty: the system's authorities
	Namespace string // of the server, where it has them; empty: none
}

// Sealer encrypts with keys that never leave the server. Safe for concurrent use.
type Sealer struct {
	config Config
	host   string
	http   *http.Client

	mu    sync.Mutex // guards known
	known map[uint64]bool
}

var name = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$`)

// New makes the sealer. It asks the server nothing. fault.Invalid, NotFound.
func New(c Config) (*Sealer, error) {
	bad := func(field, hint string) (*Sealer, error) {
		return nil, fault.New(fault.Invalid, field).WithHint("%s", hint)
	}
	u, err := url.Parse(c.Address)
	switch {
	case err != nil || u.Scheme != "https" || u.Host == "" || u.Path != "" || u.RawQuery != "" || u.User != nil:
		return bad("address", "https://HOST:PORT: the root key passes through it")
	case !name.MatchString(c.Mount) || strings.Contains(c.Mount, ".."):
		return bad("mount", "the path of the transit engine, for example transit")
	case !name.MatchString(c.Key) || strings.Contains(c.Key, "/"):
		return bad("key", "letters, digits and . _ -")
	case c.TokenFile == "":
		return bad("token_file", "name the file with the token")
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		b, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fault.Wrap(fault.NotFound, "CA file "+c.CAFile, err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(b) {
			return bad("ca_file", "PEM")
		}
	}
	return &Sealer{
		config: c, host: u.Host, known: map[uint64]bool{},
		http: &http.Client{
			Timeout: patience, Transport: &http.Transport{TLSClientConfig: t, ForceAttemptHTTP2: true, TLSHandshakeTimeout: patience, MaxIdleConnsPerHost: 2},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // a token goes nowhere else
		},
	}, nil
}

// ID implements seal.Sealer: "transit:MOUNT/KEY@HOST".
func (s *Sealer) ID() string { return "transit:" + s.config.Mount + "/" + s.config.Key + "@" + s.host }

// prefix binds what is encrypted to its purpose and generation.
func prefix(generation uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte("rotor/seal/transit/1\x00"), generation)
}

// Wrap implements seal.Sealer. The blob is version 1, generation 8, and the server's ciphertext.
func (s *Sealer) Wrap(ctx context.Context, root secret.Bytes, generation uint64) ([]byte, error) {
	if err := s.ensure(ctx, generation); err != nil {
		return nil, err
	}
	plain := append(prefix(generation), root.Reveal()...)
	defer clear(plain)
	var out struct {
		Ciphertext string `json:"ciphertext"`
	}
	if err := s.call(ctx, http.MethodPost, "encrypt/"+s.key(generation), map[string]any{"plaintext": plain}, &out); err != nil {
		if errors.Is(err, errMissing) {
			return nil, s.gone(ctx, generation)
		}
		return nil, unavailable(err)
	}
	if out.Ciphertext == "" || len(out.Ciphertext) > maxBlob-9 {
		return nil, unavailable(errors.New("the server answered no ciphertext"))
	}
	return append(binary.BigEndian.AppendUint64([]byte{version}, generation), out.Ciphertext...), nil
}

// Unwrap implements seal.Sealer.
func (s *Sealer) Unwrap(ctx context.Context, blob []byte) (secret.Bytes, error) {
	if len(blob) < 10 || len(blob) > maxBlob || blob[0] != version || !canonical(string(blob[9:])) {
		return secret.Bytes{}, seal.ErrWrongSealer
	}
	generation := binary.BigEndian.Uint64(blob[1:])
	var out struct {
		Plaintext string `json:"plaintext"`
	}
	err := s.call(ctx, http.MethodPost, "decrypt/"+s.key(generation), map[string]any{"ciphertext": string(blob[9:])}, &out)
	switch {
	case errors.Is(err, errMissing):
		return secret.Bytes{}, s.gone(ctx, generation)
	case errors.Is(err, errRefused):
		return secret.Bytes{}, fmt.Errorf("%w: %w", seal.ErrWrongSealer, err)
	case err != nil:
		return secret.Bytes{}, unavailable(err)
	}
	plain, err := base64.StdEncoding.DecodeString(out.Plaintext)
	defer clear(plain)
	root, ok := bytes.CutPrefix(plain, prefix(generation))
	if err != nil || !ok {
		return secret.Bytes{}, seal.ErrWrongSealer
	}
	return secret.Copy(root), nil
}

// header is what servers write in front of a ciphertext, with the version of their key.
var header = regexp.MustCompile(`^vault:v[1-9][0-9]*:`)

// canonical tells whether a ciphertext is as the server wrote it. Servers also open others: version 0 for 1, line ends within it, any unused bits at its end.
func canonical(ciphertext string) bool {
	text := ciphertext[len(header.FindString(ciphertext)):]
	raw, err := base64.StdEncoding.DecodeString(text)
	return err == nil && len(text) < len(ciphertext) && base64.StdEncoding.EncodeToString(raw) == text
}

// Forget implements seal.Sealer: the keys of older generations are deleted. What the server keeps of deleted keys in backups of its own is
// out of reach.
func (s *Sealer) Forget(ctx context.Context, before uint64) error {
	all, err := s.list(ctx)
	if err != nil {
		return unavailable(err)
	}
	for _, g := range all {
		if g >= before {
			continue
		}
		if err := s.call(ctx, http.MethodPost, "keys/"+s.key(g)+"/config", map[string]any{"deletion_allowed": true}, nil); err != nil && !errors.Is(err, errMissing) {
			return unavailable(err)
		}
		if err := s.call(ctx, http.MethodDelete, "keys/"+s.key(g), nil, nil); err != nil && !errors.Is(err, errMissing) {
			return unavailable(err)
		}
		s.mu.Lock()
		delete(s.known, g)
		s.mu.Unlock()
	}
	return nil
}

func (s *Sealer) key(generation uint64) string {
	return s.config.Key + "-" + strconv.FormatUint(generation, 10)
}

// ensure makes the key of a generation if it is the newest; one that is missing below the newest was forgotten.
func (s *Sealer) ensure(ctx context.Context, generation uint64) error {
	s.mu.Lock()
	known := s.known[generation]
	s.mu.Unlock()
	if known {
		return nil
	}
	all, err := s.list(ctx)
	if err != nil {
		return unavailable(err)
	}
	there, newer := false, false
	for _, g := range all {
		there, newer = there || g == generation, newer || g > generation
	}
	switch {
	case there:
	case newer:
		return seal.ErrForgotten
	default:
		if err := s.call(ctx, http.MethodPost, "keys/"+s.key(generation), map[string]any{"type": keyType}, nil); err != nil {
			return unavailable(err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known[generation] = true
	return nil
}

// gone says what a missing key means: forgotten when there are newer ones, never made otherwise.
func (s *Sealer) gone(ctx context.Context, generation uint64) error {
	all, err := s.list(ctx)
	if err != nil {
		return unavailable(err)
	}
	for _, g := range all {
		if g > generation {
			return seal.ErrForgotten
		}
	}
	return seal.ErrWrongSealer
}

// list gives the generations that have keys.
func (s *Sealer) list(ctx context.Context) ([]uint64, error) {
	var out struct {
		Keys []string `json:"keys"`
	}
	err := s.call(ctx, http.MethodGet, "keys?list=true", nil, &out)
	if errors.Is(err, errMissing) { // no key at all
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []uint64
	for _, k := range out.Keys {
		text, ok := strings.CutPrefix(k, s.config.Key+"-")
		if g, err := strconv.ParseUint(text, 10, 64); ok && err == nil && s.key(g) == k {
			all = append(all, g)
		}
	}
	return all, nil
}

var (
	errMissing = errors.New("the server has no such key")
	errRefused = errors.New("the server refused the ciphertext")
)

func unavailable(err error) error { return fmt.Errorf("%w: %w", seal.ErrUnavailable, err) }

// call sends one request and decodes "data" of the answer. errMissing, errRefused; anything else is no answer.
func (s *Sealer) call(ctx context.Context, method, path string, body map[string]any, data any) error {
	token, err := os.ReadFile(s.config.TokenFile)
	if err != nil {
		return err
	}
	defer clear(token)
	b, err := json.Marshal(body) // []byte becomes base64
	if err != nil {
		return err
	}
	defer clear(b)
	if body == nil {
		b = nil
	}
	r, err := http.NewRequestWithContext(ctx, method, s.config.Address+"/v1/"+s.config.Mount+"/"+path, bytes.NewReader(b))
	if err != nil {
		return err
	}
	r.Header.Set("X-Vault-Token", strings.TrimSpace(string(token)))
	r.Header.Set("X-Vault-Request", "true")
	if s.config.Namespace != "" {
		r.Header.Set("X-Vault-Namespace", s.config.Namespace)
	}
	resp, err := s.http.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }() // only read
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return err
	}
	defer clear(answer)
	return decode(resp.StatusCode, answer, data)
}

// decode reads an answer: {"data": …}, or {"errors": ["…"]} with a status.
func decode(status int, answer []byte, data any) error {
	var out struct {
		Data   json.RawMessage `json:"data"`
		Errors []string        `json:"errors"`
	}
	if err := json.Unmarshal(answer, &out); err != nil && len(answer) > 0 {
		return fmt.Errorf("the server answered %d and no JSON", status)
	}
	why := strings.Join(out.Errors, "; ")
	switch {
	case status == http.StatusNotFound, status == http.StatusBadRequest && strings.Contains(why, "key not found"):
		return errMissing
	case status == http.StatusBadRequest:
		return fmt.Errorf("%w: %.200s", errRefused, why)
	case status < 200 || status > 299:
		return fmt.Errorf("the server answered %d: %.200s", status, why)
	case data == nil:
		return nil
	}
	if err := json.Unmarshal(out.Data, data); err != nil {
		return errors.New("the server answered without data")
	}
	return nil
}
