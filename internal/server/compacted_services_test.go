//go:build services

package server_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/server"
	"github.com/rotorkms/rotor/internal/store/etcd"
	"github.com/rotorkms/rotor/internal/testenv"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// history is what the store of the test keeps, in commits.
const history = 100

// TestCompacted: a server is frozen for so long that what the other committed meanwhile has gone from the store's history. It thaws, reads the store
// anew in the same process and serves: it knows what was made, rotated and removed meanwhile, and a rotation waits for its members.
func TestCompacted(t *testing.T) {
	bin := built(t)
	t.Run("postgres", func(t *testing.T) {
		testCompacted(t, bin, fmt.Sprintf("%s?history=%d", testenv.Postgres(t).URL, history), func() {})
	})
	t.Run("etcd", func(t *testing.T) {
		hosts := testenv.Etcd(t, "3.7", 1).Hosts()
		testCompacted(t, bin, "etcd://"+hosts+"/r", func() {
			s, err := etcd.Open(t.Context(), etcd.Config{Endpoints: strings.Split(hosts, ","), Prefix: "r", History: 1})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Compact(t.Context()); err != nil {
				t.Error(err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	})
}

func testCompacted(t *testing.T, bin, url string, compact func()) {
	p := newProcesses(t, bin, 2)
	c := p.config()
	c.Store = url
	if _, err := server.Init(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	p.configure("store: %s\nsession_ttl: 1s\nsandbox: \"on\"\nseal_key: %s\n", url, filepath.Join(p.dir, "seal.key"))
	p.start(0)
	p.start(1)
	one := func(i int) *rotor.Client { // which asks this server alone
		t.Helper()
		c, err := rotor.Dial(t.Context(), rotor.Config{Identity: filepath.Join(p.dir, "admin"), Address: p.address(i)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	admin := one(0)
	create := func(name string) {
		t.Helper()
		_, err := admin.Admin().Keys.Create(t.Context(), connect.NewRequest(&rotorv1.CreateRequest{Key: &rotorv1.Key{Name: name, Purpose: "encrypt", Custody: "fleet"}}))
		if err != nil {
			t.Fatal(err)
		}
	}
	create("records")
	join := func(name string, at int) (*rotor.Client, error) {
		token, err := admin.Admin().Fleet.Invite(t.Context(), connect.NewRequest(&rotorv1.InviteRequest{Name: name}))
		if err != nil {
			t.Fatal(err)
		}
		return rotor.Dial(t.Context(), rotor.Config{Identity: filepath.Join(t.TempDir(), name), JoinToken: token.Msg.GetToken(), Address: p.addresses(at), Keys: []string{"records"}})
	}
	var members []*rotor.Client
	for i, name := range []string{"a", "b"} {
		m, err := join(name, i)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = m.Close() })
		members = append(members, m)
	}
	gone, err := join("gone", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer gone.Close()
	before, err := members[0].Key("records").Encrypt(t.Context(), []byte("before"))
	if err != nil {
		t.Fatal(err)
	}

	process := p.procs[1].Process.Pid
	p.signal(1, syscall.SIGSTOP)
	for i := range 2 * history {
		create(fmt.Sprintf("k%d", i))
	}
	if _, err := admin.Admin().Fleet.Remove(t.Context(), connect.NewRequest(&rotorv1.RemoveRequest{Name: "gone"})); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.Admin().Keys.Rotate(t.Context(), connect.NewRequest(&rotorv1.RotateRequest{Key: &rotorv1.KeyRef{Name: "records"}})); err != nil {
		t.Fatal(err)
	}
	compact()
	p.signal(1, syscall.SIGCONT)

	awaitPrimary(t, admin, &rotorv1.KeyRef{Name: "records"}, 2)
	back := one(1)
	for { // until it has read the store anew
		_, err := back.Admin().Keys.Get(t.Context(), connect.NewRequest(&rotorv1.KeyRef{Name: fmt.Sprintf("k%d", 2*history-1)}))
		if err == nil && strings.Contains(p.log(1), "the server starts again") {
			break
		}
		if code := fault.CodeOf(err); err != nil && code != fault.Unavailable && code != fault.Canceled && code != fault.OutcomeUnknown {
			t.Fatalf("the server that was frozen: %v, %s", err, p.log(1))
		}
		if p.procs[1].ProcessState != nil || syscall.Kill(process, 0) != nil {
			t.Fatalf("it has ended: %s", p.log(1))
		}
		time.Sleep(50 * time.Millisecond)
	}
	all, err := back.Admin().Fleet.Instances(t.Context(), connect.NewRequest(&rotorv1.InstancesRequest{}))
	if err != nil || len(all.Msg.GetInstances()) != 2 {
		t.Errorf("what was removed meanwhile: %v, %v", all, err)
	}
	if _, err := back.Admin().Keys.Rotate(t.Context(), connect.NewRequest(&rotorv1.RotateRequest{Key: &rotorv1.KeyRef{Name: "records"}})); err != nil {
		t.Fatal(err)
	}
	awaitPrimary(t, back, &rotorv1.KeyRef{Name: "records"}, 3)
	exchange(t, members)
	if got, err := members[1].Key("records").Decrypt(t.Context(), before); err != nil || string(got) != "before" {
		t.Errorf("what was written before: %q, %v", got, err)
	}
	t.Log(p.log(1))
}
