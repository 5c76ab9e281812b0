//go:build services

package server_test

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/internal/testenv"
)

// waitingOn is a server that waits for its init, of a store that others wait on, too; key: the file of its root.
func waitingOn(t *testing.T, url, key string) (w *world, secret string) {
	t.Helper()
	w = newConfig(t)
	w.config.Store, w.config.Socket, w.config.SealKey = url, filepath.Join(w.config.Dir, "local"), key
	w.start()
	if !w.Waiting() {
		t.Fatal("it does not wait")
	}
	b, err := os.ReadFile(filepath.Join(w.config.Dir, "init-secret"))
	if err != nil {
		t.Fatal(err)
	}
	return w, strings.TrimSpace(string(b))
}

// TestVaultInitsOfTwoServers: of inits at two servers that wait on one store, at once and again, one makes the cluster. Both servers then are of it, sealed; shares count at
// the server that they are brought to, and a first administrator is made once.
func TestVaultInitsOfTwoServers(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t).URL
	var servers []*world
	var me []*vaultClient
	for range 2 {
		w, secret := waitingOn(t, url, "")
		servers, me = append(servers, w), append(me, w.local(secret))
	}
	me[1].do("PUT", "sys/init", m{"secret_shares": 1, "secret_threshold": 1}).want(t, "a bad init", 400, "at least 2")
	var wait sync.WaitGroup
	answers := make([]answer, 6)
	for i := range answers {
		wait.Go(func() { answers[i] = me[i%2].do("PUT", "sys/init", m{"secret_shares": 3, "secret_threshold": 2}) })
	}
	wait.Wait()
	var made []answer
	for _, a := range answers {
		if a.status == 200 {
			made = append(made, a)
		} else {
			a.want(t, "an init too many", 400, "Vault is already initialized")
		}
	}
	if len(made) != 1 {
		t.Fatalf("%d clusters were made", len(made))
	}
	keys, _ := made[0].body["keys"].([]any)
	for _, w := range servers {
		w.again()
		w.local("").do("GET", "sys/seal-status", nil).want(t, "status", 200, `"initialized":true`)
	}
	unseal := func(at int, key any, want string) {
		t.Helper()
		servers[at].local("").do("PUT", "sys/unseal", m{"key": key}).want(t, "a share", 200, want)
	}
	unseal(0, keys[0], `"progress":1`)
	unseal(1, keys[1], `"progress":1`)
	unseal(0, keys[0], `"progress":1`)
	wait.Go(func() { unseal(0, keys[1], `"sealed":false`) })
	wait.Go(func() { unseal(1, keys[2], `"sealed":false`) })
	wait.Wait()
	for _, w := range servers {
		w.Opened()
		w.vault(made[0].body["root_token"].(string)).do("GET", "auth/token/lookup-self", nil).want(t, "the root token", 200, `"policies":["root"]`)
	}
	enrolled := make([]error, 4)
	for i := range enrolled {
		wait.Go(func() {
			var c *rotor.Client
			if c, enrolled[i] = rotor.Dial(t.Context(), rotor.Config{Identity: filepath.Join(t.TempDir(), "admin"), JoinToken: made[0].body["enrolment_token"].(string), Address: servers[i%2].Address()}); enrolled[i] == nil {
				_ = c.Close()
			}
		})
	}
	wait.Wait()
	n := 0
	for _, err := range enrolled {
		if err == nil {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d administrators: %v", n, enrolled)
	}
}

// TestVaultInitsOfServersWithOneRoot: the server that did not make the cluster goes on while the other one is still making the first administrator and token, as both have
// the key file. So does one that nobody asked for an init.
func TestVaultInitsOfServersWithOneRoot(t *testing.T) {
	t.Parallel()
	url, key := testenv.Postgres(t).URL, filepath.Join(t.TempDir(), "seal.key")
	var servers []*world
	var me []*vaultClient
	for range 3 {
		w, secret := waitingOn(t, url, key)
		servers, me = append(servers, w), append(me, w.local(secret))
	}
	var wait sync.WaitGroup
	answers := make([]answer, 2)
	for i := range answers {
		wait.Go(func() { answers[i] = me[i].do("PUT", "sys/init", nil) })
	}
	for _, w := range servers {
		w.again()
	}
	wait.Wait()
	token := ""
	for _, a := range answers {
		if t, ok := a.body["root_token"].(string); ok {
			token += t
		}
	}
	for _, w := range servers {
		w.vault(token).do("GET", "auth/token/lookup-self", nil).want(t, "the one root token", 200, `"policies":["root"]`)
	}
}
