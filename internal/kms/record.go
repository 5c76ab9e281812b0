package kms

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/replica"
	"github.com/rotorkms/rotor/internal/store"
)

// This file is how keys are kept: the head of each under key/NAMESPACE/ID, its pages under key/NAMESPACE/ID/INDEX. What a change touches of them is
// written in one commit, under the condition that the head has not changed.

func keyPath(k keyring.Key) string { return keyPrefix + string(k.Namespace) + "/" + string(k.ID) }

func pagePath(k keyring.Key, index uint32) string {
	return keyPath(k) + "/" + strconv.FormatUint(uint64(index), 10)
}

// partOf takes a path apart: of which key it is, and of which page; head: of none.
func partOf(path string) (head string, page uint32, isHead bool, err error) {
	parts := strings.Split(path, "/")
	switch len(parts) {
	case 3:
		return path, 0, true, nil
	case 4:
		n, err := strconv.ParseUint(parts[3], 10, 32)
		return strings.Join(parts[:3], "/"), uint32(n), false, err
	}
	return "", 0, false, fault.New(fault.RecordTampered, path)
}

// parts are the records of one key that were read or changed together.
type parts struct {
	path  string
	head  []byte    // nil: not among them
	rev   store.Rev // of the head
	pages []keyring.Page
	later bool // some of them could not be read any more, as they were written again since
}

// sorted sorts records by the keys that they are of, in the order in which keys come first.
func sorted(changes []guard.Change) ([]*parts, error) {
	var all []*parts
	byPath := map[string]*parts{}
	for _, c := range changes {
		if c.Deleted {
			continue // a key's record is never deleted: its versions are tombstones
		}
		head, page, isHead, err := partOf(c.Path)
		if err != nil {
			return nil, fault.Wrap(fault.RecordTampered, c.Path, err)
		}
		p := byPath[head]
		if p == nil {
			p = &parts{path: head}
			byPath[head], all = p, append(all, p)
		}
		switch {
		case c.Later:
			p.later = true
		case isHead:
			p.head, p.rev = c.Value, c.Rev
		default:
			p.pages = append(p.pages, keyring.Page{Index: page, Value: c.Value})
		}
	}
	return all, nil
}

// changesOf gives records that were read the shape of changes.
func changesOf(records []guard.Record) []guard.Change {
	all := make([]guard.Change, len(records))
	for i, r := range records {
		all[i] = guard.Change{Record: r}
	}
	return all
}

// key puts a key together; was is its state before, nil for none.
func (p *parts) key(was *state) (*state, error) {
	if was == nil {
		was = &state{}
	}
	s := &state{rev: was.rev}
	var err error
	switch {
	case p.later:
		return nil, keyring.ErrPages
	case p.head != nil:
		s.rev = p.rev
		s.key, err = keyring.Read(p.head, p.pages, was.key)
	case was.key.ID == "":
		return nil, keyring.ErrPages
	default:
		s.key, err = was.key.WithPages(p.pages)
	}
	if err != nil {
		return nil, err
	}
	if keyPath(s.key) != p.path {
		return nil, fmt.Errorf("it is of key %s", s.key.ID)
	}
	return s, nil
}

// load reads a key and all its pages from the store as they are now.
func (s *Service) load(ctx context.Context, path string) (*state, error) {
	records, rev, err := s.guard.List(ctx, path)
	if err != nil {
		return nil, err
	}
	all, err := sorted(changesOf(records))
	if err != nil {
		return nil, err
	}
	if len(all) != 1 {
		return nil, fault.New(fault.NotFound, path)
	}
	st, err := all[0].key(nil)
	if err != nil { // in a snapshot none is missing
		return nil, fault.Wrap(fault.RecordTampered, path, err)
	}
	st.at = rev
	return st, nil
}

// shape is how keys are written.
type shape struct{ paged, packed bool }

// shape says whether a key is written in pages: it is already, or all servers on the store know them; and whether these are packed.
func (s *Service) shape(k keyring.Key) shape {
	return shape{paged: k.InPages() || s.knows(replica.FormatPages), packed: s.knows(replica.FormatPacked)}
}

// records are the writes that keep a key, its head first and at most keyring.PagesAtOnce pages.
func (s *Service) records(k keyring.Key) ([]guard.Write, error) {
	return recordsOf(k, s.shape(k), keyring.PagesAtOnce)
}

func recordsOf(k keyring.Key, as shape, most int) ([]guard.Write, error) {
	if !as.paged {
		value, err := json.Marshal(k)
		if err != nil {
			return nil, fmt.Errorf("encode key %s: %w", k.ID, err)
		}
		return []guard.Write{{Path: keyPath(k), Value: value}}, nil
	}
	head, pages, err := k.Record(most, as.packed)
	if err != nil {
		return nil, err
	}
	writes := []guard.Write{{Path: keyPath(k), Value: head}}
	for _, p := range pages {
		writes = append(writes, guard.Write{Path: pagePath(k, p.Index), Value: p.Value})
	}
	return writes, nil
}

