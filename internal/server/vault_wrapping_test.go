package server_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// keeping asks for an answer that is kept for a time, and gives the token that stands in its place.
func (c *vaultClient) keeping(t *testing.T, ttl, method, path string, body any) string {
	t.Helper()
	c.header.Set("X-Vault-Wrap-TTL", ttl)
	defer c.header.Del("X-Vault-Wrap-TTL")
	a := c.do(method, path, body).want(t, method+" "+path, 200, `"data":null`)
	info, _ := a.body["wrap_info"].(map[string]any)
	token, _ := info["token"].(string)
	if token == "" || a.body["auth"] != nil || info["creation_path"] != path {
		t.Fatalf("%s is not kept: %s", path, a.text)
	}
	return token
}

// TestVaultOfTheToken: what is about the token that a request shows is in the token's namespace, whichever the request names; all else is not.
func TestVaultOfTheToken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op := w.operator()
	op.must("POST", "sys/namespaces/team", nil)
	op.must("POST", "sys/namespaces/other", nil)
	team := op.in("team")
	team.must("POST", "transit/keys/orders", nil)
	for _, ns := range []string{"", "other", "team"} {
		own := w.vault(team.keeping(t, "5m", "GET", "transit/keys/orders", nil)).in(ns)
		own.must("GET", "sys/wrapping/lookup", nil)
		own.refuses(403, "permission denied", "GET", "transit/keys/orders", nil)
		own.do("POST", "sys/wrapping/unwrap", nil).want(t, "unwrap in "+ns, 200, `"name":"orders"`)
		app := team.makes(t, m{"policies": "default", "ttl": "1h"}).in(ns)
		app.must("GET", "auth/token/lookup-self", nil)
		app.must("POST", "auth/token/renew-self", nil)
		app.refuses(403, "permission denied", "GET", "transit/keys/orders", nil)
		app.must("POST", "auth/token/revoke-self", nil)
		app.refuses(403, "permission denied", "GET", "auth/token/lookup-self", nil)
	}
	w.vault(team.keeping(t, "5m", "GET", "transit/keys/orders", nil)).in("none").refuses(403, "permission denied", "POST", "sys/wrapping/unwrap", nil)
}

// TestVaultWrapping: an answer is kept for whoever shows the token first; who comes second hears that it was opened.
func TestVaultWrapping(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op := w.operator()
	open := func(token string) answer { return w.vault(token).do("POST", "sys/wrapping/unwrap", nil) }
	const opened = "wrapping token is not valid or does not exist"

	op.must("POST", "transit/keys/a", nil)
	token := op.keeping(t, "5m", "GET", "transit/keys/a", nil)
	a := w.vault("").do("POST", "sys/wrapping/lookup", m{"token": token}).want(t, "lookup by a stranger", 200, `"creation_path":"transit/keys/a"`)
	if a.data("creation_ttl") != 300.0 {
		t.Error(a.text)
	}
	w.vault(token).do("GET", "sys/wrapping/lookup", nil).want(t, "lookup by its bearer", 200, `"creation_ttl":300`)
	w.vault(token).do("GET", "transit/keys/a", nil).want(t, "another path with the token", 403, "permission denied")
	if a := open(token).want(t, "unwrap", 200, `"latest_version":1`); a.data("name") != "a" || a.body["wrap_info"] != nil {
		t.Error(a.text)
	}
	open(token).want(t, "unwrap again", 400, opened)
	op.do("POST", "sys/wrapping/unwrap", m{"token": token}).want(t, "unwrap again for it", 400, opened)
	op.do("POST", "sys/wrapping/lookup", m{"token": token}).want(t, "lookup of an opened one", 400, opened)
	op.do("POST", "sys/wrapping/rewrap", m{"token": token}).want(t, "rewrap of an opened one", 400, opened)

	token = op.keeping(t, "60", "POST", "sys/wrapping/wrap", m{"a": "b", "n": 7})
	w.vault("").do("POST", "sys/wrapping/unwrap", m{"token": token}).want(t, "for somebody else, by nobody", 403, "permission denied")
	next := op.do("POST", "sys/wrapping/rewrap", m{"token": token}).want(t, "rewrap", 200, `"creation_path":"sys/wrapping/wrap"`)
	info, _ := next.body["wrap_info"].(map[string]any)
	if info["ttl"] != 60.0 {
		t.Error(next.text)
	}
	open(token).want(t, "what was wrapped again", 400, opened)
	if a := op.do("POST", "sys/wrapping/unwrap", m{"token": info["token"]}).want(t, "for somebody else", 200, `"a":"b"`); a.data("n") != 7.0 {
		t.Error(a.text)
	}

	token = op.keeping(t, "1m", "POST", "sys/wrapping/wrap", m{"a": "b"})
	w.offset.Add(int64(2 * time.Minute))
	open(token).want(t, "an expired one", 400, opened)
	w.offset.Add(-int64(2 * time.Minute))
	for what, token := range map[string]string{"no token": "", "another's": "hvs.x", "of a session": op.token} {
		if a := open(token); a.status != 400 || !strings.Contains(a.text, opened) {
			t.Errorf("%s: %d %s", what, a.status, a.text)
		}
	}
	op.do("POST", "sys/wrapping/wrap", m{"a": "b"}).want(t, "without a time", 400, "endpoint requires response wrapping to be used")
	for _, ttl := range []string{"-1", "x", "800h"} {
		op.header.Set("X-Vault-Wrap-TTL", ttl)
		op.do("POST", "sys/wrapping/wrap", m{"a": "b"}).want(t, ttl, 400, "TTL")
	}
	op.header.Del("X-Vault-Wrap-TTL")
}

