package postgres

import (
	"github.com/rotorkms/rotor/internal/store"
)

// changes is what a transaction is about to write, from what it has read.
type changes struct {
	history    store.Rev
	rev, first store.Rev            // of the head
	revs       map[string]store.Rev // of each record that the batch names; 0: there is none
	values     map[string][]byte    // what is put; nil: deleted
	batch      []byte               // the transaction's random number
	logRevs    []int64
	log        [][]byte
}

// apply adds a commit under the next revision. store.ErrConflict.
func (c *changes) apply(p *pending) (store.Rev, error) {
	for _, cond := range p.conds {
		if c.revs[cond.Key] != cond.Rev {
			return 0, store.ErrConflict
		}
	}
	c.rev++
	events := []byte{}
	for _, o := range p.ops {
		switch {
		case !o.Delete:
			value := o.Value
			if value == nil {
				value = []byte{}
			}
			c.revs[o.Key], c.values[o.Key] = c.rev, value
		case c.revs[o.Key] == 0:
			continue
		default:
			c.revs[o.Key], c.values[o.Key] = 0, nil
		}
		events = appendEvent(events, store.Event{Key: o.Key, Value: c.values[o.Key], Deleted: o.Delete})
	}
	c.logRevs, c.log = append(c.logRevs, int64(c.rev)), append(c.log, events)
	return c.rev, nil
}

// puts are the columns of what is put.
type puts struct {
	keys, values [][]byte
	revs         []int64
}

func (c *changes) puts() (p puts) {
	for key, value := range c.values {
		if value != nil {
			p.keys, p.values, p.revs = append(p.keys, []byte(key)), append(p.values, value), append(p.revs, int64(c.revs[key]))
		}
	}
	return p
}

// gone are the keys of what is deleted.
func (c *changes) gone() (keys [][]byte) {
	for key, value := range c.values {
		if value == nil {
			keys = append(keys, []byte(key))
		}
	}
	return keys
}
