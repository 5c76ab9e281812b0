package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/identity"
)

// anchorFile is where a server keeps how far its log was, beside the store and not in it.
const anchorFile = "anchor"

// anchorEvery is how often the anchor follows the log. An older store that is put back within that time of its copy is not noticed by it.
const anchorEvery = time.Second

// maxAnchor bounds an anchor in bytes.
const maxAnchor = identity.MaxStatement

// statements reads what is kept of the log outside of the store.
func (c Config) statements() ([][]byte, error) {
	f, err := os.Open(c.Anchor)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open anchor: %w", err)
	}
	b := make([]byte, maxAnchor+1)
	n, err := f.Read(b)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("read anchor: %w", err)
	}
	return [][]byte{b[:n]}, nil
}

// keepAnchor writes the anchor whenever the log has grown, until ctx ends, and once more then.
func (c Config) keepAnchor(ctx context.Context, g *guard.Guard) error {
	tick := time.NewTicker(anchorEvery)
	defer tick.Stop()
	last := int64(-1)
	for {
		if err := c.lookBack(ctx, g); err != nil && ctx.Err() == nil {
			c.Log.DebugContext(ctx, "store not compared with what it was", "error", err)
		}
		size, err := c.anchor(g, last)
		if err != nil {
			c.Log.WarnContext(ctx, "anchor not written", "error", err)
		} else {
			last = size
		}
		if ctx.Err() != nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// anchor writes how far the log is, if it is further than it was.
func (c Config) anchor(g *guard.Guard, last int64) (int64, error) {
	if len(g.Detected()) > 0 {
		return last, nil
	}
	return c.writeAnchor(g, last)
}

// lookBack notices a store that was set back, or exchanged for another, under the running server. What the server knew is the anchor then.
func (c Config) lookBack(ctx context.Context, g *guard.Guard) error {
	if len(g.Detected()) > 0 {
		return nil
	}
	d, err := g.CheckStore(ctx)
	if err != nil || d.Kind == "" {
		return err
	}
	c.Log.ErrorContext(ctx, "the store is not the one that it was", "detected", d.String())
	_, err = c.writeAnchor(g, -1)
	return err
}

func (c Config) writeAnchor(g *guard.Guard, last int64) (int64, error) {
	b, size, err := g.StatementAt()
	if err != nil || size == last {
		return last, err
	}
	tmp, err := os.CreateTemp(filepath.Dir(c.Anchor), ".anchor-*")
	if err != nil {
		return last, err
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // gone already after the rename
	_, err = tmp.Write(b)
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return last, err
	}
	return size, os.Rename(tmp.Name(), c.Anchor)
}
