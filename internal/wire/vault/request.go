package vault

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/lenient"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/wire"
)

// request is one request as handlers see it.
type request struct {
	caller    policy.Caller
	namespace keyring.Namespace
	life      uint64 // of the namespace
	mount     string // without a slash at its end: transit, auth/approle; "" of routes from the root
	path      string // below /v1/; of a list with a slash at its end
	op        operation
	vars      map[string]string // of the path
	header    http.Header
	body      body
	raw       []byte  // the body as it came
	lent      *buffer // that raw stands in until the answer is written; nil: it has its own memory
	wrapTTL   time.Duration
	address   string         // of the client
	late      *asking        // a need that the caller lacks so far
	ask       policy.Request // that caller.Request points to
	strange   []string       // names in the body that the path does not know, the first of them
	table     *table         // of the server, for questions about other paths
	known     bool           // what this server knows of keys is enough
}

// Bounds of what an answer says of names that a path does not know.
const (
	maxStrange     = 16 // names
	maxStrangeName = 64 // bytes that are shown of one
)

// otherNames are of members that transit paths know beside their fields, as older or single names of them.
var otherNames = []string{"algorithm", "encrypt_padding_scheme", "decrypt_padding_scheme", "reference"}

// strangeTo notes the names that a path of a transit engine does not know: one that is misspelt must not pass for one that counts. nil elsewhere.
func (r *request) strangeTo(to target) func(name []byte) {
	if to.engine != "transit" {
		return nil
	}
	return func(name []byte) {
		is := func(f field) bool { return f.name == string(name) }
		if len(r.strange) == maxStrange || slices.ContainsFunc(to.fields, is) || slices.Contains(otherNames, string(name)) {
			return
		}
		r.strange = append(r.strange, fmt.Sprintf("%.*s", maxStrangeName, name))
	}
}

// target is where a request leads.
type target struct {
	*route
	engine, mount, path string
	namespace           keyring.Namespace
	life                uint64 // of the namespace, before it was looked for
	vars                map[string]string
}

// resolve finds the route of a request.
func (s *server) resolve(r *http.Request) (target, error) {
	ns, life, err := s.config.namespaceOf(r.Header)
	if err != nil {
		return target{}, err
	}
	to := target{namespace: ns, life: life, path: strings.TrimPrefix(r.URL.Path, prefix)}
	err = s.table.lead(s.config, &to)
	return to, err
}

// lead finds the route of a path.
func (t *table) lead(c Config, to *target) error {
	path := strings.TrimSuffix(to.path, "/")
	var ok bool
	if to.route, to.vars, ok = t.find("", path); ok {
		return nil
	}
	rest := ""
	if to.engine, to.mount, rest, ok = c.mounted(to.namespace, path); ok {
		if to.route, to.vars, ok = t.find(to.engine, rest); ok && named(to.engine, to.vars) {
			return nil
		}
		return &refusal{http.StatusNotFound, []string{"1 error occurred:\n\t* unsupported path\n\n"}, nil, fault.New(fault.NotFound, "path")}
	}
	return &refusal{http.StatusNotFound, []string{"no handler for route \"" + path + "\". route entry not found."}, nil, fault.New(fault.NotFound, "path")}
}

// named says whether what a path of a transit mount names has the form of a name.
func named(engine string, vars map[string]string) bool {
	if engine != "transit" {
		return true
	}
	for _, v := range vars {
		if !keyring.ValidKeyName("m/" + v) {
			return false
		}
	}
	return true
}

// operationOf is what a method asks for.
func operationOf(r *http.Request) (operation, error) {
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		if q := r.URL.Query().Get("list"); q != "" {
			is, err := strconv.ParseBool(q)
			if err != nil {
				return opRead, bad("list is true or false")
			}
			if is {
				return opList, nil
			}
		}
		return opRead, nil
	case "LIST":
		return opList, nil
	case http.MethodPost, http.MethodPut:
		return opUpdate, nil
	case http.MethodDelete:
		return opDelete, nil
	case http.MethodPatch:
		if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/merge-patch+json" {
			return opPatch, &refusal{http.StatusUnsupportedMediaType, []string{"PATCH requires Content-Type of application/merge-patch+json"}, nil, fault.New(fault.Invalid, "request")}
		}
		return opPatch, nil
	}
	return "", unsupported()
}

