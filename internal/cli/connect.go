package cli

import (
	"cmp"
	"context"
	"net/http"
	"os"
	"path/filepath"
	"syscall"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/identity"
	"github.com/rotorkms/rotor/internal/keybackup"
	"github.com/rotorkms/rotor/internal/rpc"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// Environment variables.
const (
	envIdentity = "ROTOR_IDENTITY"
	envAddress  = "ROTOR_ADDRESS"
	envSession  = "ROTOR_SESSION"
)

// maxAnswer bounds one message of the server, in bytes: the backup of a key and what is around it.
const maxAnswer = keybackup.MaxBytes + 1<<20

// api is the server as the caller's identity sees it.
type api struct {
	http    *http.Client
	address string
	keys    rotorv1.KeyServiceClient
	fleet   rotorv1.FleetServiceClient
	tokens  rotorv1.TokenServiceClient
	data    rotorv1.DataServiceClient
	audit   rotorv1.AuditServiceClient
	server  rotorv1.ServerServiceClient
	auth    rotorv1.AuthServiceClient
	roots   rotorv1.RootServiceClient
	seal    rotorv1.SealServiceClient
}

// connect reads the identity or the session; the connection is made by the first call.
func (a *app) connect() (*api, error) {
	if path := a.sessionPath(); path != "" {
		return a.connectSession(path)
	}
	dir, err := a.readIdentity()
	if err != nil {
		return nil, err
	}
	address, err := a.serverAddress(dir)
	if err != nil {
		return nil, err
	}
	servers, err := identity.Addresses(address)
	if err != nil {
		return nil, err
	}
	return newAPI(dir.ServersClient(servers), servers[0]), nil
}

func newAPI(h *http.Client, address string) *api {
	url, o := "https://"+address, connect.WithReadMaxBytes(maxAnswer)
	return &api{
		http: h, address: address,
		keys: rotorv1.NewKeyServiceClient(h, url, o), fleet: rotorv1.NewFleetServiceClient(h, url, o), tokens: rotorv1.NewTokenServiceClient(h, url, o),
		data: rotorv1.NewDataServiceClient(h, url, o), audit: rotorv1.NewAuditServiceClient(h, url, o), server: rotorv1.NewServerServiceClient(h, url, o),
		auth: rotorv1.NewAuthServiceClient(h, url, o), roots: rotorv1.NewRootServiceClient(h, url, o),
		seal: rotorv1.NewSealServiceClient(h, url, o),
	}
}

// listKeys returns the keys of a namespace that the caller may see, by name, each with its newest versions.
func (s *api) listKeys(ctx context.Context, namespace string) (all []*rotorv1.Key, err error) {
	r := &rotorv1.ListRequest{Namespace: namespace}
	for {
		m, err := message(s.keys.List(ctx, request(r)))
		if err != nil {
			return nil, err
		}
		all = append(all, m.GetKeys()...)
		if !m.GetMore() || len(m.GetKeys()) == 0 {
			return all, nil
		}
		r.After = all[len(all)-1].GetName()
	}
}

// whole gets the older versions of a key that are not in its message.
func (s *api) whole(ctx context.Context, k *rotorv1.Key) error {
	have := k.GetVersions()
	if uint32(len(have)) >= k.GetVersionCount() || len(have) == 0 { // #nosec G115 -- bounded by the size of a message
		return nil
	}
	r := &rotorv1.VersionsRequest{Key: &rotorv1.KeyRef{Namespace: k.GetNamespace(), Name: k.GetName()}}
	first := have[0].GetNumber()
	var older []*rotorv1.Version
	for {
		m, err := message(s.keys.Versions(ctx, request(r)))
		if err != nil {
			return err
		}
		for _, v := range m.GetVersions() {
			if v.GetNumber() < first {
				older = append(older, v)
			}
		}
		if r.From = m.GetNext(); r.From == 0 || r.From >= first {
			k.Versions = append(older, have...)
			return nil
		}
	}
}

func (s *api) close() { s.http.CloseIdleConnections() }

// dial opens the SDK's client, for files.
func (a *app) dial(ctx context.Context) (*rotor.Client, error) {
	if a.sessionPath() != "" {
		return nil, usage("--session", "files need the identity of an instance or an administrator")
	}
	dir, err := a.readIdentity()
	if err != nil {
		return nil, err
	}
	address, err := a.serverAddress(dir)
	if err != nil {
		return nil, err
	}
	return rotor.Dial(ctx, rotor.Config{Identity: a.identityPath(), Address: address, Log: quiet()})
}

// readIdentity reads the identity that the caller works as.
func (a *app) readIdentity() (*identity.Dir, error) {
	path := a.identityPath()
	dir, err := identity.Read(path)
	if fault.CodeOf(err) == fault.NotFound {
		return nil, fault.New(fault.NotFound, "identity "+path).
			WithHint("name one with --identity or %s, or start a server of your own with rotor dev", envIdentity)
	}
	if err != nil {
		return nil, err
	}
	if !dir.Joined() {
		return nil, fault.New(fault.Unauthenticated, "identity "+path).WithHint("it has not joined yet: rotor instance join")
	}
	return dir, nil
}

func (a *app) identityPath() string {
	if path := cmp.Or(a.identity, os.Getenv(envIdentity)); path != "" {
		return path
	}
	own := "identity"
	if config, err := os.UserConfigDir(); err == nil { // $XDG_CONFIG_HOME or ~/.config
		own = filepath.Join(config, "rotor", "identity")
	}
	if dev := filepath.Join(devDir, "admin"); !exists(own) && mine(dev) {
		return dev
	}
	return own
}

func (a *app) serverAddress(dir *identity.Dir) (string, error) {
	address := cmp.Or(a.address, os.Getenv(envAddress), dir.Address())
	if _, err := identity.Addresses(address); address != "" && err != nil {
		return "", usage("--address", "host:port, or several with commas between")
	}
	return address, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// mine says whether a directory is the caller's own: nobody else's directory is picked up by itself, as its server would be sent
// the plaintext.
func mine(path string) bool {
	info, err := os.Stat(path)
	if err != nil {
		return false
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(s.Uid) == os.Getuid()
}

// message takes the message of an answer and turns the error back into a fault.
func message[T any](r *connect.Response[T], err error) (*T, error) {
	if err != nil && connect.CodeOf(err) == connect.CodeUnimplemented {
		return nil, fault.New(fault.Unavailable, "request").WithHint("this server does not know the request; see rotor server status for its version")
	}
	if err != nil {
		return nil, rpc.Decode(err)
	}
	return r.Msg, nil
}

// request makes a request of a message.
func request[T any](m *T) *connect.Request[T] { return connect.NewRequest(m) }

// ref names a key in the chosen namespace.
func (a *app) ref(name string) *rotorv1.KeyRef {
	return &rotorv1.KeyRef{Namespace: a.namespace, Name: name}
}
