package vault

import (
	"context"
	"encoding/hex"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/sealing"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/wire"
)

// Level is the release of Vault whose API is spoken. Clients compare it with the releases that brought what they want to use; rotor's own version follows
// as build metadata (Semantic Versioning 2.0, 10), which they let be.
const Level = "1.21.0"

func versionOf(rotor string) string { return Level + "+rotor." + rotor }

// unsealWait bounds how long the last share waits for the store to open, so that its answer says that it has.
const unsealWait = 20 * time.Second

// Node is a server in whatever state it is: what it says of itself to everybody.
type Node struct {
	About   func(context.Context) About
	Seals   *sealing.Keeper // nil: the server waits for its init
	Now     func() time.Time
	Opened  func(ctx context.Context) bool                         // waits until the store has opened, and says whether it has; nil: it is open
	Init    func(context.Context, InitRequest) (InitAnswer, error) // nil: not here
	Trusted bool                                                   // the request came over the local socket
}

// Node is an open server.
func (c Config) Node() Node { return Node{About: c.About, Seals: c.Seals, Now: c.Now} }

// statusRoutes are what a server answers to everybody, sealed or not.
func statusRoutes(n Node) []route {
	code := func(name, when string) field { return field{name, "int", "status " + when, false} }
	return []route{
		{
			pattern: "sys/health", ops: map[operation]handler{opRead: n.health}, stranger: true, raw: true, doc: "Says how this server does, also by its status: 200, 429 not ready, 501 no init, 503 sealed.",
			fields: []field{
				{"standbyok", "bool", "a server that is not ready answers as one that is", false}, {"perfstandbyok", "bool", "the same of performance standbys, which there are none", false},
				code("activecode", "of one that is ready"), code("standbycode", "of one that is not ready"), code("sealedcode", "of one that is sealed"), code("uninitcode", "of one without an init"),
				code("drsecondarycode", "of a disaster recovery secondary, which there are none"), code("performancestandbycode", "of a performance standby, which there are none"),
			},
			differs: "every server of a cluster serves, so none is a standby; one that drains, or is behind the log, says standby",
		},
		{pattern: "sys/seal-status", ops: map[operation]handler{opRead: n.sealStatus}, stranger: true, raw: true, doc: "Says whether the server is sealed, and how many shares are there."},
		{
			pattern: "sys/unseal", ops: map[operation]handler{opUpdate: n.unseal}, stranger: true, raw: true, doc: "Takes a custodian's share.",
			fields: []field{
				{"key", "string", "the share, as rotor printed it", false}, {"reset", "bool", "forget the shares that are there", false},
				{"nonce", "string", "names the collection of shares; the answer to a share tells it", false},
			},
			differs: "the key is a share of rotor's (rs1-…); a reset needs the nonce, or the local socket; many wrong shares have to wait (429); a share that is there already counts once; migrate is refused",
		},
		{
			pattern: "sys/leader", ops: map[operation]handler{opRead: n.leader}, stranger: true, raw: true, doc: "Says who leads.",
			differs: "every server of a cluster serves, so each says that it is the one to ask",
		},
		{
			pattern: "sys/init", ops: map[operation]handler{opRead: n.initialized, opUpdate: n.init}, stranger: true, raw: true, doc: "Says whether there was an init; over the local socket it makes the cluster.",
			fields: []field{
				{"secret_shares", "int", "how many shares are made", false}, {"secret_threshold", "int", "how many of them open the server", false},
			},
			differs: "an init is made over the local socket of the configuration alone, with the enrolment secret of the server's directory as token",
		},
	}
}

