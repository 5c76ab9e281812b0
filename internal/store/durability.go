package store

import "context"

// Durability is what stands between an acknowledged commit and its loss, where that is decided by the settings of a server.
type Durability struct {
	Crash   []string // settings with which a crash of the server may lose acknowledged commits, or damage the store
	Machine []string // settings with which the loss of the server's machine loses acknowledged commits
}

// Durable is what an engine implements that cannot vouch for its server.
type Durable interface {
	// Durability asks the server, now. ErrUnavailable.
	Durability(ctx context.Context) (Durability, error)
}
