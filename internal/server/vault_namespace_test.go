package server_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
)

// TestVaultNamespaceDeleted: with a namespace ends what is in it, a name that is given again finds nothing of it, and one with material stays.
func TestVaultNamespaceDeleted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op := w.operator()
	root := op.makes(t, m{"policies": "root", "ttl": "1h"})
	for _, name := range []string{"team", "other"} {
		root.must("POST", "sys/namespaces/"+name, nil)
	}
	inTeam := root.in("team")
	inTeam.must("PUT", "sys/policies/acl/app", m{"policy": `path "*" { capabilities = ["create", "read", "update", "delete", "list", "sudo"] }`})
	inTeam.must("POST", "sys/auth/approle", m{"type": "approle"})
	inTeam.must("POST", "auth/approle/role/a", m{"token_policies": "app", "secret_id_num_uses": 9})
	id := inTeam.must("GET", "auth/approle/role/a/role-id", nil).str("role_id")
	secret := inTeam.must("POST", "auth/approle/role/a/secret-id", nil).str("secret_id")
	login := func() answer {
		return w.vault("").in("team").do("POST", "auth/approle/login", m{"role_id": id, "secret_id": secret})
	}
	all := map[string]*vaultClient{
		"a root": inTeam.makes(t, m{"policies": "root", "ttl": "1h"}), "a batch token": inTeam.makes(t, m{"policies": "app", "type": "batch", "ttl": "1h", "no_parent": true}),
		"a login": w.vault(login().login(t)).in("team"),
	}
	all["a wrapped answer"] = w.vault(inTeam.keeping(t, "5m", "GET", "sys/policies/acl/app", nil)).in("team")
	for what, c := range all { // whoever may do everything in a namespace ends neither it nor others
		for _, name := range []string{"team", "other", "none"} {
			c.refuses(403, "permission denied", "DELETE", "sys/namespaces/"+name, nil)
			home := *c
			home.header = http.Header{}
			if a := home.do("DELETE", "sys/namespaces/"+name, nil); a.status != 403 {
				t.Errorf("%s deletes %s: %d %s", what, name, a.status, a.text)
			}
		}
	}
	op.must("PUT", "sys/policies/acl/keeper", m{"policy": `path "sys/namespaces/other" { capabilities = ["delete"] }`})
	keeper := op.makes(t, m{"policies": "keeper"})
	keeper.refuses(403, "permission denied", "DELETE", "sys/namespaces/team", nil)

	keeper.must("DELETE", "sys/namespaces/other", nil)
	root.refuses(400, "the one that the others are in", "DELETE", "sys/namespaces/default", nil)
	inTeam.must("POST", "transit/keys/orders", nil)
	text := inTeam.must("POST", "transit/encrypt/orders", m{"plaintext": b64("x")}).str("ciphertext")
	root.refuses(400, "namespace team has 1 key: transit/orders", "DELETE", "sys/namespaces/team", nil)
	inTeam.must("POST", "transit/keys/orders/config", m{"deletion_allowed": true})
	inTeam.must("POST", "transit/decrypt/orders", m{"ciphertext": text})
	inTeam.must("DELETE", "transit/keys/orders", nil)
	root.refuses(400, "material of 1 key: transit/orders.deleted-", "DELETE", "sys/namespaces/team", nil)
	login().want(t, "a login to a namespace that stays", 200, "client_token")

	other := root.in("other")
	other.refuses(403, "permission denied", "GET", "transit/keys", nil)
	root.must("DELETE", "sys/namespaces/other", nil)
	if a := root.must("LIST", "sys/namespaces", nil); strings.Contains(a.text, "other") || !strings.Contains(a.text, "team/") {
		t.Error(a.text)
	}
	root.refuses(404, "", "GET", "sys/namespaces/other", nil)
}

