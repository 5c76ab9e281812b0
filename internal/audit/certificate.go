package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rotorkms/rotor/internal/fault"
)

// CertificateType is the type of a certificate of destruction. Normative text: spec/audit.md.
const CertificateType = "rotor/destroy-certificate/1"

// MaxCertificate bounds an encoded certificate, in bytes: four entries, their proofs and a checkpoint.
const MaxCertificate = 1 << 20

// What the entries of a destruction and of an erasure say.
const (
	ActDestroy   = "destroy"       // with Detail["destroyed"] = "true": the version has gone, not only an approval of it
	ActErase     = "server.erase"  // every sealer has forgotten what is before Detail["generation"]
	actTurn      = "server.rotate" // made the generation of Detail["generation"] the current one
	actTurnShred = "server.shred"
)

// Inclusion is an entry of the log, and the proof that it is in it (RFC 6962, section 2.1.1).
type Inclusion struct {
	Index int64         `json:"index"`
	Entry []byte        `json:"entry"` // as it is in the log
	Proof []tlog.Hash   `json:"proof"` // from the leaf to the root
	at    *DecodedEntry // once it is checked
}

// DecodedEntry is an entry that a certificate rests on.
type DecodedEntry struct {
	Index int64
	Entry
}

// DestroyCertificate is the evidence that a version of a key was destroyed: what is said, and the entries of the log that say it, proven to be in
// a log whose checkpoint is signed. Nothing else is signed: whoever has pinned the checkpoint key needs nothing more.
type DestroyCertificate struct {
	Type       string     `json:"type"`
	Namespace  string     `json:"namespace"`
	Key        string     `json:"key"`
	KeyID      string     `json:"key_id"`
	Version    uint32     `json:"version"`
	Algorithm  string     `json:"algorithm,omitempty"`
	Census     string     `json:"census"`                // ciphertexts that the last census found in the registered data sets
	DataSets   []string   `json:"data_sets,omitempty"`   // that it counted
	ApprovedBy []string   `json:"approved_by,omitempty"` // callers
	Withdrawn  time.Time  `json:"withdrawn"`             // when it was gone from what the servers use
	Erased     *time.Time `json:"erased,omitempty"`      // when every sealer had forgotten what it was sealed under; absent: withdrawn alone

	Destroyed  Inclusion  `json:"destroyed"`         // the decision
	Deleted    *Inclusion `json:"deleted,omitempty"` // the material's deletion, where that was before the decision
	Turn       *Inclusion `json:"turn,omitempty"`    // the next root key, after the deletion
	Erasure    *Inclusion `json:"erasure,omitempty"` // the oblivion of the ones before
	Checkpoint string     `json:"checkpoint"`        // signed note (C2SP tlog-checkpoint)
}

// materialOf is the path of the record that the certificate is about.
func (c DestroyCertificate) materialOf() string {
	return "material/" + c.Namespace + "/" + c.KeyID + "/" + strconv.FormatUint(uint64(c.Version), 10)
}

// Prove returns entries with proofs of their inclusion under one signed checkpoint. fault.NotFound for an index that is not in order yet.
func (l *Log) Prove(ctx context.Context, indexes ...int64) (all []Inclusion, checkpoint []byte, err error) {
	checkpoint, size, err := l.Checkpoint()
	if err != nil {
		return nil, nil, err
	}
	for _, i := range indexes {
		if i < 0 || i >= size {
			return nil, nil, fault.New(fault.NotFound, fmt.Sprintf("entry %d of the audit log", i))
		}
		b, err := l.entry(ctx, i)
		if err != nil {
			return nil, nil, err
		}
		l.mu.Lock()
		proof, err := tlog.ProveRecord(size, i, l)
		l.mu.Unlock()
		if err != nil {
			return nil, nil, fmt.Errorf("prove entry %d: %w", i, err)
		}
		all = append(all, Inclusion{Index: i, Entry: b, Proof: proof})
	}
	return all, checkpoint, nil
}

// Say fills what the certificate says from its entries. fault.AuditBroken when they do not say it.
func (c *DestroyCertificate) Say() error {
	d, err := c.Destroyed.decoded()
	if err != nil {
		return err
	}
	version, err := strconv.ParseUint(d.Detail["version"], 10, 32)
	if d.Action != ActDestroy || d.Class != ClassChange || d.Outcome != "done" || d.Detail["destroyed"] != "true" || err != nil {
		return fault.New(fault.AuditBroken, "the entry does not say that a version was destroyed")
	}
	c.Type, c.Namespace, c.Key, c.Version = CertificateType, d.Namespace, d.Entry.Key, uint32(version)
	c.KeyID, c.Algorithm, c.Census = d.Detail["key_id"], d.Detail["algorithm"], d.Detail["census"]
	c.DataSets, c.ApprovedBy = names(d.Detail["data_sets"]), names(d.Detail["approved_by"])
	gone, err := c.deletion(d)
	if err != nil {
		return err
	}
	c.Withdrawn, c.Erased = d.Time, nil
	if c.Erasure == nil && c.Turn == nil {
		return nil
	}
	return c.sayErased(gone)
}

