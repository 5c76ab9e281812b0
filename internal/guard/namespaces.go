package guard

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/store"
)

// This file is the life of namespaces (docs/decisions/0070). A namespace is closed by a record at gone/NAMESPACE and made again by that record's deletion; its KEK
// stays, so nothing that was ever sealed under it depends on what becomes of the name. Every commit about a namespace is conditioned on that record's
// absence, and on its not having been deleted as that of a deleted namespace since the permit was made.

// gonePrefix is where closed namespaces are noted.
const gonePrefix = "gone/"

// First is the namespace that Init makes. It is never closed, so commits about it need no condition.
const First = "default"

// What the record of a closed namespace says.
const (
	closing = "closing" // what is in it is being removed
	deleted = "deleted" // nothing of it is left
)

// reopened is the event of the entry that opens a namespace again without its end.
const reopened = "reopened"

// life is how often a namespace was made again, and whether it is closed now.
type life struct {
	count uint64
	gone  bool
}

// lived notes a write of a record at gone/; once: its deletion ends no life. Call with mu held.
func (x *index) lived(namespace string, gone, once bool) {
	all := maps.Clone(*x.lives.Load())
	l := all[namespace]
	if l.gone = gone; !gone && !once {
		l.count++
	}
	all[namespace] = l
	x.lives.Store(&all)
}

// Life is a number that is another one after a namespace was deleted and made again; 0 of one that never was. It asks the memory, as HasNamespace.
func (g *Guard) Life(namespace string) (count uint64, closed bool) {
	l := (*g.index.lives.Load())[namespace]
	return l.count, l.gone
}

// Within is the same permit, with which nothing is committed once a namespace is deleted, also if it is made again. A permit of Admit or System is within the
// namespace of its resource.
func (p *Permit) Within(namespace string) *Permit {
	if p.guard == nil || namespace == "" {
		return p
	}
	life, _ := p.guard.Life(namespace)
	return p.WithinLife(namespace, life)
}

// WithinLife is Within for what began in a life of the namespace.
func (p *Permit) WithinLife(namespace string, life uint64) *Permit {
	as := *p
	as.within, as.life = namespace, life
	return &as
}

// alive conditions a commit on the life of a namespace. fault.NotFound when that is over.
func (d *draft) alive(ctx context.Context, namespace string, count uint64) error {
	if namespace == "" || namespace == First {
		return nil
	}
	path := gonePrefix + namespace
	if _, err := d.counter(ctx, path); err != nil { // the mark first: what is known of the life afterwards is not older
		return err
	}
	if now, closed := d.guard.Life(namespace); closed || now != count {
		return noNamespace(namespace)
	}
	d.gone = path
	d.conds = append(d.conds, store.Cond{Key: path})
	return nil
}

func noNamespace(namespace string) error { return fault.New(fault.NotFound, "namespace "+namespace) }

// CreateNamespace makes a namespace with a KEK of its own, or one again that was deleted, for which heard says that every server knows of the deletion, by its
// commit; nil: there is no other. fault.Exists, InUse while it is being deleted.
func (g *Guard) CreateNamespace(ctx context.Context, p *Permit, namespace string, heard func(context.Context, store.Rev) error) error {
	path, gone := kekPrefix+namespace, gonePrefix+namespace
	r, err := g.Get(ctx, gone)
	conds, writes := []Cond{{Path: path}}, []Write{{Path: path, Value: secret.Random(32).Reveal()}}
	switch {
	case fault.CodeOf(err) == fault.NotFound:
	case err != nil:
		return err
	case string(r.Value) != deleted:
		return fault.New(fault.InUse, "namespace "+namespace).WithHint("it is being deleted; delete it again, which goes on where it ended")
	default:
		if heard != nil {
			if err := heard(ctx, r.Rev); err != nil {
				return err
			}
		}
		conds, writes = []Cond{{Path: gone, Rev: r.Rev}}, []Write{{Path: gone, Delete: true}}
	}
	rev, err := p.Commit(ctx, conds, writes, map[string]string{"namespace": namespace})
	if fault.CodeOf(err) == fault.Conflict {
		return fault.New(fault.Exists, "namespace "+namespace)
	}
	if err != nil {
		return err
	}
	return g.index.wait(ctx, rev) // HasNamespace knows it now
}