// TestVaultNamespaceAgain: nothing of a namespace is there when its name is given again, also after a restart.
func TestVaultNamespaceAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op := w.operator()
	op.must("POST", "sys/namespaces/team", nil)
	inTeam := op.in("team")
	inTeam.must("PUT", "sys/policies/acl/app", m{"policy": `path "*" { capabilities = ["read", "update"] }`})
	inTeam.must("POST", "sys/mounts/more", m{"type": "transit"})
	batch := inTeam.makes(t, m{"policies": "app", "type": "batch", "ttl": "1h"})
	service := inTeam.makes(t, m{"policies": "root", "ttl": "1h"})
	batch.must("GET", "sys/policies/acl/app", nil)
	op.must("DELETE", "sys/namespaces/team", nil)
	batch.refuses(403, "permission denied", "GET", "sys/policies/acl/app", nil)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w.start()
	for _, c := range []*vaultClient{op, inTeam, batch, service} {
		c.address = "https://" + w.Address() + "/v1/"
	}
	inTeam.refuses(404, "no such namespace", "GET", "transit/keys", nil)
	op.must("POST", "sys/namespaces/team", nil)
	for what, c := range map[string]*vaultClient{"batch": batch, "service": service} {
		if a := c.do("GET", "auth/token/lookup-self", nil); a.status != 403 {
			t.Errorf("a %s token of the former namespace: %d %s", what, a.status, a.text)
		}
	}
	inTeam.refuses(404, "", "GET", "sys/policies/acl/app", nil)
	if a := inTeam.must("GET", "sys/mounts", nil); strings.Contains(a.text, "more/") || !strings.Contains(a.text, "transit/") {
		t.Error(a.text)
	}
	inTeam.must("POST", "transit/keys/orders", nil)
	text := inTeam.must("POST", "transit/encrypt/orders", m{"plaintext": b64("x")}).str("ciphertext")
	if a := inTeam.must("POST", "transit/decrypt/orders", m{"ciphertext": text}); a.str("plaintext") != b64("x") {
		t.Error(a.text)
	}
}

// TestNamespaceAmongServers: what is made in a namespace at two servers while it is deleted at a third is there, and keeps it, or is refused; once it is deleted
// nothing of it is served at any server, and nothing comes back with its name.
func TestNamespaceAmongServers(t *testing.T) {
	dir, admin, servers := threeServers(t, rules+operatorRules)
	w := &world{t: t, Server: servers[0], admin: admin}
	w.config.Dir = dir
	_, credential := w.credential("operator")
	token := w.session(credential).Token()
	var clients []*vaultClient
	for _, s := range servers {
		clients = append(clients, &vaultClient{t, "https://" + s.Address() + "/v1/", token, http.Header{}, as(t, "")})
	}
	endsAmong(t, clients, 12)
}

// endsAmong makes and deletes namespaces, one in each round, at servers that share a store.
func endsAmong(t *testing.T, clients []*vaultClient, rounds int) {
	t.Helper()
	kept, gone := 0, 0
	for i := range rounds {
		name, key := "team", i%2 == 0
		if key {
			name = fmt.Sprintf("with-key-%d", i)
		}
		here, next, third := clients[i%len(clients)], clients[(i+1)%len(clients)].in(name), clients[(i+2)%len(clients)].in(name)
		here.do("POST", "sys/namespaces/"+name, nil)
		text := next.makes(t, m{"policies": "root", "ttl": "1h"}).token
		var work sync.WaitGroup
		made := 0
		work.Go(func() {
			if key {
				made = next.do("POST", "transit/keys/k", nil).status
			}
		})
		work.Go(func() {
			for range 3 {
				third.do("PUT", "sys/policies/acl/app", m{"policy": `path "x" { capabilities = ["read"] }`})
			}
		})
		deleted := here.do("DELETE", "sys/namespaces/"+name, nil)
		work.Wait()
		switch {
		case deleted.status == 400 && made == 200: // the key keeps it
			kept++
			ct := third.must("POST", "transit/encrypt/k", m{"plaintext": b64("x")}).str("ciphertext")
			next.must("POST", "transit/decrypt/k", m{"ciphertext": ct})
		case deleted.status == 204 && made != 200:
			gone++
			for _, c := range clients {
				own := *c.in(name)
				own.token = text
				own.refuses(403, "permission denied", "GET", "sys/policies/acl/app", nil)
			}
			next.in("").must("POST", "sys/namespaces/"+name, nil)
			for _, c := range clients {
				own := *c.in(name)
				own.refuses(404, "", "GET", "sys/policies/acl/app", nil)
				own.token = text
				own.refuses(403, "permission denied", "GET", "auth/token/lookup-self", nil)
			}
		default:
			t.Fatalf("%d: the key %d, the deletion %d %s", i, made, deleted.status, deleted.text)
		}
	}
	t.Logf("%d namespaces are kept by a key, %d gone", kept, gone)
	if gone < rounds/2 {
		t.Errorf("%d kept, %d gone", kept, gone)
	}
}
