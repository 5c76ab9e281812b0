package native

import (
	"context"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/wire"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// namespaces counts the requests about keys of each namespace.
type namespaces struct{ Config }

// WrapUnary implements connect.Interceptor.
func (n namespaces) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		if ns, ok := n.of(r.Any()); ok {
			if err := wire.EnterNamespace(ctx, string(ns)); err != nil {
				return nil, err
			}
		}
		return next(ctx, r)
	}
}

// of is the namespace that a request is about. Who asks about a key that is not there is counted where it would be.
func (n namespaces) of(m any) (keyring.Namespace, bool) {
	switch m := m.(type) {
	case interface{ GetKey() *rotorv1.KeyRef }:
		return n.namespace(m.GetKey().GetNamespace()), true
	case interface{ GetKey() *rotorv1.Key }:
		return n.namespace(m.GetKey().GetNamespace()), true
	case interface{ GetNamespace() string }: // a reference, or a list
		return n.namespace(m.GetNamespace()), true
	case interface{ GetWrap() *rotorv1.FileWrap }:
		if k, ok := n.KMS.Key(keyring.KeyID(m.GetWrap().GetKeyId())); ok {
			return k.Namespace, true
		}
	}
	return "", false
}

// WrapStreamingClient implements connect.Interceptor.
func (namespaces) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor.
func (namespaces) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}