// TestVaultWrappingOnce: of many who open at the same time one gets the answer.
func TestVaultWrappingOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op := w.operator()
	token := op.keeping(t, "5m", "POST", "sys/wrapping/wrap", m{"a": "b"})
	clients := make([]*vaultClient, 8)
	for i := range clients {
		clients[i] = w.vault(token)
	}
	var wait sync.WaitGroup
	var mu sync.Mutex // guards got
	got := map[int]int{}
	for _, c := range clients {
		wait.Go(func() {
			a := c.do("POST", "sys/wrapping/unwrap", nil)
			mu.Lock()
			defer mu.Unlock()
			got[a.status]++
		})
	}
	wait.Wait()
	if got[200] != 1 || got[400] != len(clients)-1 {
		t.Error(fmt.Sprint(got))
	}
}

// TestVaultWrappedLogin: what a login gives is kept, and so is who it is for.
func TestVaultWrappedLogin(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op := w.operator()
	op.must("POST", "sys/auth/userpass", m{"type": "userpass"})
	op.must("POST", "auth/userpass/users/u", m{"password": "a long password of u"})
	stranger := w.vault("")
	token := stranger.keeping(t, "5m", "POST", "auth/userpass/login/u", m{"password": "a long password of u"})
	a := w.vault(token).do("POST", "sys/wrapping/unwrap", nil).want(t, "unwrap", 200, "client_token")
	auth, _ := a.body["auth"].(map[string]any)
	made, _ := auth["client_token"].(string)
	w.vault(made).do("GET", "auth/token/lookup-self", nil).want(t, "the token inside", http.StatusOK, "userpass")
	op.must("POST", "auth/token/revoke", m{"token": made})
	w.vault(made).do("GET", "auth/token/lookup-self", nil).want(t, "a revoked token", 403, "permission denied")
}

// TestVaultStrangersWrapNothing: whoever shows no token, or but a wrapping token, has nothing wrapped, so the store does not grow by those who can do nothing in it.
func TestVaultStrangersWrapNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op := w.operator()
	op.must("POST", "transit/keys/a", nil)
	token := op.keeping(t, "5m", "GET", "transit/keys/a", nil)
	for who, c := range map[string]*vaultClient{"a stranger": w.vault(""), "the bearer of a wrapping token": w.vault(token)} {
		c.header.Set("X-Vault-Wrap-TTL", "1h")
		for _, one := range []string{"GET sys/internal/ui/mounts", "GET sys/internal/ui/namespaces", "POST sys/wrapping/lookup"} {
			method, path, _ := strings.Cut(one, " ")
			var body any
			if method == "POST" {
				body = m{"token": token}
			}
			if a := c.do(method, path, body); a.status/100 != 4 {
				t.Errorf("%s has %s wrapped: %d %s", who, path, a.status, a.text)
			}
		}
		c.header.Del("X-Vault-Wrap-TTL")
	}
	op.keeping(t, "5m", "GET", "sys/internal/ui/mounts", nil) // of who is somebody
	w.vault(token).must("GET", "sys/wrapping/lookup", nil)
	w.vault(token).do("POST", "sys/wrapping/unwrap", nil).want(t, "unwrap", 200, `"name":"a"`)
}