func unsupported() error {
	return &refusal{http.StatusMethodNotAllowed, []string{"1 error occurred:\n\t* unsupported operation\n\n"}, nil, fault.New(fault.Invalid, "method")}
}

// begin is a request of which the path is known, and nothing else was looked at but what it does there.
func begin(h *http.Request, to target) (*request, error) {
	op, err := operationOf(h)
	ctx := h.Context()
	r := &request{
		caller: wire.Caller(ctx), namespace: to.namespace, life: to.life, mount: to.mount, path: strings.TrimSuffix(to.path, "/"), op: op, vars: to.vars, header: h.Header,
		address: wire.Address(ctx),
	}
	if op == opList {
		r.path += "/"
	}
	return r, err
}

// read takes the rest of a request.
func (r *request) read(h *http.Request, to target) (err error) {
	if r.wrapTTL, err = lenient.ParseDuration(h.Header.Get("X-Vault-Wrap-TTL")); err != nil {
		return bad("error parsing X-Vault-Wrap-TTL header: it is a duration")
	}
	switch r.op {
	case opUpdate, opCreate, opPatch:
	default:
		r.body, err = query(h.URL.RawQuery)
		return err
	}
	if r.raw, err = r.readAll(h); err != nil {
		return tooLarge(err)
	}
	if err := wire.Stands(h.Context()); err != nil { // the body can come long after the header
		return err
	}
	if isForm(h.Header.Get("Content-Type"), r.raw) {
		r.body, err = query(string(r.raw))
		return err
	}
	if to.direct {
		return checked(bounded(r.raw, r.strangeTo(to)))
	}
	r.body, err = parse(r.raw, r.strangeTo(to))
	return err
}

// soon is what a body gets room for before it is there, in bytes: who promises a long one and sends nothing takes no more.
const soon = 1 << 20

// readAll reads a body, in one piece when it says how long it is and is not long.
func (r *request) readAll(h *http.Request) ([]byte, error) {
	if h.ContentLength <= 0 || h.ContentLength > MaxBody {
		return io.ReadAll(h.Body)
	}
	b := r.room(h.ContentLength)
	for {
		room := b[len(b):cap(b)]
		n, err := io.ReadFull(h.Body, room)
		switch b = b[:len(b)+n]; {
		case err != nil:
			return b, err
		case int64(len(b)) == h.ContentLength:
			return b, nil
		}
		b = append(make([]byte, 0, min(4*int64(len(b)), h.ContentLength)), b...)
	}
}

// buffer has a body of a batch. Such bodies would be the largest pieces of memory that requests leave behind.
type buffer [64 << 10]byte

var buffers = sync.Pool{New: func() any { return new(buffer) }}

// lentFrom is how long a body is that is read into a buffer, in bytes.
const lentFrom = 4 << 10

// room is memory for a body that says that it is so long.
func (r *request) room(n int64) []byte {
	if n < lentFrom || n > int64(len(buffer{})) {
		return make([]byte, 0, min(n, soon))
	}
	r.lent, _ = buffers.Get().(*buffer) // it has no others
	return r.lent[:0:n]
}

// end gives back what was lent to a request, empty: plaintexts stand in it. Nothing that a handler decoded shares its memory.
func (r *request) end() {
	if r.lent != nil {
		clear(r.lent[:])
		buffers.Put(r.lent)
		r.lent, r.raw = nil, nil
	}
}

// tooLarge tells a body that passes the limit from one that did not come.
func tooLarge(err error) error {
	var most *http.MaxBytesError
	if errors.As(err, &most) {
		return fault.Wrap(fault.TooLarge, "request", err)
	}
	if fault.CodeOf(err) == fault.Internal {
		return fault.Wrap(fault.Canceled, "request", err)
	}
	return err
}

// isForm says whether a body is a form: it says so, and is no JSON.
func isForm(kind string, b []byte) bool {
	media, _, err := mime.ParseMediaType(kind)
	return err == nil && media == "application/x-www-form-urlencoded" && len(b) > 0 && b[0] != '{'
}

