package interop_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"

	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/mem"
)

// inclusion and certificate are what spec/audit.md says, written down once more.
type inclusion struct {
	Index uint64   `json:"index"`
	Entry []byte   `json:"entry"`
	Proof [][]byte `json:"proof"`
}

type certificate struct {
	Destroyed  inclusion `json:"destroyed"`
	Checkpoint string    `json:"checkpoint"`
}

// verify checks a certificate with a Merkle library that rotor does not use.
func (c certificate) verify(vkey string) error {
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return err
	}
	n, err := note.Open([]byte(c.Checkpoint), note.VerifierList(v))
	if err != nil {
		return err
	}
	lines := strings.Split(n.Text, "\n")
	size, err := strconv.ParseUint(lines[1], 10, 64)
	if err != nil {
		return err
	}
	root, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil {
		return err
	}
	h := rfc6962.DefaultHasher
	return proof.VerifyInclusion(h, c.Destroyed.Index, size, h.HashLeaf(c.Destroyed.Entry), c.Destroyed.Proof, root)
}

// TestCertificate: a certificate of destruction holds before a verifier that rotor did not write, and one that was changed does not.
func TestCertificate(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	l, rev, err := audit.Load(ctx, mem.New(), secret.Random(32), func(audit.Entry, store.Rev) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	skey, vkey, err := audit.NewKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.SetSigner(string(skey.Reveal())); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 2)
	go func() { done <- l.Follow(ctx, rev, func(audit.Commit) error { return nil }) }() // ends with ctx
	go func() { done <- l.Sequence(ctx, nil) }()                                        // ends with ctx
	defer func() { cancel(); <-done; <-done }()
	const at = 300
	for i := range entries {
		e := audit.Entry{Action: "test", Caller: "admin/ana", Class: audit.ClassChange, Outcome: "done", Time: time.Unix(int64(i), 0).UTC()}
		if i == at {
			e.Action, e.Namespace, e.Key = audit.ActDestroy, "default", "records"
			e.Detail = map[string]string{"version": "1", "destroyed": "true", "key_id": "id", "census": "0"}
			e.Writes = []audit.Write{{Counter: 2, Path: "material/default/id/1", SHA256: audit.Deleted}}
		}
		if err := l.Append(ctx, e); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Settled(ctx); err != nil {
		t.Fatal(err)
	}
	all, checkpoint, err := l.Prove(ctx, at)
	if err != nil {
		t.Fatal(err)
	}
	made := audit.DestroyCertificate{Destroyed: all[0], Checkpoint: string(checkpoint)}
	if err := made.Say(); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(made)
	if err != nil {
		t.Fatal(err)
	}
	var c certificate
	if err := json.Unmarshal(b, &c); err != nil {
		t.Fatal(err)
	}
	if err := c.verify(vkey); err != nil {
		t.Error(err)
	}
	c.Destroyed.Entry[len(c.Destroyed.Entry)/2] ^= 1
	if c.verify(vkey) == nil {
		t.Error("a changed entry is taken")
	}
}
