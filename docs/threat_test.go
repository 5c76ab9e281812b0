package docs_test

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"go.etcd.io/bbolt"

	"github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/internal/server"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// TestStoreWithoutSeal looks into a store file as somebody does who has nothing else, and finds what docs/threat-model.md says: paths and
// the audit log in the clear, nothing of what is sealed, and the sealed material of a destroyed version in the history.
func TestStoreWithoutSeal(t *testing.T) {
	const label, owner, reason = "purple-label", "purple-owner", "purple-reason"
	dir := t.TempDir()
	c := server.Config{Dir: dir, Listen: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler)}
	made, err := server.Init(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	s, err := server.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	admin, err := rotor.Dial(t.Context(), rotor.Config{Identity: made.AdminDir, Address: s.Address(), Log: c.Log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, keys := t.Context(), admin.Admin().Keys
	k, err := keys.Create(ctx, connect.NewRequest(&rotorv1.CreateRequest{Key: &rotorv1.Key{
		Name: "records", Purpose: "sign", Labels: map[string]string{"team": label}, Owner: owner, Rotation: &rotorv1.Rotation{MarginNs: 1e15},
	}}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keys.Change(ctx, connect.NewRequest(&rotorv1.ChangeRequest{Key: &rotorv1.KeyRef{Name: "records"}, Version: 1, Event: "suspend", Reason: reason})); err != nil {
		t.Fatal(err)
	}
	// Version 2 waits for its margin; giving it up destroys it.
	if _, err := keys.Rotate(ctx, connect.NewRequest(&rotorv1.RotateRequest{Key: &rotorv1.KeyRef{Name: "records"}})); err != nil {
		t.Fatal(err)
	}
	if _, err := keys.Rotate(ctx, connect.NewRequest(&rotorv1.RotateRequest{Key: &rotorv1.KeyRef{Name: "records"}, BackTo: 1})); err != nil {
		t.Fatal(err)
	}
	if err := admin.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "rotor.db")
	all, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{label, owner, reason} {
		if bytes.Contains(all, []byte(text)) {
			t.Errorf("%s stands in the store in the clear", text)
		}
	}
	live, history := records(t, path)
	id := k.Msg.GetId()
	for _, want := range []string{"name/default/records", "key/default/" + id, "material/default/" + id + "/1", "seal/root", "authn/ca"} {
		if live[want] == nil {
			t.Errorf("the store has no record %s", want)
		}
	}
	gone := "material/default/" + id + "/2"
	if live[gone] != nil {
		t.Error("the material of a destroyed version is a live record")
	}
	put := string(binary.BigEndian.AppendUint16([]byte{0}, uint16(len(gone)))) + gone // how the history begins a write, not a deletion
	if !strings.Contains(history, put) {
		t.Error("the history does not hold the material of a destroyed version; docs/threat-model.md says that it does")
	}
	var log string
	for key, value := range live {
		switch value = value[boltHeader:]; {
		case strings.HasPrefix(key, "log/entry/") && value[0] == 1:
			log += inflate(t, value[1:])
		case strings.HasPrefix(key, "log/"):
			log += string(value)
		}
	}
	for _, want := range []string{`"action":"key.create","caller":"admin/admin"`, `"key":"records"`, `"path":"handle/default/`} {
		if !strings.Contains(log, want) {
			t.Errorf("the audit log does not show %s in the clear", want)
		}
	}
	if got := len(live["name/default/records"]) - len(id); got != 60 {
		t.Errorf("a record is %d bytes longer than its content; docs/threat-model.md says 60", got)
	}
}

// boltHeader is what stands before the value of a record of the file.
const boltHeader = 12

// inflate unpacks an entry of the log as spec/audit.md says, without rotor's code.
func inflate(t *testing.T, b []byte) string {
	t.Helper()
	dictionary, err := os.ReadFile("../internal/pack/dictionary.txt")
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(flate.NewReaderDict(bytes.NewReader(b), dictionary))
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// records reads the live records and the history of a store file without rotor's code.
func records(t *testing.T, path string) (live map[string][]byte, history string) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	live = map[string][]byte{}
	err = db.View(func(tx *bbolt.Tx) error {
		if err := tx.Bucket([]byte("data")).ForEach(func(k, v []byte) error {
			live[string(k)] = bytes.Clone(v)
			return nil
		}); err != nil {
			return err
		}
		return tx.Bucket([]byte("log")).ForEach(func(_, v []byte) error {
			history += string(v)
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return live, history
}
