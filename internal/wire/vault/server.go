package vault

import (
	"context"
	"fmt"
	"net/http"
	"runtime/debug"
	"strings"

	"github.com/rotorkms/rotor/internal/acl"
	"github.com/rotorkms/rotor/internal/fault"
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
	asksHelp := h.Method == http.MethodGet && h.URL.Query().Has("help") && wire.Caller(h.Context()).ACL.Sees(string(to.namespace))
	if asksHelp && err != nil && to.mount != "" && strings.TrimSuffix(to.path, "/") == to.mount {
		write(w, &route{raw: true}, s.engineHelp(to))
		return
	}
	if err != nil {
		s.fail(w, h, s.nowhere(h, to, err))
		return
	}
	if asksHelp {
		write(w, &route{raw: true}, help(to))
		return
	}
	r, err := s.read(w, h, to)
	if fault.CodeOf(err) == fault.Invalid && !to.stranger {
		err = s.nowhere(h, to, err)
	}
	if err != nil {
		s.fail(w, h, err)
		return
	}
	out, err := s.answer(h.Context(), to, r)
	switch {
	case err != nil:
		s.fail(w, h, err)
	case out == nil && (r.op == opRead || r.op == opList):
		s.fail(w, h, missing())
	case out == nil:
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

// target is where a request leads.
func (s *server) target(h *http.Request) (target, error) {
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
	return s.resolve(h)
}

// answer calls the handler of a route.
func (s *server) answer(ctx context.Context, to target, r *request) (*response, error) {
	handle, ok := to.ops[r.op]
	if !ok && r.caller.ACL != nil && !r.caller.ACL.Decide(&policy.Request{Namespace: string(r.namespace), Path: r.path, Operation: r.op}).Allowed {
		return nil, fault.New(fault.Denied, "path") // which operations a path has is told to who has a right to it
	}
	if !ok {
		return nil, unsupported()
	}
	if r.wrapTTL > acl.MaxWrapTTL { // before anything is done
		return nil, bad("requested wrapping TTL is not valid: above 0 and at most %d days", int(acl.MaxWrapTTL.Hours()/24))
	}
	if to.exists != nil && r.op == opUpdate {
		there, err := to.exists(ctx, r)
		if err != nil {
			return nil, err
		}
		if !there {
			r.op = opCreate
		}
	}
	asked := &policy.Request{Namespace: string(r.namespace), Path: r.path, Operation: r.op, Wrap: r.wrapTTL, Sudo: to.sudo}
	if r.caller.ACL.Weighs(asked) {
		var err error
		if asked.Parameters, err = r.parameters(); err != nil {
			return nil, err
		}
	}
	r.caller.Request = asked
	if !to.stranger {
		if err := wire.EnterNamespace(ctx, string(r.namespace)); err != nil {
			return nil, err
		}
	}
	out, err := handle(ctx, r)
	if fault.CodeOf(err) == fault.Invalid && r.caller.ACL != nil && !r.caller.ACL.Decide(asked).Allowed {
		return nil, fault.New(fault.Denied, "path") // what is wrong with a request is told to who has a right to its path
	}
	if err != nil || out == nil || r.wrapTTL == 0 || to.raw || out.wrap != nil {
		return out, err
	}
	return wrapped(ctx, s.config, to.engine, r, out)
}

// nowhere is the answer about a path that is none, and about a request that cannot be read. Who has no right to the path does not learn which it is.
func (s *server) nowhere(h *http.Request, to target, err error) error {
	op, _ := operationOf(h) // a method that there is not is no operation that a policy gives
	acl := wire.Caller(h.Context()).ACL
	if acl == nil || acl.Decide(&policy.Request{Namespace: string(to.namespace), Path: to.path, Operation: op}).Allowed {
		return err
	}
	return fault.New(fault.Denied, "path")
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

// help tells what a path is for.
func help(to target) *response {
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
