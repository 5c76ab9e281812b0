package clients_test

import (
	"testing"

	bao "github.com/openbao/openbao/api/v2"
)

// baoJob is a job by OpenBao's client.
type baoJob struct {
	job
	check
	token string // whose job it is: hides the administrator's
}

const baoMount = "interop/bao"

func (j baoJob) at(token string) *bao.Client {
	config := bao.DefaultConfig()
	config.Address, config.MaxRetries = j.address, 0
	j.ok(config.ConfigureTLS(&bao.TLSConfig{CACert: j.ca}), "read the authority")
	client, err := bao.NewClient(config)
	j.ok(err, "make a client")
	client.SetToken(token)
	return client
}

func (j baoJob) write(path string, in values) values {
	s, err := j.at(j.token).Logical().WriteWithContext(j.ctx, baoMount+"/"+path, in)
	j.ok(err, "write "+path)
	if s == nil {
		return nil
	}
	return s.Data
}

// openBao is github.com/openbao/openbao/api, OpenBao's fork of the Go client.
func openBao(t *testing.T, j job) {
	var first string
	token := "" // of the application
	admin := func(c check) baoJob { return baoJob{job: j, check: c, token: j.token} }
	app := func(c check) baoJob { return baoJob{job: j, check: c, token: token} }
	j.step(t, "keys", func(c check) { baoKeys(admin(c)) })
	j.step(t, "use", func(c check) {
		first, _ = admin(c).write("encrypt/orders", values{"plaintext": b64("one")})["ciphertext"].(string)
		c.same(admin(c).write("decrypt/orders", values{"ciphertext": first})["plaintext"], b64("one"), "the plaintext")
	})
	j.step(t, "rotate", func(c check) {
		admin(c).write("keys/orders/rotate", nil)
		s, err := admin(c).at(j.token).Logical().ReadWithContext(j.ctx, baoMount+"/keys/orders")
		c.ok(err, "read the key")
		c.same(s.Data["latest_version"], 2, "the version")
	})
	j.step(t, "rewrap", func(c check) {
		again := admin(c).write("rewrap/orders", values{"ciphertext": first})
		c.same(again["key_version"], 2, "the version")
		c.same(admin(c).write("decrypt/orders", again)["plaintext"], b64("one"), "the plaintext")
	})
	j.step(t, "old", func(c check) {
		c.same(admin(c).write("decrypt/orders", values{"ciphertext": first})["plaintext"], b64("one"), "the plaintext")
	})
	j.step(t, "login", func(c check) {
		roleID, secretID := j.role(c, orders(baoMount))
		s, err := app(c).at("").Logical().WriteWithContext(j.ctx, "auth/approle/login", values{"role_id": roleID, "secret_id": secretID})
		c.ok(err, "log in")
		token = s.Auth.ClientToken
		app(c).write("encrypt/orders", values{"plaintext": b64("x")})
	})
	j.step(t, "renew", func(c check) { baoRenew(app(c)) })
	j.step(t, "denied", func(c check) { baoDenied(app(c)) })
	j.step(t, "more", func(c check) { baoSystem(admin(c)) })
}

func baoKeys(j baoJob) {
	client := j.at(j.token)
	j.ok(client.Sys().MountWithContext(j.ctx, baoMount, &bao.MountInput{Type: "transit"}), "mount")
	j.write("keys/orders", nil)
	s, err := client.Logical().ListWithContext(j.ctx, baoMount+"/keys")
	j.ok(err, "list the keys")
	j.same(s.Data["keys"], []string{"orders"}, "the keys")
	j.write("keys/gone", nil)
	j.write("keys/gone/config", values{"deletion_allowed": true})
	_, err = client.Logical().DeleteWithContext(j.ctx, baoMount+"/keys/gone")
	j.ok(err, "delete a key")
	s, err = client.Logical().ReadWithContext(j.ctx, baoMount+"/keys/gone")
	j.ok(err, "read a missing key")
	if s != nil {
		j.fail("a deleted key is there: %v", s.Data)
	}
}

func baoRenew(j baoJob) {
	client := j.at(j.token)
	s, err := client.Auth().Token().RenewSelfWithContext(j.ctx, 600)
	j.ok(err, "renew")
	watcher, err := client.NewLifetimeWatcher(&bao.LifetimeWatcherInput{Secret: s})
	j.ok(err, "make a watcher")
	go watcher.Start()
	defer watcher.Stop()
	select {
	case <-watcher.RenewCh(): // which it does first
	case err := <-watcher.DoneCh():
		j.fail("the watcher ended: %v", err)
	case <-j.ctx.Done():
		j.fail("the watcher does not renew")
	}
}

func baoDenied(j baoJob) {
	client := j.at(j.token)
	_, err := client.Logical().WriteWithContext(j.ctx, baoMount+"/keys/orders/rotate", nil)
	j.says(err, "permission denied", "rotate")
	j.ok(client.Auth().Token().RevokeSelfWithContext(j.ctx, ""), "revoke")
	_, err = client.Logical().WriteWithContext(j.ctx, baoMount+"/encrypt/orders", values{"plaintext": b64("x")})
	j.says(err, "permission denied", "use a revoked token")
}

func baoSystem(j baoJob) {
	health, err := j.at("").Sys().HealthWithContext(j.ctx)
	j.ok(err, "ask for the health")
	j.same(health.Sealed, false, "whether it is sealed")
	mounts, err := j.at(j.token).Sys().ListMountsWithContext(j.ctx)
	j.ok(err, "list the mounts")
	if mounts[baoMount+"/"] == nil {
		j.fail("the mounts are %v", mounts)
	}
	may, err := j.at(j.token).Sys().CapabilitiesSelfWithContext(j.ctx, baoMount+"/keys/orders")
	j.ok(err, "ask for capabilities")
	if len(may) == 0 {
		j.fail("an administrator may nothing")
	}
}
