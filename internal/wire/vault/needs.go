package vault

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/transit"
)

// need is the right that an operation of a route takes. It is asked for before anything of a request is looked at but its path, so that whoever lacks it hears
// the same, whatever is there and whatever was sent. Use cases ask again, for everything that they do.
type need struct {
	action policy.Action
	on     func(ctx context.Context, c Config, r *request) (policy.Resource, error) // nil: the namespace
	choose func(r *request) policy.Action                                           // in the place of action
	own    bool                                                                     // it is about the caller alone: a session of rotor's has it, a token by its policies
	open   bool                                                                     // every known caller has it, and is answered by what it may do elsewhere
	late   bool                                                                     // the body may name the key: who lacks the right to all of them is told what succeeds, and nothing else
}

// needs are those of a route's operations. A route that answers no stranger and has none is closed to everybody.
type needs map[operation]need

// anyOp is the key of the need that the operations have that are not listed.
const anyOp operation = ""

// every is one need of all operations.
func every(n need) needs { return needs{anyOp: n} }

// readsAnd are the needs of what is read or listed by one right and changed by another.
func readsAnd(reads, changes need) needs {
	return needs{opRead: reads, opList: reads, anyOp: changes}
}

// of is the need of an operation.
func (n needs) of(op operation) (need, bool) {
	if op == opCreate {
		op = opUpdate
	}
	one, ok := n[op]
	if !ok {
		one, ok = n[anyOp]
	}
	return one, ok
}

// right is a need that concerns no key; key one of the key that the path names, mount one of all keys of the mount.
func right(a policy.Action) need { return need{action: a} }

func key(a policy.Action) need { return keyCalled("name", a) }

func keyCalled(name string, a policy.Action) need {
	return need{action: a, on: func(ctx context.Context, c Config, r *request) (policy.Resource, error) {
		return c.resource(ctx, r, r.vars[name])
	}}
}

// resource is how the rules see a key of the mount.
func (c Config) resource(ctx context.Context, r *request, name string) (policy.Resource, error) {
	if r.known {
		return c.KMS.KnownResource(r.key(name)), nil
	}
	return c.KMS.ResourceOf(ctx, r.key(name))
}

func mount(a policy.Action) need {
	return need{action: a, on: func(_ context.Context, _ Config, r *request) (policy.Resource, error) {
		return policy.Resource{Namespace: string(r.namespace), Key: r.mount + "/"}, nil
	}}
}

// global is a need that concerns no namespace.
func global(a policy.Action) need {
	return need{action: a, on: func(context.Context, Config, *request) (policy.Resource, error) { return policy.Resource{}, nil }}
}

// own is a need of what concerns the caller alone.
func own(a policy.Action) need { return need{action: a, own: true} }

// exporting is the need of an export, which is a release but for what is public.
func exporting() need {
	n := key(policy.ActExport)
	n.choose = func(r *request) policy.Action {
		if transit.Export(r.vars["type"]).Releases() {
			return policy.ActExport
		}
		return policy.ActShow
	}
	return n
}

// restoring is the need of a restore, whose key the path, the body or the backup names.
func restoring() need {
	return need{action: policy.ActKeyRestore, late: true, on: func(ctx context.Context, c Config, r *request) (policy.Resource, error) {
		if name := r.vars["name"]; name != "" {
			return c.resource(ctx, r, name)
		}
		return policy.Resource{Namespace: string(r.namespace), Key: r.mount + "/"}, nil
	}}
}

// asking is a need of one request.
type asking struct {
	need
	on policy.Resource
}

func (c Config) asked(ctx context.Context, r *request, n need) (asking, error) {
	out := asking{n, policy.Resource{Namespace: string(r.namespace)}}
	if n.choose != nil {
		out.action = n.choose(r)
	}
	var err error
	if n.on != nil {
		out.on, err = n.on(ctx, c, r)
	}
	return out, err
}

