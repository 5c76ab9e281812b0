package identity

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
)

// StatementDomain separates signatures of statements from all other uses of the server's signing key.
const StatementDomain = "rotor/statement/1"

// MaxStatement bounds an encoded statement in bytes.
const MaxStatement = 4 << 10

// Statement says how far the log of a cluster was, signed by its server. Whoever keeps one is a witness: a store whose log does not continue
// it is not the one that it was.
type Statement struct {
	Cluster     string    `json:"cluster"`
	Incarnation uint32    `json:"incarnation"`
	Size        int64     `json:"size"`
	Root        string    `json:"root"`
	Time        time.Time `json:"time"`
}

type signedStatement struct {
	Body      []byte `json:"body"`
	Signature []byte `json:"signature"`
}

// Sign encodes the statement with the signature that sign makes of it, in StatementDomain.
func (s Statement) Sign(sign func(domain string, msg []byte) []byte) ([]byte, error) {
	body, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode statement: %w", err)
	}
	return json.Marshal(signedStatement{body, sign(StatementDomain, body)})
}

// OpenStatement reads a statement and checks its signature by the server's signing key. fault.Invalid.
func OpenStatement(b []byte, server ed25519.PublicKey) (Statement, error) {
	var s signedStatement
	var out Statement
	if len(b) > MaxStatement || json.Unmarshal(b, &s) != nil || !VerifyServer(server, StatementDomain, s.Body, s.Signature) || json.Unmarshal(s.Body, &out) != nil {
		return Statement{}, fault.New(fault.Invalid, "statement").WithHint("it is not signed by this cluster")
	}
	return out, nil
}

// Supersedes says whether a statement says more than another: of a later incarnation, or of more of the same log.
func (s Statement) Supersedes(o Statement) bool {
	return s.Incarnation > o.Incarnation || s.Incarnation == o.Incarnation && s.Size > o.Size
}

// Same says whether two statements say the same of the log.
func (s Statement) Same(o Statement) bool {
	return s.Cluster == o.Cluster && s.Incarnation == o.Incarnation && s.Size == o.Size && s.Root == o.Root
}

// statementFile holds the newest statement that the identity has seen.
const statementFile = "statement"

// Statement is what KeepStatement has kept, nil when there is none. It may be anything: a crash can leave a part of it.
func (d *Dir) Statement() []byte {
	f, err := os.Open(filepath.Join(d.path, statementFile))
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }() // it was only read
	b, err := io.ReadAll(io.LimitReader(f, MaxStatement))
	if err != nil {
		return nil
	}
	return b
}

// KeepStatement keeps a statement beside the identity, so that the next process of it is a witness as well. It is not synced: what a crash
// loses is one witness of the last minute.
func (d *Dir) KeepStatement(b []byte) error {
	if bytes.Equal(b, d.Statement()) {
		return nil
	}
	tmp, err := os.CreateTemp(d.path, tempPattern)
	if err != nil {
		return fmt.Errorf("keep statement: %w", err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // gone already after the rename
	_, err = tmp.Write(b)
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(d.path, statementFile))
	}
	if err != nil {
		return fmt.Errorf("keep statement: %w", err)
	}
	return nil
}
