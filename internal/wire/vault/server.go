package vault

import (
	"fmt"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/rotorkms/rotor/internal/acl"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/wire"
)

// server answers requests by the table of routes.
type server struct {
	config Config
	table  *table
}

func newServer(c Config) *server { return &server{c, newTable(c.routes())} }

// ServeHTTP implements http.Handler.
func (s *server) ServeHTTP(w http.ResponseWriter, h *http.Request) {
	defer func() {
		if p := recover(); p != nil {
			s.config.Log.ErrorContext(h.Context(), "panic in a request", "path", h.URL.Path, "panic", p, "stack", string(debug.Stack()))
			s.fail(w, h, fault.New(fault.Internal, ""))
		}
	}()
	to, err := s.target(h)
	if h.Method == http.MethodGet && h.URL.Query().Has("help") {
		if out := s.help(h, to, err == nil); out != nil {
			write(w, &route{raw: true}, out)
			return
		}
	}
	if err != nil {
		s.fail(w, h, s.nowhere(h, to, err))
		return
	}
	r, out, err := s.ask(h, to)
	defer r.end()
	switch {
	case err != nil:
		s.fail(w, h, err)
	case out == nil && (r.op == opRead || r.op == opList):
		s.fail(w, h, missing())
	case out == nil:
		w.Header().Set("Content-Type", "application/json") // of nothing, as Vault has it: its agent's cache looks at no other answer, and would go on handing out a token that was revoked
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(http.StatusNoContent)
	case out.other != nil:
		out.other.ServeHTTP(w, h)
	default:
		write(w, to.route, out)
	}
}

// resolved is what the front has found out about a request.
type resolved struct {
	to  target
	err error
}

// target is where a request leads. A route about the token that is shown is in that one's namespace: clients take a wrapping token anywhere.
func (s *server) target(h *http.Request) (target, error) {
	to, err := s.leads(h)
	if ns := wire.Caller(h.Context()).ACL.Namespace(); err == nil && to.ofToken && ns != "" {
		to.namespace = keyring.Namespace(ns)
		to.life, _ = s.config.Guard.Life(ns)
	}
	return to, err
}

func (s *server) leads(h *http.Request) (target, error) {
	ctx := h.Context()
	r, ok := wire.RouteOf(ctx).Of.(resolved)
	lately := ok && r.err != nil && r.to.mount == "" && !wire.Caller(ctx).IsZero() // another server may have mounted it a moment ago
	if ok && !lately {
		return r.to, r.err
	}
	if lately {
		if err := s.config.Mounts.Refresh(ctx, r.to.namespace); err != nil {
			return r.to, err
		}
	}
	to, err := s.resolve(h)
	to.life = r.to.life // the one that the caller was found in
	return to, err
}

// ask lets a request in, reads it and has it answered.
func (s *server) ask(h *http.Request, to target) (*request, *response, error) {
	ctx := h.Context()
	r, wrong := begin(h, to)
	r.table = s.table
	if wrong != nil && !s.knows(ctx, to, r) {
		wrong = fault.New(fault.Denied, "path")
	}
	if wrong != nil {
		return r, nil, wrong
	}
	if err := s.gate(ctx, to, r); err != nil {
		return r, nil, err
	}
	out, err := s.answer(h, to, r)
	if err != nil && r.late != nil && fault.CodeOf(err) != fault.Denied { // what is wrong with a request is not told to who may not make it
		if denied := s.config.refuse(ctx, r, *r.late); denied != nil {
			err = denied
		}
	}
	return r, out, err
}

// answer reads a request that was let in and calls the handler of its route.
func (s *server) answer(h *http.Request, to target, r *request) (*response, error) {
	ctx := h.Context()
	if err := r.read(h, to); err != nil {
		return nil, err
	}
	handle := to.handler(r.op)
	if handle == nil { // of a stranger's route
		return nil, unsupported()
	}
	if err := r.keeps(to); err != nil { // before anything is done
		return nil, err
	}
	if err := s.weigh(ctx, to, r); err != nil {
		return nil, err
	}
	if !to.stranger {
		if err := wire.EnterNamespace(ctx, string(r.namespace)); err != nil {
			return nil, err
		}
	}
	out, err := handle(ctx, r)
	if err == nil && out != nil && len(r.strange) > 0 {
		slices.Sort(r.strange)
		out.warnings = append(out.warnings, fmt.Sprintf("Endpoint ignored these unrecognized parameters: %v", slices.Compact(r.strange)))
	}
	if err != nil || out == nil || r.wrapTTL == 0 || to.raw || out.wrap != nil {
		return out, err
	}
	return wrapped(ctx, s.config, to.engine, r, out)
}

