package vault

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/rotorkms/rotor/internal/acl"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/policy"
)

// wrappingRoutes are sys/wrapping.
func wrappingRoutes(c Config) []route {
	token := []field{{"token", "string", "the wrapping token; left out, the one that the request shows", false}}
	open := "whoever shows the token is told what it stands for, so none is needed beside it"
	return []route{
		{
			pattern: "sys/wrapping/wrap", ops: map[operation]handler{opUpdate: c.wrap}, needs: every(right(policy.ActTools)), doc: "Keeps the body of the request under a token that opens it once.",
			fields: []field{{"X-Vault-Wrap-TTL", "duration", "header: how long; at most 32 days", true}},
		},
		{
			pattern: "sys/wrapping/unwrap", ops: map[operation]handler{opUpdate: c.unwrap}, fields: token, stranger: true, ofToken: true, raw: true,
			doc: "Gives the answer that a token stands for, once.", differs: "an answer that is lost on its way is lost",
		},
		{pattern: "sys/wrapping/lookup", ops: map[operation]handler{opUpdate: c.lookupWrapping, opRead: c.lookupWrapping}, fields: token, stranger: true, ofToken: true, doc: "Tells of a wrapping token without opening it: " + open + "."},
		{pattern: "sys/wrapping/rewrap", ops: map[operation]handler{opUpdate: c.rewrapAnswer}, fields: token, stranger: true, ofToken: true, doc: "Keeps the answer that a token stands for under another one, for as long as at first."},
	}
}

// wrapped keeps an answer for whoever shows the token that stands in its place. The caller had the right to the answer, and its policies were asked for how
// long it may be kept.
func wrapped(ctx context.Context, c Config, engine string, r *request, out *response) (*response, error) {
	b, err := json.Marshal(newEnvelope(out, engine))
	if err != nil {
		return nil, fmt.Errorf("encode an answer: %w", err)
	}
	defer clear(b)
	inner := ""
	if out.auth != nil {
		inner = out.auth.Accessor
	}
	w, err := c.ACL.CreateWrapping(stays(ctx), r.caller, string(r.namespace), r.path, b, r.wrapTTL, inner)
	if fault.CodeOf(err) == fault.TooLarge {
		return nil, bad("the answer is too large to be wrapped")
	}
	if err != nil {
		return nil, said(err)
	}
	return standIn(w), nil
}

// standIn is the answer in the place of one that was wrapped.
func standIn(w acl.Wrapping) *response {
	return &response{wrap: &wrapInfo{
		Token: w.Text, Accessor: w.Accessor, TTL: int64(w.TTL / time.Second), CreationTime: w.Created.Format(time.RFC3339Nano), CreationPath: w.Path, WrappedAccessor: w.WrappedAccessor,
	}}
}

// wrap answers with what was asked, for answer to wrap.
func (c Config) wrap(ctx context.Context, r *request) (*response, error) {
	if err := c.tools(ctx, r); err != nil {
		return nil, err
	}
	if r.wrapTTL == 0 {
		return nil, bad("endpoint requires response wrapping to be used")
	}
	data, err := r.parameters()
	return &response{data: data}, err
}

// wrappingToken is the token that a request is about, and whether it came as that of the caller. Who names another one has to be somebody.
func wrappingToken(r *request) (text string, own bool, err error) {
	if r.has("token") {
		if text = r.str("token"); text == "" {
			return "", false, bad("empty token in request body")
		}
		return text, false, nil
	}
	text, _, err = token(r.header)
	if err != nil {
		return "", true, notOpened(err)
	}
	return text, true, nil
}

// notOpened is the answer to what is no wrapping token, or was one that was opened.
func notOpened(cause error) error {
	return &refusal{http.StatusBadRequest, []string{"wrapping token is not valid or does not exist"}, nil, cause}
}

// opens names the token that a request opens. The caller of one that was opened before is nobody.
func opens(r *request) (string, error) {
	text, own, err := wrappingToken(r)
	switch {
	case err != nil:
		return "", err
	case own && r.caller.IsZero():
		return "", notOpened(fault.New(fault.Unauthenticated, "token"))
	case r.caller.IsZero():
		return "", fault.New(fault.Unauthenticated, "token")
	}
	return text, nil
}

func (c Config) unwrap(ctx context.Context, r *request) (*response, error) {
	text, err := opens(r)
	if err != nil {
		return nil, err
	}
	answer, _, err := c.ACL.Unwrap(stays(ctx), r.caller, string(r.namespace), text)
	if err != nil {
		return nil, said(err)
	}
	return &response{data: json.RawMessage(answer)}, nil
}

func (c Config) lookupWrapping(ctx context.Context, r *request) (*response, error) {
	text, _, err := wrappingToken(r)
	if err != nil {
		return nil, err
	}
	w, err := c.ACL.LookupWrapping(ctx, text)
	if err != nil {
		return nil, said(err)
	}
	return &response{data: map[string]any{"creation_path": w.Path, "creation_time": w.Created.Format(time.RFC3339Nano), "creation_ttl": int64(w.TTL / time.Second)}}, nil
}

func (c Config) rewrapAnswer(ctx context.Context, r *request) (*response, error) {
	text, err := opens(r)
	if err != nil {
		return nil, err
	}
	w, err := c.ACL.Rewrap(stays(ctx), r.caller, string(r.namespace), text)
	if err != nil {
		return nil, said(err)
	}
	return standIn(w), nil
}
