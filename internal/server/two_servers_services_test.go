//go:build services

package server_test

import (
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"github.com/rotorkms/rotor/internal/server"
	"github.com/rotorkms/rotor/internal/testenv"
)

// twoVaults are clients with the root token at two servers on one PostgreSQL.
func twoVaults(t *testing.T) (all []*vaultClient) {
	t.Helper()
	url, key := testenv.Postgres(t).URL, filepath.Join(t.TempDir(), "seal.key")
	token := ""
	for i := range 2 {
		w := newConfig(t)
		w.config.Store, w.config.SealKey, w.config.Root = url, key, true
		if i == 0 {
			made, err := server.Init(t.Context(), w.config)
			if err != nil {
				t.Fatal(err)
			}
			token = made.RootToken
		}
		w.start()
		all = append(all, w.vault(token))
	}
	return all
}

// atOnce asks both servers for the same so many times at once, and returns the answers that say yes. What the others say is checked.
func atOnce(t *testing.T, servers []*vaultClient, n int, ask func(c *vaultClient) answer, status int, text string) (yes []answer) {
	t.Helper()
	answers := make([]answer, n)
	var wait sync.WaitGroup
	begin := make(chan struct{})
	for i := range answers {
		wait.Go(func() { <-begin; answers[i] = ask(servers[i%len(servers)]) })
	}
	close(begin)
	wait.Wait()
	for _, a := range answers {
		if a.status/100 == 2 {
			yes = append(yes, a)
		} else {
			a.want(t, "one too many", status, text)
		}
	}
	return yes
}

// TestVaultCountsOfTwoServers: what is good for a number of times is good for so many at two servers together, whoever comes at once: secret IDs, tokens, wrapped answers, and
// wrong passwords.
func TestVaultCountsOfTwoServers(t *testing.T) {
	t.Parallel()
	at := twoVaults(t)
	at[0].do("POST", "sys/auth/approle", m{"type": "approle"}).want(t, "approle", 204, "")
	at[0].do("POST", "sys/auth/userpass", m{"type": "userpass"}).want(t, "userpass", 204, "")
	at[0].do("POST", "auth/approle/role/r", m{"token_policies": "default"}).want(t, "a role", 204, "")
	role := at[0].do("GET", "auth/approle/role/r/role-id", nil).data("role_id")
	with := func(c *vaultClient, token string) *vaultClient {
		other := *c
		other.token = token
		return &other
	}
	for round := range 3 { // with no more logins than one address has at once
		for _, uses := range []int{1, 3} {
			id := at[round%2].do("POST", "auth/approle/role/r/secret-id", m{"num_uses": uses}).data("secret_id")
			yes := atOnce(t, at, 8, func(c *vaultClient) answer {
				return with(c, "").do("POST", "auth/approle/login", m{"role_id": role, "secret_id": id})
			}, 400, "invalid role or secret ID")
			tokens := map[any]bool{}
			for _, a := range yes {
				tokens[a.body["auth"].(map[string]any)["client_token"]] = true
			}
			if len(yes) != uses || len(tokens) != uses {
				t.Errorf("a secret ID for %d uses: %d logins, %d tokens", uses, len(yes), len(tokens))
			}
			for range 6 {
				made := at[round%2].do("POST", "auth/token/create", m{"policies": "default", "num_uses": uses}).body["auth"].(map[string]any)["client_token"].(string)
				if yes := atOnce(t, at, 16, func(c *vaultClient) answer { return with(c, made).do("GET", "auth/token/lookup-self", nil) }, 403, "permission denied"); len(yes) != uses {
					t.Errorf("a token for %d uses: %d answers", uses, len(yes))
				}
			}
		}
		wraps := with(at[round%2], at[round%2].token)
		wraps.header = map[string][]string{"X-Vault-Wrap-Ttl": {"60s"}}
		kept := wraps.do("POST", "sys/wrapping/wrap", m{"round": round}).body["wrap_info"].(map[string]any)["token"]
		yes := atOnce(t, at, 8, func(c *vaultClient) answer { return c.do("POST", "sys/wrapping/unwrap", m{"token": kept}) }, 400, "wrapping token is not valid or does not exist")
		if len(yes) != 1 || yes[0].data("round") != float64(round) {
			t.Errorf("a wrapped answer was opened %d times: %v", len(yes), yes)
		}

		user := fmt.Sprintf("auth/userpass/users/u%d", round)
		at[round%2].do("POST", user, m{"password": "correct horse"}).want(t, "a user", 204, "")
		login := fmt.Sprintf("auth/userpass/login/u%d", round)
		if yes := atOnce(t, at, 5, func(c *vaultClient) answer { return with(c, "").do("POST", login, m{"password": "wrong"}) }, 400, "invalid username or password"); len(yes) != 0 {
			t.Error("a wrong password is taken")
		}
		if yes := atOnce(t, at, 4, func(c *vaultClient) answer { return with(c, "").do("POST", login, m{"password": "correct horse"}) }, 400, "invalid username or password"); len(yes) != 0 {
			t.Error("after so many wrong ones the true password is taken")
		}
	}
}
