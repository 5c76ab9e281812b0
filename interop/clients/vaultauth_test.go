package clients_test

import (
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/hashicorp/vault/api/auth/approle"
)

// role makes a role of AppRole with a policy, and returns its two halves.
func (j job) role(c check, policy string) (roleID, secretID string) {
	name := "interop-" + j.client
	c.ok(j.admin.Sys().PutPolicy(name, policy), "write the policy")
	_, err := j.admin.Logical().Write("auth/approle/role/"+name, values{
		"token_policies": []string{name}, "token_ttl": "20m", "token_max_ttl": "1h", "secret_id_num_uses": 2, "secret_id_ttl": "10m",
	})
	c.ok(err, "write the role")
	s, err := j.admin.Logical().Read("auth/approle/role/" + name + "/role-id")
	c.ok(err, "read the role's ID")
	roleID, _ = s.Data["role_id"].(string)
	s, err = j.admin.Logical().Write("auth/approle/role/"+name+"/secret-id", nil)
	c.ok(err, "make a secret ID")
	secretID, _ = s.Data["secret_id"].(string)
	if roleID == "" || secretID == "" || s.Data["secret_id_accessor"] == "" {
		c.fail("the role's halves are %v", s.Data)
	}
	return roleID, secretID
}

// goLogin comes in by AppRole, also by a wrapped secret ID, and returns a token.
func goLogin(c check, j job, mount string) string {
	roleID, secretID := j.role(c, orders(mount))
	client := j.at("")
	auth, err := approle.NewAppRoleAuth(roleID, &approle.SecretID{FromString: secretID})
	c.ok(err, "set AppRole up")
	s, err := client.Auth().Login(j.ctx, auth)
	c.ok(err, "log in")
	if !s.Auth.Renewable || s.Auth.LeaseDuration != 20*60 || s.Auth.Accessor == "" || !slices.Contains(s.Auth.Policies, "interop-"+j.client) {
		c.fail("the login answers %+v", s.Auth)
	}
	c.same(s.Auth.Metadata["role_name"], "interop-"+j.client, "the role's name")
	token, err := s.TokenID()
	c.ok(err, "read the token")
	text := transit{c, client, mount}.encrypt("orders", "from the application")
	transit{c, client, mount}.decrypts("orders", text, "from the application")

	wrapping := j.at(j.token)
	wrapping.SetWrappingLookupFunc(func(string, string) string { return "5m" })
	s, err = wrapping.Logical().Write("auth/approle/role/interop-"+j.client+"/secret-id", nil)
	c.ok(err, "wrap a secret ID")
	if s.WrapInfo == nil || s.WrapInfo.TTL != 300 || s.WrapInfo.Token == "" || s.WrapInfo.CreationPath != "auth/approle/role/interop-"+j.client+"/secret-id" {
		c.fail("what is wrapped is told as %+v", s.WrapInfo)
	}
	auth, err = approle.NewAppRoleAuth(roleID, &approle.SecretID{FromString: s.WrapInfo.Token}, approle.WithWrappingToken())
	c.ok(err, "set AppRole up")
	_, err = j.at("").Auth().Login(j.ctx, auth)
	c.ok(err, "log in by a wrapped secret ID")
	_, err = j.at("").Auth().Login(j.ctx, auth)
	c.says(err, "wrapping token is not valid or does not exist", "log in by a secret ID that was unwrapped already")

	auth, err = approle.NewAppRoleAuth(roleID, &approle.SecretID{FromString: "ffffffff-ffff-ffff-ffff-ffffffffffff"})
	c.ok(err, "set AppRole up")
	_, err = j.at("").Auth().Login(j.ctx, auth)
	c.says(err, "invalid", "log in by a wrong secret ID") // its text is not the same in all versions
	return token
}