// CloseNamespace closes a namespace: nothing about it is committed any more, by any server. It returns the condition that it is closed by this very record,
// which says so until ReopenNamespace or EndNamespace; done when it is deleted already. Who calls it again after a crash gets the same. fault.NotFound.
func (g *Guard) CloseNamespace(ctx context.Context, p *Permit, namespace string) (still Cond, done bool, err error) {
	still.Path = gonePrefix + namespace
	for {
		r, err := g.Get(ctx, still.Path)
		if err == nil {
			still.Rev = r.Rev
			return still, string(r.Value) == deleted, nil
		}
		if fault.CodeOf(err) != fault.NotFound {
			return still, false, err
		}
		if there, err := g.revOf(ctx, kekPrefix+namespace); err != nil || there == 0 || namespace == First {
			if err == nil {
				err = noNamespace(namespace)
			}
			return still, false, err
		}
		still.Rev, err = p.Commit(ctx, []Cond{{Path: still.Path}}, []Write{{Path: still.Path, Value: []byte(closing)}}, map[string]string{"namespace": namespace, "event": closing})
		if fault.CodeOf(err) == fault.Conflict {
			continue // somebody else has
		}
		if err == nil {
			err = g.index.wait(ctx, still.Rev)
		}
		return still, false, err
	}
}

// ReopenNamespace opens a namespace again that cannot be deleted. fault.Conflict when somebody else did, or has gone on.
func (g *Guard) ReopenNamespace(ctx context.Context, p *Permit, namespace string, still Cond) error {
	rev, err := p.Commit(ctx, []Cond{still}, []Write{{Path: still.Path, Delete: true}}, map[string]string{"namespace": namespace, "event": reopened})
	if err != nil {
		return err
	}
	return g.index.wait(ctx, rev)
}

// EndNamespace notes that nothing is left of a closed namespace, and gives the commit. fault.Conflict.
func (g *Guard) EndNamespace(ctx context.Context, p *Permit, namespace string, still Cond) (store.Rev, error) {
	rev, err := p.Commit(ctx, []Cond{still}, []Write{{Path: still.Path, Value: []byte(deleted)}}, map[string]string{"namespace": namespace, "event": deleted})
	if err != nil {
		return 0, err
	}
	return rev, g.index.wait(ctx, rev)
}

// DeleteAll deletes records as they were read, as many at a time as a commit takes with their marks, while a namespace is still closed, and
// gives the last commit. fault.Conflict when it is not, or one has changed.
func (p *Permit) DeleteAll(ctx context.Context, still Cond, records []Record, detail map[string]string) (rev store.Rev, err error) {
	for some := range slices.Chunk(records, 30) {
		conds, writes := []Cond{still}, []Write(nil)
		for _, r := range some {
			conds, writes = append(conds, Cond{Path: r.Path, Rev: r.Rev}), append(writes, Write{Path: r.Path, Delete: true})
		}
		if rev, err = p.Commit(ctx, conds, writes, detail); err != nil {
			return 0, err
		}
	}
	return rev, nil
}

// HasNamespace says whether there is a namespace. It asks the memory, which is as far as the log has been followed.
func (g *Guard) HasNamespace(namespace string) bool {
	w, ok := g.index.latest(kekPrefix + namespace)
	_, closed := g.Life(namespace)
	return ok && !w.deleted && !closed
}

// Namespaces are all namespaces, sorted, from memory as HasNamespace.
func (g *Guard) Namespaces() []string {
	return slices.DeleteFunc(g.NamespaceNames(), func(ns string) bool {
		_, closed := g.Life(ns)
		return closed
	})
}

// NamespaceNames are the names of all namespaces that there ever were, sorted.
func (g *Guard) NamespaceNames() []string {
	all := g.index.living(kekPrefix)
	for i, path := range all {
		all[i] = strings.TrimPrefix(path, kekPrefix)
	}
	return all
}
