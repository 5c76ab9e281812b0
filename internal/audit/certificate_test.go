package audit_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/store/mem"
)

const materialPath = "material/default/id/1"

func entryOf(action string, writes []audit.Write, detail ...string) audit.Entry {
	e := audit.Entry{
		Action: action, Caller: "system/rollout", Class: audit.ClassChange, Outcome: "done", Time: time.Unix(1, 0).UTC(), Namespace: "default", Key: "records",
		Detail: map[string]string{}, Writes: writes,
	}
	for i := 0; i < len(detail); i += 2 {
		e.Detail[detail[i]] = detail[i+1]
	}
	return e
}

var gone = []audit.Write{{Counter: 2, Path: materialPath, SHA256: audit.Deleted}}

func decision(writes []audit.Write) audit.Entry {
	return entryOf("destroy", writes, "version", "1", "destroyed", "true", "key_id", "id", "census", "0", "data_sets", "a, b", "approved_by", "ana, bob", "algorithm", "XAES-256-GCM")
}

// certified is a log with entries, and the certificate that rests on some of them.
type certified struct {
	log  *running
	vkey string
}

func newCertified(t *testing.T, entries ...audit.Entry) *certified {
	t.Helper()

	c := &certified{log: open(t, mem.New(), true)}
	skey, vkey := fixedKeys("rotor.example/audit", 7)
	c.vkey = vkey
	if err := c.log.SetSigner(skey); err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := c.log.Append(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	settle(t, c.log)
	return c
}

// of makes the certificate; deleted, turn and erasure are indexes, -1: none.
func (c *certified) of(t testing.TB, destroyed, deleted, turn, erasure int64) (audit.DestroyCertificate, error) {
	t.Helper()
	out := audit.DestroyCertificate{}
	for i, at := range []int64{destroyed, deleted, turn, erasure} {
		if at < 0 {
			continue
		}
		all, checkpoint, err := c.log.Prove(t.Context(), at)
		if err != nil {
			t.Fatal(err)
		}
		out.Checkpoint = string(checkpoint)
		switch i {
		case 0:
			out.Destroyed = all[0]
		case 1:
			out.Deleted = &all[0]
		case 2:
			out.Turn = &all[0]
		case 3:
			out.Erasure = &all[0]
		}
	}
	return out, out.Say()
}

func encoded(t testing.TB, c audit.DestroyCertificate) []byte {
	t.Helper()
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestCertificate: what it says is what the log says, whatever is changed in it.
func TestCertificate(t *testing.T) {
	c := newCertified(t, used(0), decision(gone), entryOf("server.shred", nil, "generation", "2"), used(3), entryOf("server.erase", nil, "generation", "2"), used(5))
	withdrawn, err := c.of(t, 1, -1, -1, -1)
	if err != nil || withdrawn.Erased != nil || withdrawn.Withdrawn.IsZero() || withdrawn.KeyID != "id" || len(withdrawn.ApprovedBy) != 2 || len(withdrawn.DataSets) != 2 {
		t.Fatalf("%+v, %v", withdrawn, err)
	}
	erased, err := c.of(t, 1, -1, 2, 4)
	if err != nil || erased.Erased == nil {
		t.Fatalf("%+v, %v", erased, err)
	}
	for _, one := range []audit.DestroyCertificate{withdrawn, erased} {
		got, size, err := audit.VerifyCertificate(encoded(t, one), c.vkey)
		if err != nil || size != 6 || got.Version != 1 {
			t.Errorf("%+v of %d, %v", got, size, err)
		}
	}
	good := encoded(t, erased)
	_, stranger := fixedKeys("rotor.example/audit", 8)
	if _, _, err := audit.VerifyCertificate(good, stranger); fault.CodeOf(err) != fault.AuditBroken {
		t.Errorf("with another key: %v", err)
	}
	for i := range good { // any byte, but in what JSON does not tell apart
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if got, _, err := audit.VerifyCertificate(bad, c.vkey); err == nil && !bytes.Equal(encoded(t, got), good) {
			t.Fatalf("byte %d changed, %q for %q: %+v", i, bad[i], good[i], got)
		}
	}
	for what, change := range map[string]func(*audit.DestroyCertificate){
		"another version":      func(c *audit.DestroyCertificate) { c.Version = 2 },
		"another key":          func(c *audit.DestroyCertificate) { c.Key = "models" },
		"another census":       func(c *audit.DestroyCertificate) { c.Census = "1" },
		"fewer approvals":      func(c *audit.DestroyCertificate) { c.ApprovedBy = nil },
		"erased, of nothing":   func(c *audit.DestroyCertificate) { c.Turn, c.Erasure = nil, nil },
		"half of an erasure":   func(c *audit.DestroyCertificate) { c.Turn = nil },
		"an erasure forgotten": func(c *audit.DestroyCertificate) { c.Erased = nil },
		"another index":        func(c *audit.DestroyCertificate) { c.Destroyed.Index = 0 },
		"a proof cut short":    func(c *audit.DestroyCertificate) { c.Destroyed.Proof = c.Destroyed.Proof[1:] },
		"no proof":             func(c *audit.DestroyCertificate) { c.Destroyed.Proof = nil },
	} {
		bad := erased
		change(&bad)
		if _, _, err := audit.VerifyCertificate(encoded(t, bad), c.vkey); fault.CodeOf(err) != fault.AuditBroken {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, _, err := audit.VerifyCertificate(make([]byte, audit.MaxCertificate+1), c.vkey); fault.CodeOf(err) != fault.TooLarge {
		t.Errorf("too large: %v", err)
	}
}

// TestNoCertificate: entries that do not say it, genuine as they are.
func TestNoCertificate(t *testing.T) {
	approval := entryOf("destroy", nil, "version", "1")
	refused := decision(gone)
	refused.Outcome = "refused"
	other := []audit.Write{{Counter: 2, Path: "material/default/id/2", SHA256: audit.Deleted}}
	for what, entries := range map[string][]audit.Entry{
		"an approval":             {approval, used(1), used(2), used(3)},
		"a refusal":               {refused, used(1), used(2), used(3)},
		"no deletion":             {decision(nil), used(1), used(2), used(3)},
		"another's deletion":      {decision(other), used(1), used(2), used(3)},
		"a deletion of something": {decision(nil), entryOf("rotate", other), used(2), used(3)},
		"turned before":           {decision(gone), entryOf("rotate", gone), entryOf("server.shred", nil, "generation", "2"), entryOf("server.erase", nil, "generation", "3")},
		"not an erasure":          {decision(gone), entryOf("rotate", gone), entryOf("server.shred", nil, "generation", "2"), entryOf("server.retire-root", nil, "generation", "2")},
		"not a turn":              {decision(gone), entryOf("rotate", gone), entryOf("server.start", nil, "generation", "2"), entryOf("server.erase", nil, "generation", "2")},
	} {
		deleted, turn, erasure := int64(-1), int64(-1), int64(-1)
		if strings.Contains(entries[2].Action, "server") {
			deleted, turn, erasure = 1, 2, 3
		} else if entries[1].Action == "rotate" {
			deleted = 1
		}
		if c, err := newCertified(t, entries...).of(t, 0, deleted, turn, erasure); fault.CodeOf(err) != fault.AuditBroken {
			t.Errorf("%s: %+v, %v", what, c, err)
		}
	}
	late := newCertified(t, entryOf("server.shred", nil, "generation", "2"), decision(gone), entryOf("server.erase", nil, "generation", "2"))
	if _, err := late.of(t, 1, -1, 0, 2); fault.CodeOf(err) != fault.AuditBroken {
		t.Errorf("a root key that was made before the deletion: %v", err)
	}
	early := newCertified(t, decision(nil), entryOf("rotate", gone))
	if _, err := early.of(t, 0, 1, -1, -1); err != nil {
		t.Errorf("a deletion apart from the decision: %v", err)
	}
	if _, _, err := early.log.Prove(t.Context(), 2); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("an entry to come: %v", err)
	}
}

// FuzzCertificate: foreign bytes are refused, or are what the log says.
func FuzzCertificate(f *testing.F) {
	_, vkey := fixedKeys("rotor.example/audit", 7)
	f.Add([]byte(`{"type":"rotor/destroy-certificate/1","checkpoint":"x\n1\n"}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, _, err := audit.VerifyCertificate(b, vkey); err == nil {
			t.Errorf("%+v", c)
		}
	})
}
