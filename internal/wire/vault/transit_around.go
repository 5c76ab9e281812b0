package vault

import (
	"context"
	"maps"
	"strconv"

	"github.com/rotorkms/rotor/internal/mounts"
	"github.com/rotorkms/rotor/internal/policy"
)

// aroundRoutes are those of a mount that are about no key.
func aroundRoutes(c Config) []route {
	return []route{
		{pattern: "random(/:source(/:urlbytes))", doc: "Gives random bytes.", ops: map[operation]handler{opUpdate: c.random}, needs: every(right(policy.ActTools)), fields: randomFields},
		{pattern: "hash(/:urlalgorithm)", doc: "Hashes an input.", ops: map[operation]handler{opUpdate: c.hash}, needs: every(right(policy.ActTools)), fields: hashFields},
		{
			pattern: "cache-config", doc: "Shows and sets the size of the cache of keys.", ops: map[operation]handler{opRead: c.readCache, opUpdate: c.writeCache}, needs: readsAnd(mount(policy.ActShow), right(policy.ActMountChange)),
			fields:  []field{{"size", "int", "0, or at least 10.", false}},
			differs: "It is kept, and changes nothing: all keys are in memory.",
		},
		{
			pattern: "config/keys", doc: "Says whether encrypt may make keys.", ops: map[operation]handler{opRead: c.readKeysConfig, opUpdate: c.writeKeysConfig}, needs: readsAnd(mount(policy.ActShow), right(policy.ActMountChange)),
			fields: []field{{"disable_upsert", "bool", "encrypt makes none, whatever the caller may do.", false}},
		},
	}
}

// Options of a mount that its own paths set.
const (
	optionCache  = "cache_size"
	optionUpsert = "disable_upsert"
	minCache     = 10
)

// option is one of the mount; empty when it was not set.
func (c Config) option(r *request, name string) string {
	m, _ := c.Mounts.Mounted(r.namespace, false, r.mount)
	return m.Options[name]
}

// readOption lets in who may see how the mount is set.
func (c Config) readOption(ctx context.Context, r *request, name string) (string, error) {
	_, err := c.Guard.Admit(ctx, r.caller, policy.ActShow, policy.Resource{Namespace: string(r.namespace), Key: r.mount + "/"})
	return c.option(r, name), err
}

func (c Config) writeOption(ctx context.Context, r *request, name, value string) error {
	m, _ := c.Mounts.Mounted(r.namespace, false, r.mount)
	options := map[string]string{}
	maps.Copy(options, m.Options)
	options[name] = value
	return c.Mounts.Tune(stays(ctx), r.caller, r.namespace, false, r.mount, mounts.Change{Options: options})
}

func (c Config) readCache(ctx context.Context, r *request) (*response, error) {
	s, err := c.readOption(ctx, r, optionCache)
	n, _ := strconv.Atoi(s) // empty is 0
	return &response{data: map[string]any{"size": n}}, err
}

func (c Config) writeCache(ctx context.Context, r *request) (*response, error) {
	n, err := r.whole("size", 0)
	if err != nil {
		return nil, err
	}
	if n != 0 && n < minCache {
		return nil, bad("size must be 0 or a value greater or equal to %d", minCache)
	}
	if err := c.writeOption(ctx, r, optionCache, strconv.FormatInt(n, 10)); err != nil {
		return nil, err
	}
	return &response{data: map[string]any{"size": n}}, nil
}

func (c Config) readKeysConfig(ctx context.Context, r *request) (*response, error) {
	s, err := c.readOption(ctx, r, optionUpsert)
	return &response{data: map[string]any{"disable_upsert": s == "true"}}, err
}

func (c Config) writeKeysConfig(ctx context.Context, r *request) (*response, error) {
	is, err := r.is("disable_upsert", false)
	if err != nil {
		return nil, err
	}
	if err := c.writeOption(ctx, r, optionUpsert, strconv.FormatBool(is)); err != nil {
		return nil, err
	}
	return &response{data: map[string]any{"disable_upsert": is}}, nil
}
