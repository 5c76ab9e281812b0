package rotor

import (
	"context"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/identity"
	"github.com/rotorkms/rotor/internal/rpc"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// joinTries bounds the tries to reach the server with a join token; a lost answer is repeated by the server.
const (
	joinTries = 5
	joinTime  = 15 * time.Second // of one try
	maxGrant  = 64 << 10         // of the answer, in bytes
)

// join exchanges the join token for a certificate of the directory's key.
func join(ctx context.Context, dir *identity.Dir, config Config) error {
	if config.JoinToken == "" {
		return fault.New(fault.Unauthenticated, "identity "+config.Identity).
			WithHint("it has not joined yet: give it a join token (rotor instance invite NAME)")
	}
	t, err := identity.ParseJoinToken(config.JoinToken)
	if err != nil {
		return err
	}
	csr, err := dir.CSR()
	if err != nil {
		return err
	}
	address := t.Address
	if config.Address != "" {
		address = config.Address
	}
	servers, err := identity.Addresses(address)
	if err != nil {
		return err
	}
	h := identity.JoinClient(t)
	h.Transport = identity.Among(h.Transport, servers) // the answer to a token is repeated
	defer h.CloseIdleConnections()
	client := rotorv1.NewJoinServiceClient(h, "https://"+servers[0], connect.WithReadMaxBytes(maxGrant))
	for n := 0; ; n++ {
		out, err := joinOnce(ctx, client, &rotorv1.JoinRequest{Token: strings.TrimSpace(config.JoinToken), Csr: csr})
		if err == nil {
			return dir.AcceptJoin(t, grantOf(out), address)
		}
		if code := fault.CodeOf(err); code != fault.Unavailable && code != fault.OutcomeUnknown || n == joinTries {
			return err
		}
		if !wait(ctx, backoff(n)) {
			return fault.Wrap(fault.Canceled, "join", err)
		}
	}
}

// joinOnce bounds one try, because an answer can be lost without the connection breaking.
func joinOnce(ctx context.Context, client rotorv1.JoinServiceClient, m *rotorv1.JoinRequest) (*rotorv1.JoinResponse, error) {
	try, cancel := context.WithTimeout(ctx, joinTime)
	defer cancel()
	out, err := client.Join(try, connect.NewRequest(m))
	if err == nil {
		return out.Msg, nil
	}
	if try.Err() != nil && ctx.Err() == nil {
		return nil, fault.Wrap(fault.Unavailable, "server", err)
	}
	return nil, rpc.Decode(err)
}

func grantOf(m *rotorv1.JoinResponse) identity.Grant {
	return identity.Grant{Chain: m.GetChain(), CA: m.GetCa(), ServerKey: m.GetServerKey(), Cluster: m.GetCluster(), Namespace: m.GetNamespace()}
}

// renewEvery is how often the certificate's age is looked at.
const renewEvery = time.Minute

// renew gets a new certificate once half of the old one's life is over, until ctx ends.
func (c *Client) renew(ctx context.Context) {
	client := c.renewal()
	for {
		if c.dir.NeedsRenewal(c.config.clock.Now()) {
			if err := renewOnce(ctx, client, c.dir); err != nil && ctx.Err() == nil {
				c.config.Log.WarnContext(ctx, "certificate not renewed", "error", err)
			}
		}
		if !wait(ctx, renewEvery) {
			return
		}
	}
}

func (c *Client) renewal() rotorv1.JoinServiceClient {
	return rotorv1.NewJoinServiceClient(c.http, "https://"+c.server, connect.WithReadMaxBytes(maxGrant))
}

// revive renews a certificate that ended while the process was down: nothing else is possible with it.
func (c *Client) revive(ctx context.Context) error {
	if !c.dir.IsInstance() || !c.dir.Expired(c.config.clock.Now()) {
		return nil
	}
	return renewOnce(ctx, c.renewal(), c.dir)
}

func renewOnce(ctx context.Context, client rotorv1.JoinServiceClient, dir *identity.Dir) error {
	csr, err := dir.CSR()
	if err != nil {
		return err
	}
	out, err := client.Renew(ctx, connect.NewRequest(&rotorv1.RenewRequest{Csr: csr}))
	if err != nil {
		return rpc.Decode(err)
	}
	return dir.Accept(grantOf(out.Msg), "")
}

// verifier checks the server's signatures with the key that was pinned at join.
type verifier struct{ dir *identity.Dir }

func (v verifier) signed(domain string, msg, sig []byte) bool {
	return identity.VerifyServer(v.dir.ServerKey(), domain, msg, sig)
}

// wait returns true after d, false when ctx ends before.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