// health is GET and HEAD of sys/health.
func (n Node) health(ctx context.Context, r *request) (*response, error) {
	codes := map[string]int{
		"activecode": http.StatusOK, "standbycode": http.StatusTooManyRequests, "sealedcode": http.StatusServiceUnavailable, "uninitcode": http.StatusNotImplemented,
		"drsecondarycode": 472, "performancestandbycode": 473,
	}
	for name := range codes {
		if !r.has(name) {
			continue
		}
		code, err := strconv.Atoi(r.str(name))
		if err != nil || code < 200 || code > 599 { // what is below is no end of an answer
			return nil, &refusal{status: http.StatusBadRequest, cause: fault.New(fault.Invalid, name)}
		}
		codes[name] = code
	}
	ok, err := r.is("standbyok", false)
	if _, perr := r.is("perfstandbyok", false); err != nil || perr != nil {
		return nil, &refusal{status: http.StatusBadRequest, cause: fault.New(fault.Invalid, "standbyok")}
	}
	about := n.About(ctx)
	standby := n.open() && !about.Ready
	status := codes["activecode"]
	switch {
	case n.Seals == nil:
		status = codes["uninitcode"]
	case !n.open():
		status = codes["sealedcode"]
	case standby && !ok:
		status = codes["standbycode"]
	}
	data := map[string]any{
		"initialized": n.Seals != nil, "sealed": !n.open(), "standby": standby, "performance_standby": false, "replication_performance_mode": "disabled",
		"replication_dr_mode": "disabled", "server_time_utc": n.Now().Unix(), "version": versionOf(about.Version), "enterprise": false, "echo_duration_ms": 0, "clock_skew_ms": 0,
	}
	n.named(data, about)
	return &response{status: status, data: data}, nil
}

// named adds the names of the cluster, which a server knows when it is open.
func (n Node) named(data map[string]any, about About) {
	if !n.open() || len(about.Cluster) < 8 {
		return
	}
	data["cluster_name"], data["cluster_id"] = "rotor-"+about.Cluster[:8], about.Cluster
	if b, err := hex.DecodeString(about.Cluster); err == nil && len(b) == 16 {
		data["cluster_id"] = uuidText([16]byte(b))
	}
}

// open says whether the server serves.
func (n Node) open() bool { return n.Opened == nil && n.Seals != nil && !n.Seals.Sealed() }

func (n Node) sealStatus(ctx context.Context, _ *request) (*response, error) {
	return &response{data: n.state(ctx, n.open(), "")}, nil
}

// state is the answer to sys/seal-status and sys/unseal. nonce is what whoever brought a share may know.
func (n Node) state(ctx context.Context, open bool, nonce string) map[string]any {
	about := n.About(ctx)
	data := map[string]any{
		"type": "shamir", "initialized": n.Seals != nil, "sealed": !open, "t": 0, "n": 0, "progress": 0, "nonce": nonce, "version": versionOf(about.Version), "build_date": "",
		"migration": false, "recovery_seal": false, "storage_type": about.Engine,
	}
	if n.Seals != nil {
		p, people := n.furthest()
		if !people {
			data["type"], data["recovery_seal"] = n.Seals.Kind(), true
		}
		data["t"], data["n"] = p.Threshold, p.Total
		if !open {
			data["progress"] = p.Have
		}
	}
	if open {
		n.named(data, about)
	}
	return data
}

// furthest is the collection of shares that lacks the fewest; false when no shares open the server.
func (n Node) furthest() (best sealing.Progress, people bool) {
	for _, p := range n.Seals.Shares() {
		if !people || p.Threshold-p.Have < best.Threshold-best.Have {
			best, people = p, true
		}
	}
	return best, people
}

// unseal takes a share of a sealed server. An open one takes none: there a share would count for the removal of a sealer.
func (n Node) unseal(ctx context.Context, r *request) (*response, error) {
	if n.Seals == nil {
		return nil, bad("Vault is not initialized")
	}
	reset, err := r.is("reset", false)
	if err != nil {
		return nil, err
	}
	if migrate, err := r.is("migrate", false); err != nil || migrate {
		return nil, bad("seals are added and removed with rotor seal; nothing is migrated")
	}
	nonce := r.str("nonce")
	if reset {
		return n.reset(ctx, nonce)
	}
	key := secret.Take([]byte(r.str("key")))
	defer key.Destroy()
	defer clear(r.raw)
	if key.Len() == 0 {
		return nil, bad("'key' must be specified in request body as JSON, or 'reset' set to true")
	}
	if n.open() {
		return &response{data: n.state(ctx, true, "")}, nil
	}
	p, err := n.Seals.Unseal(ctx, wire.Network(ctx), nonce, key)
	switch fault.CodeOf(err) {
	case fault.ShareDuplicate:
		return &response{data: n.state(ctx, false, nonce)}, nil
	case fault.Unavailable: // of too many wrong ones
		return nil, &refusal{http.StatusTooManyRequests, []string{refused(err).texts[0]}, nil, fault.Wrap(fault.RateLimited, "shares", err)}
	}
	if err != nil {
		return nil, err
	}
	if !p.Done() {
		return &response{data: n.state(ctx, false, p.Attempt)}, nil
	}
	wait, cancel := context.WithTimeout(ctx, unsealWait)
	defer cancel()
	open := n.Opened != nil && n.Opened(wait)
	return &response{data: n.state(ctx, open, "")}, nil
}

