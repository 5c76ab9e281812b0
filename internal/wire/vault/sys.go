package vault

import (
	"context"
	"slices"
	"time"

	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/policy"
)

// sysRoutes are those of sys/.
func sysRoutes(c Config) []route {
	return slices.Concat(statusRoutes(c.Node()), mountRoutes(c), authMountRoutes(c), namespaceRoutes(c), visibleRoutes(c), rootRoutes(c), serverRoutes(c), wrappingRoutes(c), toolRoutes(c), leaseRoutes(c))
}

// rootRoutes are about the root of trust, and about the server as a whole.
func rootRoutes(c Config) []route {
	return []route{
		{
			pattern: "sys/seal", ops: map[operation]handler{opUpdate: c.seal}, needs: every(global(policy.ActSeal)), sudo: true, doc: "Seals this server.",
			differs: "needs the right seal.change; a server that the configuration opens by itself opens again only when it is told to or restarted",
		},
		{
			pattern: "sys/key-status", ops: map[operation]handler{opRead: c.keyStatus}, needs: every(global(policy.ActStatus)), doc: "Says which generation of the root key is the current one.",
			differs: "no count of uses: records are sealed under keys derived of it, with random nonces of 192 bits",
		},
		{
			pattern: "sys/rotate", ops: map[operation]handler{opUpdate: c.rotateRoot}, needs: every(global(policy.ActRotateRoot)), sudo: true, doc: "Makes another root key; what is sealed is sealed again under it.",
			differs: "needs the right server.rotate; refused while an earlier one is not done",
		},
		{
			pattern: "sys/audit", ops: map[operation]handler{opRead: c.audits}, needs: every(global(policy.ActAudit)), sudo: true, doc: "Lists the audit devices: the one log, which is always there.",
		},
		{
			pattern: "sys/audit/:path", ops: map[operation]handler{opUpdate: fixedAudit, opDelete: fixedAudit}, needs: every(global(policy.ActAudit)), sudo: true, doc: "Refuses to add or remove an audit device.",
			differs: "the log can be neither turned off nor doubled; rotor audit export gives a copy that can be verified",
		},
		{
			pattern: "sys/version-history", ops: map[operation]handler{opList: c.versions}, needs: every(global(policy.ActStatus)), doc: "Lists the version that runs.", differs: "earlier ones are in the audit log (server.start)",
		},
		{pattern: "sys/config/cors", ops: map[operation]handler{opRead: c.cors}, needs: every(global(policy.ActStatus)), sudo: true, doc: "Says that other origins are not let in.", differs: "cannot be changed"},
	}
}

// seal seals the server.
func (c Config) seal(ctx context.Context, r *request) (*response, error) {
	return nil, c.Seals.Close(stays(ctx), r.caller)
}

// keyStatus says which root key is in use.
func (c Config) keyStatus(ctx context.Context, r *request) (*response, error) {
	if _, err := c.Guard.Admit(ctx, r.caller, policy.ActStatus, policy.Resource{}); err != nil {
		return nil, err
	}
	roots, err := c.Guard.Roots(ctx)
	if err != nil {
		return nil, err
	}
	return both(map[string]any{"term": roots.Generation, "install_time": roots.Since.UTC().Format(time.RFC3339Nano), "encryptions": 0}), nil
}

// rotateRoot makes another root key.
func (c Config) rotateRoot(ctx context.Context, r *request) (*response, error) {
	p, err := c.Guard.Admit(ctx, r.caller, policy.ActRotateRoot, policy.Resource{})
	if err != nil {
		return nil, err
	}
	_, err = c.Guard.Turn(stays(ctx), p, false)
	return nil, err
}

// audits shows the audit log as the one device that there is.
func (c Config) audits(ctx context.Context, r *request) (*response, error) {
	if _, err := c.Guard.Admit(ctx, r.caller, policy.ActAudit, policy.Resource{}); err != nil {
		return nil, err
	}
	return both(map[string]any{"rotor/": map[string]any{
		"type": "rotor", "path": "rotor/", "description": "the Merkle log of this cluster; rotor audit export", "local": false, "options": map[string]string{"checkpoint_key": c.Guard.CheckpointKey()},
	}}), nil
}

func fixedAudit(context.Context, *request) (*response, error) {
	return nil, bad("the audit log is always on: it cannot be added, changed or removed")
}

// versions lists the version that runs.
func (c Config) versions(ctx context.Context, r *request) (*response, error) {
	if _, err := c.Guard.Admit(ctx, r.caller, policy.ActStatus, policy.Resource{}); err != nil {
		return nil, err
	}
	about := c.About(ctx)
	v := versionOf(about.Version)
	return &response{data: map[string]any{
		"keys": []string{v}, "key_info": map[string]any{v: map[string]any{"build_date": "", "previous_version": nil, "timestamp_installed": about.Started.UTC().Format("2006-01-02T15:04:05Z")}},
	}}, nil
}

func (c Config) cors(ctx context.Context, r *request) (*response, error) {
	if _, err := c.Guard.Admit(ctx, r.caller, policy.ActStatus, policy.Resource{}); err != nil {
		return nil, err
	}
	return both(map[string]any{"enabled": false}), nil
}

// both is an answer whose data stands in the envelope and beside it, as that of old paths of sys/ does.
func both(data map[string]any) *response { return &response{data: data, top: data} }

// leaseRoutes say that there are no leases: nothing that rotor gives out is one. Tokens are renewed and revoked as tokens.
func leaseRoutes(c Config) []route {
	answer := func(text string) handler {
		return func(ctx context.Context, r *request) (*response, error) {
			if err := c.tools(ctx, r); err != nil || text == "" {
				return nil, err
			}
			return nil, bad("%s", text)
		}
	}
	id := []field{{"lease_id", "string", "of the lease", true}}
	return []route{
		{pattern: "sys/leases/lookup", ops: map[operation]handler{opUpdate: answer("invalid lease")}, needs: every(right(policy.ActTools)), fields: id, doc: "Knows no lease.", differs: "there are no leases; tokens are looked up as tokens"},
		{pattern: "sys/leases/renew", ops: map[operation]handler{opUpdate: answer("lease not found")}, needs: every(right(policy.ActTools)), fields: id, doc: "Knows no lease."},
		{pattern: "sys/leases/revoke", ops: map[operation]handler{opUpdate: answer("")}, needs: every(right(policy.ActTools)), fields: id, doc: "Revokes nothing, as of a lease that is over."},
		{pattern: "sys/renew", ops: map[operation]handler{opUpdate: answer("lease not found")}, needs: every(right(policy.ActTools)), fields: id, doc: "Is sys/leases/renew of older clients."},
		{pattern: "sys/revoke", ops: map[operation]handler{opUpdate: answer("")}, needs: every(right(policy.ActTools)), fields: id, doc: "Is sys/leases/revoke of older clients."},
	}
}

// tools admits what concerns no key and nobody else. fault.Denied.
func (c Config) tools(ctx context.Context, r *request) error {
	_, err := c.permit(ctx, r, policy.ActTools)
	return err
}

func (c Config) permit(ctx context.Context, r *request, a policy.Action) (*guard.Permit, error) {
	return c.Guard.Admit(ctx, r.caller, a, policy.Resource{Namespace: string(r.namespace)})
}
