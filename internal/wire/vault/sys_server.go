package vault

import (
	"context"
	"net/http"
	"os"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/policy"
)

// serverRoutes are what tools ask of a server besides its state.
func serverRoutes(c Config) []route {
	counters := func(path, instead string) route {
		return route{
			pattern: "sys/internal/counters/" + path, ops: map[operation]handler{opRead: c.uncounted(instead)}, needs: every(global(policy.ActStatus)), doc: "Refuses: it is not counted.", differs: "nobody is billed by it; " + instead,
		}
	}
	return []route{
		{
			pattern: "sys/ha-status", ops: map[operation]handler{opRead: c.members}, needs: every(global(policy.ActStatus)), doc: "Tells of this server as the active one.",
			differs: "every server of a cluster serves, and each tells of itself alone; ask each",
		},
		{
			pattern: "sys/metrics", ops: map[operation]handler{opRead: c.metrics}, needs: every(global(policy.ActMetrics)), raw: true, fields: []field{{"format", "string", "prometheus, also when it is left out", false}}, doc: "Shows the metrics of this server, as /metrics does.",
			differs: "the metrics are rotor's (reference/metrics.md), in Prometheus' text form alone; needs the right server.metrics",
		},
		{
			pattern: "sys/host-info", ops: map[operation]handler{opRead: c.hostInfo}, needs: every(global(policy.ActStatus)), sudo: true, doc: "Refuses to tell of the server's machine.",
			differs: "the process has shut itself in, and sees neither the machine's disks nor its users; ask the machine",
		},
		counters("requests", "sys/metrics has the requests by path"), counters("tokens", "auth/token/accessors lists them"), counters("entities", "there are no entities"),
		counters("activity", "the audit log says who came"), counters("activity/monthly", "the audit log says who came"), counters("config", "the audit log says who came"),
	}
}

// members is what operator members shows.
func (c Config) members(ctx context.Context, r *request) (*response, error) {
	if _, err := c.Guard.Admit(ctx, r.caller, policy.ActStatus, policy.Resource{}); err != nil {
		return nil, err
	}
	about := c.About(ctx)
	host, err := os.Hostname()
	if err != nil {
		host = "" // it has none
	}
	address := "https://" + about.Address
	return both(map[string]any{"nodes": []map[string]any{{
		"hostname": host, "api_address": address, "cluster_address": address, "active_node": true, "last_echo": nil, "version": versionOf(about.Version),
	}}}), nil
}

// metrics shows what /metrics shows.
func (c Config) metrics(ctx context.Context, r *request) (*response, error) {
	if _, err := c.Guard.Admit(ctx, r.caller, policy.ActMetrics, policy.Resource{}); err != nil {
		return nil, err
	}
	if f := r.str("format"); f != "" && f != "prometheus" {
		return nil, bad("metric response format %.40q is not supported: prometheus is", f)
	}
	return &response{other: c.Metrics}, nil
}

func (c Config) hostInfo(ctx context.Context, r *request) (*response, error) {
	return c.refuses(ctx, r, "host-info is not supported: this process cannot see its machine; ask the machine itself")
}

func (c Config) uncounted(instead string) handler {
	return func(ctx context.Context, r *request) (*response, error) {
		return c.refuses(ctx, r, "counters of clients are not kept: "+instead)
	}
}

// refuses tells who may ask for the server's state that something is not there.
func (c Config) refuses(ctx context.Context, r *request, text string) (*response, error) {
	if _, err := c.Guard.Admit(ctx, r.caller, policy.ActStatus, policy.Resource{}); err != nil {
		return nil, err
	}
	return nil, &refusal{status: http.StatusBadRequest, texts: []string{text}, cause: fault.New(fault.NotBuilt, "path")}
}
