// Package audit is the Merkle log of every decision. Entries are committed together with what they record, put into order by a
// sequencer, and can be verified offline with the pinned checkpoint key. Layout and signatures: C2SP tlog-tiles, tlog-checkpoint;
// normative text: spec/audit.md.
package audit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Class says when an entry is durable (spec/audit.md, "Entries").
type Class int

// The classes.
const (
	ClassChange  Class = 1 // in the same commit as the change
	ClassRelease Class = 2 // durable before the answer
	ClassUse     Class = 3 // a window is opened durably before the first use; its count closes it
)

// Entry is one decision. The fields stand in the order of their JSON names, so that an entry has exactly one encoding. Nothing
// secret goes into it.
type Entry struct {
	Action    string            `json:"action"`
	Caller    string            `json:"caller"`
	Class     Class             `json:"class"`
	Detail    map[string]string `json:"detail,omitempty"`
	Key       string            `json:"key,omitempty"`
	Namespace string            `json:"namespace,omitempty"`
	Outcome   string            `json:"outcome"` // done, refused, open, closed
	Rule      string            `json:"rule,omitempty"`
	Time      time.Time         `json:"time"`
	Writes    []Write           `json:"writes,omitempty"`
}

// Write is one record as a change left it.
type Write struct {
	Counter uint64 `json:"counter"`
	Path    string `json:"path"`
	SHA256  string `json:"sha256"` // of the sealed blob in hex, or "deleted"
}

// Deleted stands in Write.SHA256 for a record that was deleted.
const Deleted = "deleted"

// MaxEntry bounds an encoded entry in bytes, as tlog-tiles has 16-bit lengths.
const MaxEntry = 1<<16 - 1

// Encode returns the one encoding of an entry, with its time in UTC. Bytes that are no UTF-8 become U+FFFD: the encoder would write them in
// a way that Decode does not take, and a log with such an entry could never be loaded again.
func (e Entry) Encode() ([]byte, error) {
	e = e.readable()
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		return nil, fmt.Errorf("encode audit entry: %w", err)
	}
	out := bytes.TrimSuffix(b.Bytes(), []byte("\n"))
	if len(out) > MaxEntry {
		return nil, fmt.Errorf("audit entry of %d bytes is too large", len(out))
	}
	return out, nil
}

// readable is the entry with UTF-8 and UTC alone.
func (e Entry) readable() Entry {
	e.Time = e.Time.UTC()
	clean := func(s string) string { return strings.ToValidUTF8(s, "\ufffd") }
	e.Action, e.Caller, e.Key, e.Namespace = clean(e.Action), clean(e.Caller), clean(e.Key), clean(e.Namespace)
	e.Outcome, e.Rule = clean(e.Outcome), clean(e.Rule)
	detail := make(map[string]string, len(e.Detail))
	for k, v := range e.Detail {
		detail[clean(k)] = clean(v)
	}
	e.Detail = detail
	e.Writes = slices.Clone(e.Writes)
	for i, w := range e.Writes {
		e.Writes[i].Path, e.Writes[i].SHA256 = clean(w.Path), clean(w.SHA256)
	}
	return e
}

// Decode parses an entry strictly: bytes that Encode would not make are refused.
func Decode(b []byte) (Entry, error) {
	var e Entry
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&e); err != nil {
		return e, fmt.Errorf("parse audit entry: %w", err)
	}
	again, err := e.Encode()
	if err != nil || !bytes.Equal(again, b) {
		return e, fmt.Errorf("audit entry is not in its canonical encoding")
	}
	return e, nil
}
