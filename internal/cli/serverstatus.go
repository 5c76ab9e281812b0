package cli

import (
	"time"

	"github.com/spf13/cobra"

	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// serverView is the server as programs see it.
type serverView struct {
	Version     string        `json:"version"`
	Cluster     string        `json:"cluster"`
	Incarnation uint32        `json:"incarnation"`
	Profile     string        `json:"profile"`
	Engine      string        `json:"engine"`
	Format      uint32        `json:"format"`
	Seal        string        `json:"seal"`
	SealWarning string        `json:"seal_warning,omitempty"`
	Sandbox     string        `json:"sandbox"`
	Started     string        `json:"started"`
	Keys        uint32        `json:"keys"`
	Instances   uint32        `json:"instances"`
	Connected   uint32        `json:"connected"`
	Ready       bool          `json:"ready"`
	Checks      []checkView   `json:"checks"`
	Replicas    []replicaView `json:"replicas"`
}

type checkView struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Reason string `json:"reason,omitempty"`
}

type replicaView struct {
	Address string `json:"address"`
	Version string `json:"version"`
	Format  uint32 `json:"format"`
	Issuer  string `json:"issuer"`
	Started string `json:"started"`
	State   string `json:"state"` // leads, follows, silent
	Self    bool   `json:"self"`
}

func newServerStatus(a *app) *cobra.Command {
	var patience time.Duration
	c := &cobra.Command{
		Use: "status", Short: "Say how the server is, and which others are on its store",
		Long: `Say how the server is: whether it is ready, and if not why; its roots of trust and what is wrong with them; whether the process has shut itself in; and, on a
store that several servers share, each of them with its version, the newest format of records that it knows, and whether it leads, follows or is silent. The store's own
format goes up by itself once every server on it knows a newer one, and then older versions start on it no more.

With --wait a server that is being started is waited for, which scripts need after "rotor dev &".`,
		Example: "  rotor server status --wait 30s\n  rotor server status -o json",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			m, err := a.awaitServer(c.Context(), patience)
			if err != nil {
				return err
			}
			v := serverViewOf(m)
			return a.show(v, v.tables()...)
		},
	}
	c.Flags().Var(duration{&patience}, "wait", "how long to wait for it to answer (default 0s)")
	return c
}

func serverViewOf(m *rotorv1.StatusResponse) serverView {
	v := serverView{
		Version: m.GetVersion(), Cluster: m.GetCluster(), Incarnation: m.GetIncarnation(), Profile: m.GetProfile(), Engine: m.GetEngine(), Format: m.GetFormat(),
		Seal: m.GetSeal(), SealWarning: m.GetSealWarning(), Sandbox: m.GetSandbox(), Started: moment(m.GetStarted()), Keys: m.GetKeys(), Instances: m.GetInstances(),
		Connected: m.GetConnected(), Ready: m.GetReady(), Checks: []checkView{}, Replicas: []replicaView{},
	}
	for _, c := range m.GetChecks() {
		v.Checks = append(v.Checks, checkView{c.GetName(), c.GetOk(), c.GetReason()})
	}
	for _, r := range m.GetReplicas() {
		state := "follows"
		switch {
		case !r.GetAlive():
			state = "silent"
		case r.GetLeads():
			state = "leads"
		}
		v.Replicas = append(v.Replicas, replicaView{r.GetAddress(), r.GetVersion(), r.GetFormat(), r.GetIssuer(), moment(r.GetStarted()), state, r.GetSelf()})
	}
	return v
}

func (v serverView) tables() []table {
	t := table{rows: [][]string{
		{"version", v.Version}, {"cluster", v.Cluster}, {"incarnation", number(v.Incarnation)}, {"profile", v.Profile}, {"engine", v.Engine}, {"format", number(v.Format)},
		{"seal", v.Seal},
	}}
	if v.SealWarning != "" {
		t.add("seal warning", v.SealWarning)
	}
	t.add("sandbox", v.Sandbox)
	t.add("started", v.Started)
	t.add("keys", number(v.Keys))
	t.add("instances", number(v.Instances))
	t.add("connected", number(v.Connected))
	t.add("ready", yesNo(v.Ready))
	for _, c := range v.Checks {
		if !c.OK {
			t.add("not ready", c.Name+": "+c.Reason)
		}
	}
	if len(v.Replicas) == 0 {
		return []table{t}
	}
	servers := table{header: []string{"replica", "state", "version", "format", "started", ""}}
	for _, r := range v.Replicas {
		self := ""
		if r.Self {
			self = "this one"
		}
		servers.add(r.Address, r.State, r.Version, number(r.Format), r.Started, self)
	}
	return []table{t, servers}
}
