//go:build services

package server_test

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/rpc"
	"github.com/rotorkms/rotor/internal/server"
	"github.com/rotorkms/rotor/internal/testenv"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// TestRestoreDrill: the engine of three servers is lost, and restored from a backup of them and the newest exported log into another one. All
// three come up in recovery mode, one of them is told to recover, and all serve again: what was encrypted before decrypts,
// and an instance that has seen more of the lost incarnation goes on.
func TestRestoreDrill(t *testing.T) {
	bin := built(t)
	for engine, url := range map[string]func() string{
		"postgres": func() string { return testenv.Postgres(t).URL },
		"etcd":     func() string { return "etcd://" + testenv.Etcd(t, "3.4", 1).Hosts() + "/drill" },
	} {
		t.Run(engine, func(t *testing.T) { restoreDrill(t, newReplicas(t, bin, url()), url()) })
	}
}

func restoreDrill(t *testing.T, r *replicas, other string) {
	admin := r.dial(rotor.Config{Identity: filepath.Join(r.dir, "admin")}, 0).Admin()
	identity, token := filepath.Join(t.TempDir(), "m"), ""
	for _, name := range []string{"records", "plain"} {
		k := &rotorv1.Key{Name: name, Purpose: "encrypt", Custody: "server"}
		if name == "records" {
			k.Custody = "fleet"
		}
		if _, err := admin.Keys.Create(t.Context(), connect.NewRequest(&rotorv1.CreateRequest{Key: k})); err != nil {
			t.Fatal(err)
		}
	}
	message, err := admin.Keys.Encrypt(t.Context(), connect.NewRequest(&rotorv1.EncryptRequest{Key: &rotorv1.KeyRef{Name: "plain"}, Plaintext: []byte("x")}))
	if err != nil {
		t.Fatal(err)
	}
	if m, err := admin.Fleet.Invite(t.Context(), connect.NewRequest(&rotorv1.InviteRequest{Name: "m"})); err != nil {
		t.Fatal(err)
	} else {
		token = m.Msg.GetToken()
	}
	r.holds(rotor.Config{Identity: identity, JoinToken: token, Keys: []string{"records"}})
	copied := r.backup()
	if _, err := admin.Keys.Create(t.Context(), connect.NewRequest(&rotorv1.CreateRequest{Key: &rotorv1.Key{Name: "later", Purpose: "encrypt"}})); err != nil {
		t.Fatal(err)
	}
	r.holds(rotor.Config{Identity: identity, Keys: []string{"records"}})
	log := exported(t, admin)
	for i := range r.procs {
		r.kill(i)
	}
	c := r.config()
	c.Store, c.Profile = other, server.ProfileDev
	if _, err := server.RestoreBackup(t.Context(), c, bytes.NewReader(copied)); err != nil {
		t.Fatal(err)
	}
	r.configure("store: %s\nsession_ttl: 1s\nprofile: dev\n", other)
	for i := range r.procs {
		r.start(i)
		if found := r.detected(i); !slices.ContainsFunc(found, func(d string) bool { return strings.HasPrefix(d, "restored") }) {
			t.Errorf("server %d: %q", i, found)
		}
	}
	r.recover(1, log)
	for i := range r.procs {
		r.awaitServing(i)
		one := r.only(i)
		m, err := one.Keys.Decrypt(t.Context(), connect.NewRequest(&rotorv1.DecryptRequest{Key: &rotorv1.KeyRef{Name: "plain"}, Ciphertext: message.Msg.GetCiphertext()}))
		if err != nil || string(m.Msg.GetPlaintext()) != "x" {
			t.Errorf("server %d: %v", i, err)
		}
		all, err := one.Keys.List(t.Context(), connect.NewRequest(&rotorv1.ListRequest{}))
		if err != nil || len(all.Msg.GetKeys()) != 2 {
			t.Errorf("server %d: %v, %v", i, all, err)
		}
	}
	r.holds(rotor.Config{Identity: identity, Keys: []string{"records"}})
	for i := range r.procs {
		if found := r.detected(i); len(found) != 0 { // the instance has seen more of an earlier incarnation, which proves nothing
			t.Errorf("server %d: %q", i, found)
		}
	}
}

// holds is one life of a process that holds a key of the servers.
func (r *replicas) holds(config rotor.Config) {
	r.t.Helper()
	if err := r.dial(config, 0).Close(); err != nil {
		r.t.Fatal(err)
	}
}

// only is the API of one server.
func (r *replicas) only(i int) *rotor.Admin {
	r.t.Helper()
	c, err := rotor.Dial(r.t.Context(), rotor.Config{Identity: filepath.Join(r.dir, "admin"), Address: r.address(i)})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = c.Close() })
	return c.Admin()
}

func (r *replicas) roots(i int) rotorv1.RootServiceClient {
	r.t.Helper()
	return rotorv1.NewRootServiceClient(as(r.t, filepath.Join(r.dir, "admin")), "https://"+r.address(i))
}

// backup takes one of the store that the servers share.
func (r *replicas) backup() []byte {
	r.t.Helper()
	stream, err := r.roots(0).Backup(r.t.Context(), connect.NewRequest(&rotorv1.BackupRequest{KeepNs: int64(time.Hour)}))
	if err != nil {
		r.t.Fatal(err)
	}
	var out []byte
	for stream.Receive() {
		out = append(out, stream.Msg().GetData()...)
	}
	if err := errors.Join(stream.Err(), stream.Close()); err != nil {
		r.t.Fatal(err)
	}
	return out
}

func (r *replicas) detected(i int) []string {
	r.t.Helper()
	m, err := r.roots(i).Show(r.t.Context(), connect.NewRequest(&rotorv1.ShowRootsRequest{}))
	if err != nil {
		r.t.Fatal(rpc.Decode(err))
	}
	return m.Msg.GetDetected()
}

// recover has one server recover the store, with a newer log.
func (r *replicas) recover(i int, log []*rotorv1.ExportFile) {
	r.t.Helper()
	stream := r.roots(i).Recover(r.t.Context())
	err := stream.Send(&rotorv1.RecoverRequest{Log: true})
	for _, f := range log {
		err = errors.Join(err, stream.Send(&rotorv1.RecoverRequest{File: f}))
	}
	m, rerr := stream.CloseAndReceive()
	if err := errors.Join(err, rpc.Decode(rerr)); err != nil {
		r.t.Fatal(err)
	}
	if m.Msg.GetState() != "done" || m.Msg.GetIncarnation() != 2 {
		r.t.Fatalf("%v", m.Msg)
	}
}

// awaitServing returns when a server does not say any more that it is in recovery mode, or between that and serving.
func (r *replicas) awaitServing(i int) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 30*time.Second)
	defer cancel()
	for {
		_, err := r.only(i).Server.Status(ctx, connect.NewRequest(&rotorv1.StatusRequest{}))
		if err == nil {
			return
		}
		if c := fault.CodeOf(err); c != fault.Recovery && c != fault.Unavailable {
			r.t.Fatalf("server %d: %v\n%s", i, err, r.log(i))
		}
	}
}

// exported is the audit log as the servers have it.
func exported(t *testing.T, admin *rotor.Admin) (files []*rotorv1.ExportFile) {
	t.Helper()
	stream, err := admin.Audit.Export(t.Context(), connect.NewRequest(&rotorv1.ExportRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	for stream.Receive() {
		files = append(files, stream.Msg())
	}
	if err := errors.Join(stream.Err(), stream.Close()); err != nil {
		t.Fatal(err)
	}
	return files
}