// keeps refuses to have an answer wrapped that cannot be. Each is a record, and an entry in the log for ever, so strangers have nothing wrapped but the token of
// their login, and the bearers of wrapping tokens, who would have new ones without end, nothing at all.
func (r *request) keeps(to target) error {
	nobody := r.caller.IsZero() || r.caller.ACL != nil && r.caller.Accessor == "" // the bearer of a wrapping token
	switch {
	case r.wrapTTL > acl.MaxWrapTTL:
		return bad("requested wrapping TTL is not valid: above 0 and at most %d days", int(acl.MaxWrapTTL.Hours()/24))
	case r.wrapTTL > 0 && !to.raw && !to.login && nobody:
		return bad("this answer cannot be wrapped: leave out X-Vault-Wrap-TTL")
	}
	return nil
}

// handler is that of an operation.
func (r *route) handler(op operation) handler {
	if op == opCreate {
		op = opUpdate
	}
	return r.ops[op]
}

// nowhere is the answer about a path that is none. Who has no right to it does not learn that.
func (s *server) nowhere(h *http.Request, to target, err error) error {
	r, _ := begin(h, to)
	if s.seesMounts(r) {
		return err
	}
	return fault.New(fault.Denied, "path")
}

// seesMounts says whether a caller may know what is mounted where it asks: by its policies for the path, else by the rules.
func (s *server) seesMounts(r *request) bool {
	r.caller.Request = &policy.Request{Namespace: string(r.namespace), Life: r.life, Path: r.path, Operation: r.op, Unread: true}
	return s.config.Guard.Allows(r.caller, policy.ActMounts, policy.Resource{Namespace: string(r.namespace)})
}

// fail answers with an error, and logs what is a mistake of ours.
func (s *server) fail(w http.ResponseWriter, h *http.Request, err error) {
	ctx := h.Context()
	wire.Failed(ctx, err)
	switch fault.CodeOf(err) {
	case fault.Internal, fault.RecordTampered, fault.RecordReplayed, fault.StoreCorrupt, fault.AuditBroken:
		if ctx.Err() == nil {
			s.config.Log.ErrorContext(ctx, "request failed", "path", h.URL.Path, "caller", wire.Caller(ctx).Name, "error", err)
		}
	}
	writeError(w, err)
}

// help tells what a path or a mount is for, to who may use something of the mount; nil: there is none. What is not below a mount is the same everywhere.
func (s *server) help(h *http.Request, to target, found bool) *response {
	if !wire.Caller(h.Context()).ACL.Sees(string(to.namespace)) {
		return nil
	}
	if to.engine != "" && (!found || !to.login) { // whose mounts answer everybody
		r := &request{caller: wire.Caller(h.Context()), namespace: to.namespace}
		m, _, ok := s.config.Mounts.Find(to.namespace, to.mount+"/")
		if !ok || !s.config.usable(r, m) {
			return nil
		}
	}
	switch {
	case found:
		return routeHelp(to)
	case to.mount != "" && strings.TrimSuffix(to.path, "/") == to.mount:
		return s.engineHelp(to)
	}
	return nil
}

func routeHelp(to target) *response {
	out := fmt.Sprintf("## DESCRIPTION\n\n%s\n\n## PARAMETERS\n", to.doc)
	for _, f := range to.fields {
		out += fmt.Sprintf("\n    %s (%s)\n\n        %s\n", f.name, f.kind, f.doc)
	}
	return &response{data: map[string]any{"help": out, "see_also": nil, "openapi": nil}}
}

// engineHelp tells what is below a mount.
func (s *server) engineHelp(to target) *response {
	out := fmt.Sprintf("## DESCRIPTION\n\nThe engine %s.\n\n## PATHS\n", to.engine)
	for _, r := range s.config.routes() {
		if r.engine == to.engine {
			out += fmt.Sprintf("\n    %s\n\n        %s\n", r.pattern, r.doc)
		}
	}
	return &response{data: map[string]any{"help": out, "see_also": nil, "openapi": nil}}
}