// goRenew renews a token, has a watcher do so, and gives it up.
func goRenew(c check, j job, token string) {
	client := j.at(token)
	self, err := client.Auth().Token().LookupSelf()
	c.ok(err, "look the token up")
	for field, want := range (values{"id": token, "renewable": true, "type": "service", "path": "auth/approle/login", "orphan": true, "num_uses": 0, "creation_ttl": 1200, "display_name": "approle"}) {
		c.same(self.Data[field], want, field)
	}
	for _, field := range []string{"accessor", "creation_time", "entity_id", "expire_time", "explicit_max_ttl", "issue_time", "meta", "policies", "ttl"} {
		if _, ok := self.Data[field]; !ok {
			c.fail("lookup-self has no %s", field)
		}
	}
	s, err := client.Auth().Token().RenewSelf(600)
	c.ok(err, "renew")
	if s.Auth.ClientToken != token || !s.Auth.Renewable || s.Auth.LeaseDuration == 0 {
		c.fail("renewal answers %+v", s.Auth)
	}
	watcher, err := client.NewLifetimeWatcher(&api.LifetimeWatcherInput{Secret: s})
	c.ok(err, "make a watcher")
	go watcher.Start()
	select {
	case <-watcher.RenewCh(): // which it does first
	case err := <-watcher.DoneCh():
		c.fail("the watcher ended: %v", err)
	case <-j.ctx.Done():
		c.fail("the watcher does not renew")
	}
	watcher.Stop()
	c.ok(client.Auth().Token().RevokeSelf(""), "revoke")
	_, err = client.Auth().Token().LookupSelf()
	c.says(err, "permission denied", "use a revoked token")
	_, err = j.at("nonsense").Auth().Token().LookupSelf()
	c.says(err, "permission denied", "use no token")
	goTokens(c, j)
}

// goTokens makes tokens of every kind.
func goTokens(c check, j job) {
	tokens := j.admin.Auth().Token()
	s, err := tokens.Create(&api.TokenCreateRequest{Policies: []string{"default"}, TTL: "1h", NumUses: 2, DisplayName: "two", Metadata: map[string]string{"of": "interop"}})
	c.ok(err, "create a token of two uses")
	two := j.at(s.Auth.ClientToken)
	for range 2 {
		_, err = two.Auth().Token().LookupSelf()
		c.ok(err, "use it")
	}
	_, err = two.Auth().Token().LookupSelf()
	c.says(err, "permission denied", "use it a third time")
	s, err = tokens.CreateOrphan(&api.TokenCreateRequest{Policies: []string{"default"}, Period: "1h"})
	c.ok(err, "create a periodic orphan")
	_, err = tokens.LookupAccessor(s.Auth.Accessor)
	c.ok(err, "look an accessor up")
	c.ok(tokens.RevokeAccessor(s.Auth.Accessor), "revoke by accessor")
	_, err = tokens.Lookup(s.Auth.ClientToken)
	c.says(err, "bad token", "look a revoked token up")
	_, err = j.admin.Logical().Write("auth/token/roles/interop", values{"allowed_policies": "default", "orphan": true, "token_period": 3600})
	c.ok(err, "write a token role")
	s, err = tokens.CreateWithRole(&api.TokenCreateRequest{Policies: []string{"default"}}, "interop")
	c.ok(err, "create a token by a role")
	c.same(s.Auth.LeaseDuration, int(time.Hour/time.Second), "the period")
}

// goBatch makes a token that is kept nowhere.
func goBatch(c check, j job) {
	s, err := j.admin.Auth().Token().Create(&api.TokenCreateRequest{Policies: []string{"default"}, TTL: "1h", Type: "batch"})
	c.ok(err, "create a batch token")
	if s.Auth.Renewable || s.Auth.Accessor != "" {
		c.fail("a batch token is %+v", s.Auth)
	}
	self, err := j.at(s.Auth.ClientToken).Auth().Token().LookupSelf()
	c.ok(err, "look a batch token up")
	c.same(self.Data["type"], "batch", "the type")
}

// goDenied has a policy refuse.
func goDenied(c check, j job, mount string) {
	token := j.may(c, orders(mount)+`
path "`+mount+`/encrypt/derived" {
  capabilities = ["update"]
  denied_parameters = { "key_version" = [] }
}
path "`+mount+`/keys/secret*" { capabilities = ["deny"] }
path "`+mount+`/+/derived" { capabilities = ["read"] }
path "`+mount+`/keys/*" { capabilities = ["read"] }
`)
	client := j.at(token)
	e := transit{c, client, mount}
	e.encrypt("orders", "allowed")
	e.refused("encrypt/missing", values{"plaintext": b64("x")}, "permission denied") // which would make the key
	e.refused("encrypt/made", values{"plaintext": b64("x")}, "permission denied")
	e.refused("keys/orders/rotate", nil, "permission denied")
	_, err := client.Logical().Read(mount + "/keys/secret1")
	c.says(err, "permission denied", "read what is denied")
	e.refused("encrypt/derived", values{"plaintext": b64("x"), "context": b64("x"), "key_version": 1}, "permission denied")
	e.write("encrypt/derived", values{"plaintext": b64("x"), "context": b64("x")})
	_, err = client.Logical().List(mount + "/keys")
	c.says(err, "permission denied", "list keys")
	_, err = client.Sys().ListPolicies()
	c.says(err, "permission denied", "list policies")
	may, err := client.Sys().CapabilitiesSelf(mount + "/encrypt/orders")
	c.ok(err, "ask for one's capabilities")
	c.same(may, []string{"update"}, "the capabilities")
	may, err = j.admin.Sys().Capabilities(token, mount+"/keys/secret1")
	c.ok(err, "ask for a token's capabilities")
	c.same(may, []string{"deny"}, "the capabilities")
}