// settle answers a commit of unknown outcome by reading again: records that hold what was to be written have been written. Otherwise the outcome
// stays unknown, as it may come yet; nothing is tried again blindly.
func (s *Service) settle(ctx context.Context, writes []guard.Write) func(store.Rev, error) (store.Rev, error) {
	return func(rev store.Rev, err error) (store.Rev, error) {
		if fault.CodeOf(err) != fault.OutcomeUnknown {
			return rev, err
		}
		var at store.Rev
		for _, w := range writes {
			r, rerr := s.guard.Get(ctx, w.Path)
			if rerr != nil || !bytes.Equal(r.Value, w.Value) {
				return rev, err
			}
			at = max(at, r.Rev)
		}
		return at, nil
	}
}

// update changes one key's record under the condition that nobody else did, and the extra conditions and writes; it reads
// again and repeats when only the key's own record was in the way. An edit that changes nothing writes nothing.
func (s *Service) update(ctx context.Context, p *guard.Permit, id keyring.KeyID, detail map[string]string, edit func(keyring.Key) (keyring.Key, change, error)) (keyring.Key, error) {
	for {
		k, rev, err := s.read(ctx, id)
		if err != nil {
			return k, err
		}
		next, with, err := edit(k)
		if err != nil {
			with.takeBack()
			return k, err
		}
		if len(with.writes) == 0 && !next.Changed(k) {
			return k, nil
		}
		records, err := s.records(next)
		if err != nil {
			with.takeBack()
			return k, err
		}
		conds := append([]guard.Cond{{Path: keyPath(k), Rev: rev}}, with.conds...)
		at, err := s.settle(ctx, records)(p.Commit(ctx, conds, append(records, with.writes...), detail))
		if fault.CodeOf(err) == fault.Conflict {
			with.takeBack()
			if _, now, rerr := s.read(ctx, id); rerr == nil && now != rev {
				continue
			}
		}
		if err != nil {
			return k, err
		}
		return next, s.await(ctx, at)
	}
}

// read gets a key as it is now: the revision of its head comes from the store, the rest from the ring once that has come so far.
func (s *Service) read(ctx context.Context, id keyring.KeyID) (keyring.Key, store.Rev, error) {
	k, ok := s.Key(id)
	if !ok {
		if err := s.CatchUp(ctx); err != nil {
			return k, 0, err
		}
		if k, ok = s.Key(id); !ok {
			return k, 0, fault.New(fault.NotFound, "key "+string(id))
		}
	}
	rec, err := s.guard.Get(ctx, keyPath(k))
	if err != nil {
		return k, 0, err
	}
	if err := s.await(ctx, rec.Rev); err != nil {
		return k, 0, err
	}
	st := s.ring.Load().get(id)
	return st.key, st.rev, nil
}

// Record reads a key linearizably, with the condition that it did not change since; for joins and gates.
func (s *Service) Record(ctx context.Context, id keyring.KeyID) (keyring.Key, guard.Cond, error) {
	k, rev, err := s.read(ctx, id)
	return k, guard.Cond{Path: keyPath(k), Rev: rev}, err
}

// apply takes the changes of one commit over into the ring.
func (s *Service) apply(ctx context.Context, changes []guard.Change) error {
	old := s.ring.Load()
	r := old.edit()
	for _, c := range changes {
		r.rev = max(r.rev, c.Rev)
	}
	all, err := sorted(changes)
	if err != nil {
		return err
	}
	var news []keyring.Key
	narrower := false
	for _, p := range all {
		was := r.get(keyring.KeyID(p.path[strings.LastIndexByte(p.path, '/')+1:]))
		if was != nil && r.rev <= was.at {
			continue // it was read from the store later than that
		}
		st, err := p.key(was)
		switch {
		case errors.Is(err, keyring.ErrPages):
			if st, err = s.load(ctx, p.path); err != nil {
				return err
			}
		case err != nil:
			return fault.Wrap(fault.RecordTampered, p.path, err)
		}
		if was == nil {
			was = &state{}
		}
		if st.narrowed = was.narrowed; st.key.Narrower(was.key) {
			st.narrowed, narrower = max(r.rev, st.at), true
		}
		r.put(st)
		s.vault.forget(st.key, was.key)
		news = append(news, st.key)
	}
	s.ring.Store(&r.ring)
	s.mu.Lock()
	close(s.swap)
	s.swap = make(chan struct{})
	s.mu.Unlock()
	for _, k := range news {
		if k.Custody == keyring.CustodyHSM { // now that the ring has it
			s.wantSweep()
		}
		if s.changed != nil {
			s.changed(k)
		}
	}
	if narrower && s.narrows != nil {
		s.narrows()
	}
	return nil
}