// query reads members that came as parameters of a URL; of one that stands several times, all with commas between.
func query(raw string) (body, error) {
	if raw == "" {
		return body{}, nil
	}
	values, err := url.ParseQuery(raw)
	if err != nil {
		return nil, bad("error parsing the query")
	}
	out := make(body, len(values))
	for name, all := range values {
		b, err := json.Marshal(strings.Join(all, ","))
		if err != nil {
			return nil, bad("error parsing the query")
		}
		out[name] = b
	}
	return out, nil
}

// parameters are all members as policies compare them. The body becomes what they see of it: of a member that stands twice the last counts, also where
// that is null, which a decoder of the whole body would pass over.
func (r *request) parameters() (_ map[string]any, err error) {
	if r.body == nil {
		if r.body, err = parse(r.raw, nil); err != nil {
			return nil, err
		}
	}
	if r.raw != nil && !isForm(r.header.Get("Content-Type"), r.raw) {
		if r.raw, err = json.Marshal(r.body); err != nil {
			return nil, bad("error parsing JSON: %s", err)
		}
	}
	out := make(map[string]any, len(r.body))
	for name, b := range r.body {
		var v any
		d := json.NewDecoder(bytes.NewReader(b))
		d.UseNumber() // which keeps all digits
		if err := d.Decode(&v); err != nil {
			return nil, bad("error parsing JSON: %s", err)
		}
		out[name] = v
	}
	return out, nil
}

// has says whether a member is there and not null.
func (r *request) has(name string) bool {
	b, ok := r.body[name]
	return ok && string(b) != "null"
}

// decode reads all members into a struct; those that it does not have are let be.
func (r *request) decode(into any) error {
	b := r.raw
	if b == nil || isForm(r.header.Get("Content-Type"), b) { // members came in a query
		var err error
		if b, err = json.Marshal(r.body); err != nil {
			return bad("Field validation failed: %s", err)
		}
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return nil
	}
	return undecoded(json.Unmarshal(b, into))
}

// undecoded says what is wrong with a body, and not how it is called here.
func undecoded(err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &syntax):
		return bad("error parsing JSON: failed to parse JSON input: %s", err)
	case errors.As(err, &kind) && kind.Field == "":
		return bad("error parsing JSON: failed to parse JSON input: expected an object")
	case errors.As(err, &kind):
		return bad("Field validation failed: error converting input %s for field %q", kind.Value, kind.Field[strings.LastIndexByte(kind.Field, '.')+1:])
	}
	return bad("Field validation failed: %s", err)
}

// member reads one member by its kind. The zero value of one that is not there.
func member[T any](r *request, name string) (out T, err error) {
	b, ok := r.body[name]
	if !ok {
		return out, nil
	}
	if err := json.Unmarshal(b, &out); err != nil {
		return out, bad("Field validation failed: error converting input for field %q: %s", name, err)
	}
	return out, nil
}

// str is a member, else a variable of the path, else "". What is no scalar counts as not there.
func (r *request) str(name string) string {
	if v, ok := r.vars[name]; ok {
		return v
	}
	t, err := member[lenient.Text](r, name)
	if err != nil {
		return ""
	}
	return string(t)
}

// bytes is a member in base64.
func (r *request) bytes(name string) ([]byte, error) {
	b, err := base64.StdEncoding.DecodeString(r.str(name))
	if err != nil {
		return nil, bad("failed to base64-decode %s", name)
	}
	return b, nil
}

// whole is a member that is a whole number, with what it is when it is not there.
func (r *request) whole(name string, otherwise int64) (int64, error) {
	if !r.has(name) {
		return otherwise, nil
	}
	n, err := member[lenient.Int](r, name)
	return int64(n), err
}

// is is a member that is a bool, with what it is when it is not there.
func (r *request) is(name string, otherwise bool) (bool, error) {
	if !r.has(name) {
		return otherwise, nil
	}
	t, err := member[lenient.Bool](r, name)
	return bool(t), err
}

// span is a member that is a duration.
func (r *request) span(name string) (time.Duration, error) {
	d, err := member[lenient.Duration](r, name)
	return time.Duration(d), err
}

// list is a member that is several texts.
func (r *request) list(name string) ([]string, error) {
	l, err := member[lenient.List](r, name)
	return l, err
}

// stays keeps the client's hanging up from a change that has begun.
func stays(ctx context.Context) context.Context { return context.WithoutCancel(ctx) }
