package authn

import (
	"context"
	"crypto/tls"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/store"
)

// Proof is what somebody shows to log in: a credential, a JSON Web Token, or else the client certificate of the connection.
type Proof struct {
	Credential string
	JWT        string
	Issuer     string // the configured name of the JWT's issuer; empty: the one whose URL it names
	TLS        tls.ConnectionState
	Address    string // where the request comes from, without the port
	From       string // what strangers there are counted as; empty: the address
}

// Login exchanges a proof for a session. Refusals are in the log. fault.Invalid, Unauthenticated, Unavailable when an issuer's keys cannot be
// fetched or too many log in at this moment.
func (a *Authority) Login(ctx context.Context, p Proof) (Ticket, error) {
	if p.Credential != "" && p.JWT != "" {
		return Ticket{}, fault.New(fault.Invalid, "login").WithHint("show one proof, not two")
	}
	var t Ticket
	err := a.again(ctx, func() (store.Rev, error) {
		who, err := a.prove(ctx, p)
		if err != nil {
			return 0, err
		}
		t, err = a.newSession(ctx, who.caller, who.source, p.Address, who.conds, who.writes)
		return 0, err
	})
	return t, err
}

func (a *Authority) prove(ctx context.Context, p Proof) (proven, error) {
	switch {
	case p.Credential != "":
		return a.proveCredential(ctx, p)
	case p.JWT != "":
		return a.proveToken(ctx, p)
	}
	c, src, err := a.identify(p.TLS, false)
	if fault.CodeOf(err) == fault.Unauthenticated {
		return proven{}, a.failed(ctx, p, err)
	}
	return proven{caller: c, source: src}, err
}

// proveToken checks a JSON Web Token of a configured issuer.
func (a *Authority) proveToken(ctx context.Context, p Proof) (proven, error) {
	issuer, err := a.access.Load().choose(p)
	if err != nil {
		return proven{}, a.failed(ctx, p, err)
	}
	who, err := issuer.Verify(ctx, a.Now(), p.JWT)
	if fault.CodeOf(err) == fault.Unavailable || fault.CodeOf(err) == fault.Canceled {
		return proven{}, err
	}
	if err == nil {
		err = checkAttributes(who.Attributes)
	}
	if err != nil {
		return proven{}, a.failed(ctx, p, err)
	}
	c := policy.Caller{Kind: policy.KindToken, Name: "token/" + issuer.Name + "/" + who.Subject, Attributes: who.Attributes}
	return proven{caller: c, source: source{Issuer: issuer.Name, Until: a.Now().Add(issuer.Session)}}, nil
}
