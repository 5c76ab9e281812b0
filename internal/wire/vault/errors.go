package vault

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/rotorkms/rotor/internal/acl"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/rpc"
	"github.com/rotorkms/rotor/internal/transit"
)

// refusal is an answer that is an error, in Vault's words. The cause is what rotor counts and logs it as.
type refusal struct {
	status int
	texts  []string
	data   any // beside the errors: what became of each item of a batch
	cause  error
}

func (e *refusal) Error() string { return fmt.Sprint(e.texts) }
func (e *refusal) Unwrap() error { return e.cause }

// bad refuses a request that is not valid.
func bad(format string, args ...any) error {
	return &refusal{status: http.StatusBadRequest, texts: []string{fmt.Sprintf(format, args...)}, cause: fault.New(fault.Invalid, "request")}
}

// missing is a read of what is not there: 404 without a text.
func missing() error {
	return &refusal{status: http.StatusNotFound, cause: fault.New(fault.NotFound, "")}
}

// Texts that clients compare.
const (
	permissionDenied = "1 error occurred:\n\t* permission denied\n\n"
	vaultSealed      = "Vault is sealed"
	bodyTooLarge     = "error parsing JSON: failed to parse JSON input: http: request body too large"
)

// refused makes what Vault would answer of any error.
func refused(err error) *refusal {
	var r *refusal
	if errors.As(err, &r) {
		return r
	}
	out := func(status int, text string) *refusal { return &refusal{status, []string{text}, nil, err} }
	f := rpc.Public(err)
	if words := transit.Text(err); words != "" && f.Code != fault.Internal {
		return out(http.StatusBadRequest, words)
	}
	switch f.Code {
	case fault.Denied:
		return out(http.StatusForbidden, permissionDenied)
	case fault.Unauthenticated:
		return out(http.StatusForbidden, "permission denied")
	case fault.Sealed:
		return out(http.StatusServiceUnavailable, vaultSealed)
	case fault.Recovery, fault.Unavailable, fault.OutcomeUnknown, fault.Canceled:
		return out(http.StatusServiceUnavailable, sentence(f))
	case fault.RateLimited:
		return out(http.StatusTooManyRequests, "request path rate limit quota exceeded: "+sentence(f))
	case fault.TooLarge:
		if f.Resource != "request" { // a key or a batch, which no smaller body helps
			return out(http.StatusBadRequest, sentence(f))
		}
		return out(http.StatusRequestEntityTooLarge, bodyTooLarge)
	case fault.Invalid:
		return out(http.StatusBadRequest, f.HintText()) // which is the whole sentence, where clients compare it
	case fault.QuotaReached, fault.DiskFull:
		if f.Resource == acl.LeaseCount {
			return out(http.StatusTooManyRequests, "lease count quota exceeded: "+f.HintText())
		}
		return out(http.StatusInsufficientStorage, sentence(f))
	case fault.Internal, fault.RecordTampered, fault.RecordReplayed, fault.StoreCorrupt, fault.AuditBroken:
		return out(http.StatusInternalServerError, sentence(f))
	}
	return out(http.StatusBadRequest, sentence(f))
}

// sentence is a fault in one line, with what to do about it.
func sentence(f *fault.Error) string { return f.Error() + "; " + f.HintText() }

// writeError answers with an error.
func writeError(w http.ResponseWriter, err error) {
	r := refused(err)
	texts := r.texts
	if texts == nil {
		texts = []string{} // clients read an empty list, not null
	}
	b, err := json.Marshal(struct {
		Errors []string `json:"errors"`
		Data   any      `json:"data,omitempty"`
	}{texts, r.data})
	if err != nil { // a handler gave what has no JSON
		b = []byte(`{"errors":["internal error"]}`)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(r.status)
	_, _ = w.Write(append(b, '\n')) // the client is gone when this fails
}
