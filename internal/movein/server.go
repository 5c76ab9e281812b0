// Package movein copies keys of transit engines from one server that speaks Vault's API to another, which is rotor, and proves that they are the same
// there. It needs of both what any client may ask; secrets pass through the process that copies and are kept nowhere.
package movein

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/transit"
)

// maxReply bounds an answer of a server, in bytes: a backup and what is around it.
const maxReply = transit.MaxBackup + 1<<20

// Server is one end: a transit engine of a server.
type Server struct {
	HTTP      *http.Client
	URL       string // https://host:port
	Mount     string // of the engine, without slashes at its ends
	Namespace string // of the server; empty: its default
	Token     func() (string, error)
	What      string // for errors, for example "source"
}

// path is below the engine's mount.
func (s *Server) path(parts ...string) string {
	for i, p := range parts {
		parts[i] = url.PathEscape(p)
	}
	return s.URL + "/v1/" + s.Mount + "/" + strings.Join(parts, "/")
}

// get asks for an answer's data; out is nil when that does not matter. fault.NotFound, Denied, Unavailable, Invalid with what the server says.
func (s *Server) get(ctx context.Context, method string, out any, parts ...string) error {
	return s.do(ctx, method, s.path(parts...), nil, out)
}

// post sends a body that has no secrets.
func (s *Server) post(ctx context.Context, body, out any, parts ...string) error {
	b, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	return s.do(ctx, http.MethodPost, s.path(parts...), b, out)
}

// restore gives the server a backup.
func (s *Server) restore(ctx context.Context, key string, backup secret.Bytes) error {
	const front, back = `{"backup":"`, `"}` // base64 needs no escapes
	body := slices.Concat([]byte(front), backup.Reveal(), []byte(back))
	defer clear(body)
	return s.do(ctx, http.MethodPost, s.path("restore", key), body, nil)
}

func (s *Server) do(ctx context.Context, method, to string, body []byte, out any) error {
	r, err := http.NewRequestWithContext(ctx, method, to, bytes.NewReader(body))
	if err != nil {
		return fault.Wrap(fault.Invalid, s.What, err)
	}
	token, err := s.Token()
	if err != nil {
		return err
	}
	r.Header.Set("X-Vault-Token", token)
	r.Header.Set("X-Vault-Request", "true") // agents of Vault ask for it
	if s.Namespace != "" {
		r.Header.Set("X-Vault-Namespace", s.Namespace)
	}
	resp, err := s.HTTP.Do(r)
	if strange := new(tls.CertificateVerificationError); errors.As(err, &strange) {
		return fault.Wrap(fault.Unavailable, s.What, err).WithHint("its certificate is not of an authority that is trusted here: --ca-file or VAULT_CACERT names the file with its authority")
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, s.What, err)
	}
	defer func() { _ = resp.Body.Close() }() // only read
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxReply+1))
	defer clear(b)
	if err != nil {
		return fault.Wrap(fault.Unavailable, s.What, err)
	}
	if len(b) > maxReply {
		return fault.New(fault.TooLarge, "answer of "+s.What).WithHint("at most %d bytes", maxReply)
	}
	if resp.StatusCode/100 != 2 {
		return s.refusal(resp.StatusCode, b)
	}
	if out == nil {
		return nil
	}
	envelope := struct{ Data any }{out}
	if err := json.Unmarshal(b, &envelope); err != nil {
		return fault.New(fault.Invalid, "answer of "+s.What).WithHint("it is not one of a transit engine")
	}
	return nil
}

// errNothing is of an answer that says that a path is right and nothing is there: a list without elements, a key that is not.
var errNothing = errors.New("nothing is there")

// refusal makes a fault of what a server says.
func (s *Server) refusal(status int, b []byte) error {
	var said struct{ Errors []string }
	_ = json.Unmarshal(b, &said) // then it said nothing that can be read
	code := fault.Invalid
	switch {
	case status == http.StatusNotFound:
		code = fault.NotFound
	case status == http.StatusForbidden:
		code = fault.Denied
	case status/100 == 5:
		code = fault.Unavailable
	}
	text := strings.Join(strings.Fields(strings.Join(said.Errors, "; ")), " ")
	switch {
	case code == fault.NotFound && text == "":
		return fault.Wrap(code, s.What, errNothing)
	case code == fault.NotFound && strings.HasPrefix(text, "no handler for route"):
		return fault.New(code, s.What).WithHint("it has no engine at %s/; a mount of type transit makes one", s.Mount)
	}
	if len(text) > 300 {
		text = text[:300]
	}
	return fault.New(code, s.What).WithHint("it answers %d: %s", status, text)
}

// text is a string of an answer that is a secret. It holds no escapes but line ends, as base64 and PEM are.
type text struct{ secret.Bytes }

// UnmarshalJSON reads the string.
func (t *text) UnmarshalJSON(b []byte) error {
	if len(b) < 2 || b[0] != '"' {
		return fault.New(fault.Invalid, "answer").WithHint("a string was expected")
	}
	out := make([]byte, 0, len(b))
	for i := 1; i < len(b)-1; i++ {
		if b[i] != '\\' {
			out = append(out, b[i])
			continue
		}
		if i++; b[i] != 'n' {
			return fault.New(fault.Invalid, "answer").WithHint("base64 or PEM was expected")
		}
		out = append(out, '\n')
	}
	t.Bytes = secret.Take(out)
	return nil
}

func b64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