// reset forgets the shares of a collection. Who names it has brought one of them; over the local socket nobody needs to.
func (n Node) reset(ctx context.Context, nonce string) (*response, error) {
	if n.open() {
		return nil, bad("vault is unsealed")
	}
	if n.Trusted {
		n.Seals.Forget()
		return &response{data: n.state(ctx, false, "")}, nil
	}
	if _, err := n.Seals.Reset(nonce); err != nil {
		return nil, err
	}
	return &response{data: n.state(ctx, false, "")}, nil
}

func (n Node) leader(ctx context.Context, _ *request) (*response, error) {
	if !n.open() {
		return nil, fault.New(fault.Sealed, "server")
	}
	about := n.About(ctx)
	address := "https://" + about.Address
	return &response{data: map[string]any{
		"ha_enabled": about.Shared, "is_self": true, "active_time": about.Started.UTC().Format(time.RFC3339Nano), "leader_address": address, "leader_cluster_address": address,
		"performance_standby": false, "performance_standby_last_remote_wal": 0,
	}}, nil
}

// InitRequest is what an init asks for.
type InitRequest struct {
	Secret            string // that the server's directory holds
	Shares, Threshold int    // 0: the configuration's root of trust alone opens it
}

// InitAnswer is what it made, and what exists nowhere else.
type InitAnswer struct {
	Shares        []string
	Token         string // with the policy root, for a day
	Enrolment     string // makes an administrator of rotor's own, once, within an hour
	CheckpointKey string // pins the audit log; no secret
}

func (n Node) initialized(context.Context, *request) (*response, error) {
	return &response{data: map[string]any{"initialized": n.Seals != nil}}, nil
}

// init makes the cluster of a server that has none.
func (n Node) init(ctx context.Context, r *request) (*response, error) {
	switch {
	case n.Seals != nil:
		return nil, bad("Vault is already initialized")
	case n.Init == nil:
		return nil, bad("an init is made over the local socket of the server (configuration: socket), or with rotor server init")
	}
	for _, name := range []string{"pgp_keys", "root_token_pgp_key", "recovery_pgp_keys"} {
		if l, err := r.list(name); err != nil || len(l) > 0 {
			return nil, bad("parameter %s is not supported", name)
		}
	}
	shares, err := r.whole("secret_shares", 0)
	if err != nil {
		return nil, err
	}
	threshold, err := r.whole("secret_threshold", 0)
	if err != nil {
		return nil, err
	}
	made, err := n.Init(stays(ctx), InitRequest{r.header.Get("X-Vault-Token"), int(shares), int(threshold)})
	if f := new(fault.Error); errors.As(err, &f) && f.Code == fault.Unauthenticated { // who is on the local socket may hear which token it takes
		return nil, &refusal{http.StatusForbidden, []string{"permission denied: " + f.Hint}, nil, err}
	} else if err != nil && f.Code == fault.Exists { // made meanwhile, here or at another server on the store
		return nil, &refusal{http.StatusBadRequest, []string{"Vault is already initialized"}, nil, err}
	}
	if err != nil {
		return nil, err
	}
	return &response{data: map[string]any{
		"keys": orNone(made.Shares), "keys_base64": orNone(made.Shares), "recovery_keys": []string{}, "recovery_keys_base64": []string{}, "root_token": made.Token,
		"enrolment_token": made.Enrolment, "checkpoint_key": made.CheckpointKey,
	}}, nil
}

// orNone is a list as JSON has it: empty, and not null.
func orNone(l []string) []string {
	if l == nil {
		return []string{}
	}
	return l
}