// goSystem asks the server about itself, as tools do.
func goSystem(c check, j job, mount string) {
	sys := j.admin.Sys()
	seal, err := sys.SealStatus()
	c.ok(err, "ask for the seal")
	if seal.Sealed || !seal.Initialized || strings.Count(seal.Version, ".") < 2 || seal.ClusterID == "" {
		c.fail("the seal is %+v", seal)
	}
	leader, err := sys.Leader()
	c.ok(err, "ask for the leader")
	_ = leader
	mounts, err := sys.ListMounts()
	c.ok(err, "list the mounts")
	m := mounts[mount+"/"]
	if m == nil || m.Type != "transit" || m.Accessor == "" || m.UUID == "" || mounts["transit/"] == nil || mounts["sys/"] == nil {
		c.fail("the mounts are %v", mounts)
	}
	c.ok(sys.TuneMount(mount, api.MountConfigInput{Description: ptr("tuned"), MaxLeaseTTL: "2h"}), "tune the mount")
	config, err := sys.MountConfig(mount)
	c.ok(err, "read the mount's settings")
	c.same(config.MaxLeaseTTL, 7200, "the longest lease")
	auths, err := sys.ListAuth()
	c.ok(err, "list the ways in")
	if auths["approle/"] == nil || auths["token/"] == nil {
		c.fail("the ways in are %v", auths)
	}
	names, err := sys.ListPolicies()
	c.ok(err, "list the policies")
	if !slices.Contains(names, "default") || !slices.Contains(names, "interop-"+j.client) {
		c.fail("the policies are %v", names)
	}
	text, err := sys.GetPolicy("interop-" + j.client)
	c.ok(err, "read a policy")
	if !strings.Contains(text, mount+"/encrypt/orders") {
		c.fail("the policy is %q", text)
	}
	help, err := j.admin.Help(mount)
	c.ok(err, "ask for help")
	if !strings.Contains(help.Help, "transit") {
		c.fail("the help is %q", help.Help)
	}
	_, err = sys.ListAudit()
	c.ok(err, "list the audit devices")
	c.ok(sys.Mount("interop/empty", &api.MountInput{Type: "transit"}), "mount")
	c.ok(sys.Unmount("interop/empty"), "unmount")
	mounts, err = sys.ListMounts()
	c.ok(err, "list the mounts")
	if mounts["interop/empty/"] != nil {
		c.fail("what is unmounted is there")
	}
	goWrapping(c, j)
}

// goWrapping wraps an answer of one's own, and opens it once.
func goWrapping(c check, j job) {
	wrapping := j.at(j.token)
	wrapping.SetWrappingLookupFunc(func(_, path string) string {
		if path == "sys/wrapping/wrap" {
			return "60s"
		}
		return ""
	})
	s, err := wrapping.Logical().Write("sys/wrapping/wrap", values{"of": "interop"})
	c.ok(err, "wrap")
	told, err := j.admin.Logical().Write("sys/wrapping/lookup", values{"token": s.WrapInfo.Token})
	c.ok(err, "look a wrapping token up")
	c.same(told.Data["creation_ttl"], 60, "its life, in seconds")
	open, err := j.at("").Logical().Unwrap(s.WrapInfo.Token)
	c.ok(err, "unwrap")
	c.same(open.Data["of"], "interop", "what was wrapped")
	_, err = j.at("").Logical().Unwrap(s.WrapInfo.Token)
	c.says(err, "wrapping token is not valid or does not exist", "unwrap again")
}

func ptr[T any](v T) *T { return &v }
