package clients_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// terraform is the program terraform with its vault provider, the newest that can be had as a Go module. What newer ones send to the engine is in
// terraformKey.
func terraform(t *testing.T, j job) {
	dir := t.TempDir()
	config := fmt.Sprintf("provider_installation {\n  dev_overrides {\n    \"hashicorp/vault\" = %q\n  }\n  direct {}\n}\n", tree(t, ".cache/interop"))
	main, err := os.ReadFile("terraform/main.tf")
	if err == nil {
		err = errors.Join(os.WriteFile(filepath.Join(dir, "terraform.rc"), []byte(config), 0o600), os.WriteFile(filepath.Join(dir, "main.tf"), main, 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	run := func(token string, args ...string) (string, error) {
		args = append([]string{"TF_CLI_CONFIG_FILE=terraform.rc", "CHECKPOINT_DISABLE=1", "terraform"}, args...)
		return j.program(dir, token, append([]string{"env"}, args...)...)
	}
	apply := func(c check, args ...string) {
		_, err := run(j.token, append([]string{"apply", "-auto-approve", "-input=false", "-no-color"}, args...)...)
		c.ok(err, "apply")
	}
	unchanged := func(c check, args ...string) {
		_, err := run(j.token, append([]string{"plan", "-detailed-exitcode", "-input=false", "-no-color"}, args...)...)
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == 2 {
			c.fail("what was applied is to be changed: %w", err)
		}
		c.ok(err, "plan")
	}
	output := func(c check, name string) string {
		out, err := run(j.token, "output", "-raw", name)
		c.ok(err, "read an output")
		return out
	}
	var first string
	j.step(t, "keys", func(c check) {
		apply(c)
		unchanged(c)
	})
	e := func(c check, name string) transit { return transit{c, j.at(output(c, name)), "interop-terraform"} }
	j.step(t, "login", func(c check) { first = e(c, "login").encrypt("orders", "one") })
	j.step(t, "use", func(c check) { e(c, "token").decrypts("orders", first, "one") })
	j.step(t, "rotate", func(c check) {
		apply(c, "-var=rotations=1", "-var=ttl=600")
		unchanged(c, "-var=rotations=1", "-var=ttl=600")
		e(c, "token").prefix(e(c, "token").encrypt("orders", "two"), "2")
	})
	j.step(t, "old", func(c check) { e(c, "token").decrypts("orders", first, "one") })
	j.step(t, "denied", func(c check) {
		e(c, "token").refused("keys/orders/rotate", nil, "permission denied")
		_, err := run(output(c, "token"), "plan", "-input=false", "-no-color")
		c.says(err, "permission denied", "plan with an application's token")
	})
	j.step(t, "more", func(c check) {
		terraformKey(transit{c, j.admin, "interop-terraform"})
		_, err := run(j.token, "destroy", "-auto-approve", "-input=false", "-no-color")
		c.ok(err, "destroy")
		mounts, err := j.admin.Sys().ListMounts()
		c.ok(err, "list the mounts")
		if mounts["interop-terraform/"] != nil {
			c.fail("what is destroyed is there")
		}
	})
}

// terraformKey sends what the resource vault_transit_secret_backend_key of the provider's versions 2.10 to 5 sends, with a misspelt field of theirs.
func terraformKey(e transit) {
	e.write("keys/new", values{"convergent_encryption": false, "derived": false, "type": "aes256-gcm96", "auto_rotate_period": 0, "key_size": 0})
	settings := values{"min_decryption_version": 1, "min_encryption_versoin": 0, "deletion_allowed": true, "exportable": false, "allow_plaintext_backup": false, "auto_rotate_period": 0}
	e.write("keys/new/config", settings)
	k := e.read("keys/new")
	for _, field := range []string{"latest_version", "min_available_version", "min_decryption_version", "min_encryption_version", "auto_rotate_period"} {
		if fmt.Sprintf("%T", k[field]) != "json.Number" {
			e.fail("%s is %v", field, k[field])
		}
	}
	for _, field := range []string{"allow_plaintext_backup", "deletion_allowed", "derived", "exportable", "supports_decryption", "supports_derivation", "supports_encryption", "supports_signing"} {
		if _, ok := k[field].(bool); !ok {
			e.fail("%s is %v", field, k[field])
		}
	}
	if fmt.Sprintf("%T", k["keys"].(values)["1"]) != "json.Number" {
		e.fail("the time of a version is %v", k["keys"])
	}
	settings["auto_rotate_period"] = 86400
	e.write("keys/new/config", settings)
	e.write("keys/mac", values{"type": "hmac", "key_size": 64})
	e.same(e.read("keys/mac")["key_size"], 64, "the size of a key")
	for _, key := range []string{"mac", "new"} {
		e.write("keys/"+key+"/config", values{"deletion_allowed": true})
		_, err := e.client.Logical().Delete(e.mount + "/keys/" + key)
		e.ok(err, "delete a key")
	}
}