// has says whether the caller of a request has what it needs.
func (c Config) has(r *request, a asking) bool {
	if a.open || a.own && r.caller.ACL == nil {
		return !r.caller.IsZero()
	}
	return c.Guard.Allows(r.caller, a.action, a.on)
}

// refuse puts a refusal into the log. fault.Denied, Unauthenticated; nil when the rules have come to allow it just now.
func (c Config) refuse(ctx context.Context, r *request, a asking) error {
	_, err := c.Guard.Admit(ctx, r.caller, a.action, a.on)
	return err
}

// gate lets in who has the right that a route needs, before the body is read, and settles whether a request creates or updates. fault.Denied.
func (s *server) gate(ctx context.Context, to target, r *request) error {
	if to.stranger || to.login {
		return nil
	}
	n, ok := to.needs.of(r.op)
	if !ok || to.ops[r.op] == nil {
		return s.noOperation(ctx, to, r)
	}
	a, err := s.config.asked(ctx, r, n)
	if err != nil {
		return err
	}
	may := s.config.may(to, r, a, r.op)
	switch {
	case to.exists != nil && r.op == opUpdate:
		return s.settle(ctx, to, r, a, may)
	case may:
		return nil
	case n.late:
		r.late = &a
		return nil
	}
	return s.config.refuse(ctx, r, a)
}

// may is has of an operation, whatever its parameters are.
func (c Config) may(to target, r *request, a asking, op operation) bool {
	r.ask = policy.Request{Namespace: string(r.namespace), Life: r.life, Path: r.path, Operation: op, Sudo: to.sudo, Unread: true}
	r.caller.Request = &r.ask
	return c.has(r, a)
}

// settle says whether a request creates or updates. Whoever may do neither is refused whatever is there.
func (s *server) settle(ctx context.Context, to target, r *request, a asking, updates bool) error {
	if !updates && !s.config.may(to, r, a, opCreate) {
		return s.config.refuse(ctx, r, a)
	}
	there, err := to.exists(ctx, r)
	if err != nil || there && updates {
		return err
	}
	if !there {
		r.op = opCreate
	}
	if !s.config.may(to, r, a, r.op) {
		return s.config.refuse(ctx, r, a)
	}
	return nil
}

// weigh asks again when all of a request is known, where a policy says something of parameters or of wrapping. It sets what the use cases are to ask about.
func (s *server) weigh(ctx context.Context, to target, r *request) error {
	r.ask = policy.Request{Namespace: string(r.namespace), Life: r.life, Path: r.path, Operation: r.op, Wrap: r.wrapTTL, Sudo: to.sudo}
	r.caller.Request = &r.ask
	weighs := r.caller.ACL.Weighs(&r.ask)
	if weighs {
		var err error
		if r.ask.Parameters, err = r.parameters(); err != nil {
			return err
		}
	}
	if n, ok := to.needs.of(r.op); ok && weighs && r.late == nil {
		a, err := s.config.asked(ctx, r, n)
		if err != nil {
			return err
		}
		if !s.config.has(r, a) {
			return s.config.refuse(ctx, r, a)
		}
	}
	return nil
}

// noOperation is the answer to what a path does not have. Only who has some right to it is told that.
func (s *server) noOperation(ctx context.Context, to target, r *request) error {
	if s.knows(ctx, to, r) {
		return unsupported()
	}
	return fault.New(fault.Denied, "path")
}

// knows says whether the caller has some right to a path: to what it was asked for, or, where that is nothing, to something else.
func (s *server) knows(ctx context.Context, to target, r *request) bool {
	if to.stranger || to.login {
		return true
	}
	ops := slices.Sorted(maps.Keys(to.ops))
	for _, op := range ops {
		n, ok := to.needs.of(op)
		if !ok {
			continue
		}
		if a, err := s.config.asked(ctx, r, n); err == nil && s.config.may(to, r, a, cmp.Or(r.op, op)) {
			return true
		}
	}
	return false
}
