//go:build slow

package server_test

import (
	"fmt"
	"testing"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor/internal/fault"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// TestKeyLargerThanAMessage: of a key whose versions do not fit into one message each answer has the newest, and all can be had, also in a backup.
func TestKeyLargerThanAMessage(t *testing.T) {
	w := newWorld(t)
	c := w.operator()
	const versions = 1_300 // of 2.6 kB each
	c.must("POST", "transit/keys/a", m{"type": "ml-dsa", "parameter_set": "87", "exportable": true, "allow_plaintext_backup": true})
	old := c.must("POST", "transit/sign/a", m{"input": b64("x")}).str("signature")
	for range versions - 1 {
		c.must("POST", "transit/keys/a/rotate", nil)
	}
	keys, ref := w.client().Admin().Keys, &rotorv1.KeyRef{Name: "transit/a"}
	whole := func(what string, k *rotorv1.Key, err error) {
		t.Helper()
		if err != nil || k.GetVersionCount() != versions || len(k.GetVersions()) != 500 || k.GetVersions()[499].GetNumber() != k.GetPrimary() {
			t.Errorf("%s: %d of %d versions, %v", what, len(k.GetVersions()), k.GetVersionCount(), err)
		}
	}
	got, err := keys.Get(t.Context(), connect.NewRequest(ref))
	whole("get", got.Msg, err)
	var count, from uint32 = 0, 0
	for more := true; more; more = from != 0 {
		r, err := keys.Versions(t.Context(), connect.NewRequest(&rotorv1.VersionsRequest{Key: ref, From: from}))
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range r.Msg.GetVersions() {
			if count++; v.GetNumber() != count {
				t.Fatalf("version %d stands at %d", v.GetNumber(), count)
			}
		}
		from = r.Msg.GetNext()
	}
	if count != versions {
		t.Errorf("%d versions", count)
	}
	text := c.must("GET", "transit/backup/a", nil).str("backup")
	for _, name := range []string{"b", "c", "d"} {
		c.must("POST", "transit/restore/"+name, m{"backup": text})
	}
	var names []string
	for after, more := "", true; more; {
		r, err := keys.List(t.Context(), connect.NewRequest(&rotorv1.ListRequest{After: after}))
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range r.Msg.GetKeys() {
			names, after = append(names, k.GetName()), k.GetName()
			whole("list", k, nil)
		}
		more = r.Msg.GetMore()
	}
	if fmt.Sprint(names) != "[transit/a transit/b transit/c transit/d]" {
		t.Errorf("listed: %v", names)
	}
	changed, err := keys.Change(t.Context(), connect.NewRequest(&rotorv1.ChangeRequest{Key: ref, Version: 7, Event: "compromise"}))
	whole("change", changed.Msg, err)
	backup, err := keys.Backup(t.Context(), connect.NewRequest(&rotorv1.BackupKeyRequest{Key: ref, KeepNs: 1e12}))
	if err != nil || len(backup.Msg.GetBackup()) < 4<<20 {
		t.Fatalf("backup: %v", err)
	}
	_, err = keys.Restore(t.Context(), connect.NewRequest(&rotorv1.RestoreKeyRequest{Backup: backup.Msg.GetBackup()}))
	if code(err) != fault.Exists { // it came whole
		t.Errorf("restore: %v", err)
	}
	if a := c.must("POST", "transit/verify/a", m{"input": b64("x"), "signature": old}); a.str("valid") != "true" {
		t.Error(a.text)
	}
}
