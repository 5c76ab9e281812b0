package vault

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"strings"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
)

// namespaceRoutes are about namespaces, which are rotor's.
func namespaceRoutes(c Config) []route {
	return []route{
		{pattern: "sys/namespaces", ops: map[operation]handler{opList: c.namespaces}, needs: every(global(policy.ActNamespaces)), doc: "Lists the namespaces.", differs: "there is one level of them"},
		{
			pattern: "sys/namespaces/:name", ops: map[operation]handler{opRead: c.showNamespace, opUpdate: c.createNamespace, opDelete: c.deleteNamespace},
			needs: needs{opRead: right(policy.ActNamespaces), opUpdate: global(policy.ActNamespaceCreate), opDelete: global(policy.ActNamespaceDelete)},
			doc:   "Shows a namespace, makes one, or deletes one with all that is in it.", differs: "a namespace with a key whose material is not destroyed stays (400), and a deletion answers when it is done; custom_metadata is not kept",
		},
	}
}

// home is the namespace that is the root of the others for clients.
func (c Config) home() keyring.Namespace { return keyring.Namespace(c.Authority.Namespace) }

func (c Config) namespaces(ctx context.Context, r *request) (*response, error) {
	all, err := c.Mounts.Namespaces(ctx, r.caller)
	if err != nil {
		return nil, err
	}
	var names []string
	info := map[string]any{}
	for _, ns := range all {
		if ns != c.home() {
			names = append(names, string(ns)+"/")
			info[string(ns)+"/"] = namespaceInfo(ns)
		}
	}
	if len(names) == 0 {
		return nil, nil
	}
	return &response{data: map[string]any{"keys": names, "key_info": info}}, nil
}

// namespaceInfo is a namespace as clients see it. Its ID is of a hash, for it is a name and no secret.
func namespaceInfo(ns keyring.Namespace) map[string]any {
	sum := sha256.Sum256([]byte(ns))
	return map[string]any{"id": hex.EncodeToString(sum[:])[:6], "path": string(ns) + "/", "custom_metadata": map[string]string{}}
}

func (c Config) showNamespace(ctx context.Context, r *request) (*response, error) {
	if _, err := c.permit(ctx, r, policy.ActNamespaces); err != nil {
		return nil, err
	}
	ns := r.vars["name"]
	if r.namespace != c.home() || ns == string(c.home()) || !c.Guard.HasNamespace(ns) { // a namespace has none within it, and is not told of those beside it
		return nil, nil
	}
	return &response{data: namespaceInfo(keyring.Namespace(ns))}, nil
}

func (c Config) createNamespace(ctx context.Context, r *request) (*response, error) {
	if r.namespace != c.home() {
		return nil, bad("there is one level of namespaces")
	}
	ns := keyring.Namespace(r.vars["name"])
	switch err := c.Mounts.CreateNamespace(stays(ctx), r.caller, ns); fault.CodeOf(err) {
	case fault.Exists: // as for clients that make it each time they run
	case fault.Invalid:
		return nil, bad("invalid namespace %q: lower-case letters, digits, and inside . _ -", string(ns))
	default:
		if err != nil {
			return nil, err
		}
	}
	return &response{data: namespaceInfo(ns)}, nil
}

// deleteNamespace is done when it answers, as there is nothing of it that takes long. What is not there is no error, as elsewhere.
func (c Config) deleteNamespace(ctx context.Context, r *request) (*response, error) {
	if r.namespace != c.home() { // there is none within it
		return nil, nil
	}
	err := c.Mounts.DeleteNamespace(stays(ctx), r.caller, keyring.Namespace(r.vars["name"]))
	var f *fault.Error
	if errors.As(err, &f) && (f.Code == fault.InUse || f.Code == fault.Invalid) {
		return nil, &refusal{http.StatusBadRequest, []string{f.Resource + ": " + f.Hint}, nil, err}
	}
	return nil, err
}

func (c Config) visibleNamespaces(_ context.Context, r *request) (*response, error) {
	names := []string{""}
	if c.Guard.Allows(r.caller, policy.ActNamespaces, policy.Resource{}) {
		for _, ns := range c.Guard.Namespaces() {
			if ns != string(c.home()) && !strings.Contains(ns, "/") {
				names = append(names, ns+"/")
			}
		}
	}
	return &response{data: map[string]any{"keys": names}}, nil
}