func names(list string) []string {
	if list == "" {
		return nil
	}
	return strings.Split(list, ", ")
}

// deletion is the entry that deleted the material: the decision itself, or an earlier one.
func (c *DestroyCertificate) deletion(destroyed *DecodedEntry) (*DecodedEntry, error) {
	gone := destroyed
	if c.Deleted != nil {
		var err error
		if gone, err = c.Deleted.decoded(); err != nil {
			return nil, err
		}
	}
	if !slices.ContainsFunc(gone.Writes, func(w Write) bool { return w.Path == c.materialOf() && w.SHA256 == Deleted }) {
		return nil, fault.New(fault.AuditBroken, "no entry deletes the material of the version")
	}
	return gone, nil
}

// sayErased: a root key was made after the deletion, and what was before it was forgotten.
func (c *DestroyCertificate) sayErased(gone *DecodedEntry) error {
	if c.Erasure == nil || c.Turn == nil {
		return fault.New(fault.AuditBroken, "an erasure is a root key and the oblivion of the ones before")
	}
	turn, err := c.Turn.decoded()
	if err != nil {
		return err
	}
	erase, err := c.Erasure.decoded()
	if err != nil {
		return err
	}
	made, generation := turn.Detail["generation"], erase.Detail["generation"]
	switch {
	case turn.Action != actTurn && turn.Action != actTurnShred, turn.Outcome != "done", turn.Class != ClassChange, made == "":
		return fault.New(fault.AuditBroken, "an entry does not say that a root key was made")
	case erase.Action != ActErase || erase.Outcome != "done" || erase.Class != ClassChange || generation != made:
		return fault.New(fault.AuditBroken, "an entry does not say that the root keys before were forgotten")
	case turn.Index <= gone.Index || erase.Index <= turn.Index:
		return fault.New(fault.AuditBroken, "the root key was made before the material was deleted")
	}
	c.Erased = &erase.Time
	return nil
}

// decoded decodes the entry once.
func (i *Inclusion) decoded() (*DecodedEntry, error) {
	if i.at == nil {
		e, err := Decode(i.Entry)
		if err != nil {
			return nil, fault.Wrap(fault.AuditBroken, fmt.Sprintf("entry %d", i.Index), err)
		}
		i.at = &DecodedEntry{i.Index, e}
	}
	return i.at, nil
}

// VerifyCertificate checks a certificate offline against the pinned verifier key: that every entry is in the log that the checkpoint is signed
// for, and that they say what the certificate does. It also returns the size of that log. fault.AuditBroken names what does not fit.
func VerifyCertificate(b []byte, vkey string) (c DestroyCertificate, size int64, err error) {
	if len(b) > MaxCertificate {
		return c, 0, fault.New(fault.TooLarge, "certificate").WithHint("at most %d bytes", MaxCertificate)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil || c.Type != CertificateType || d.More() {
		return c, 0, fault.Wrap(fault.AuditBroken, "certificate is malformed", err)
	}
	_, size, root, err := openCheckpoint([]byte(c.Checkpoint), vkey)
	if err != nil {
		return c, 0, err
	}
	for _, i := range []*Inclusion{&c.Destroyed, c.Deleted, c.Turn, c.Erasure} {
		if i == nil {
			continue
		}
		if i.Index < 0 || i.Index >= size || tlog.CheckRecord(i.Proof, size, root, i.Index, tlog.RecordHash(i.Entry)) != nil {
			return c, size, fault.New(fault.AuditBroken, fmt.Sprintf("entry %d is not in the log of the checkpoint", i.Index))
		}
	}
	said := c
	if err := said.Say(); err != nil {
		return c, size, err
	}
	want, err := json.Marshal(said)
	if err != nil {
		return c, size, fmt.Errorf("encode certificate: %w", err)
	}
	got, err := json.Marshal(c)
	if err != nil || !bytes.Equal(got, want) {
		return c, size, fault.Wrap(fault.AuditBroken, "the certificate says something else than its entries", err)
	}
	return said, size, nil
}
