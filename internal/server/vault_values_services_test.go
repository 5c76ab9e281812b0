//go:build services

package server_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/rotorkms/rotor/internal/testenv"
)

// valueOf is a member of a body, where it is read again, and values of it in JSON; those for which there is a reason are answered otherwise.
type valueOf struct {
	write, member string
	read, shown   string
	values        map[string]string
}

func valuesOfClients() []valueOf {
	const role, tokenRole = "auth/approle/role/v", "auth/token/roles/v"
	return []valueOf{
		{role, "token_ttl", role, "token_ttl", map[string]string{
			`60`: "", `"60"`: "", `"1m"`: "", `"1h30m"`: "", `" 60 "`: "", `"2d"`: "", `""`: "", `null`: "", `-1`: "", `"-1"`: "", `"-1m"`: "", `1.5`: "", `"1.5"`: "", `"1.5h"`: "", `1e3`: "", `"1.5d"`: "", `"1d1h"`: "", `true`: "",
			`"x"`: "", `[60]`: "", `{}`: "", `"0x10"`: "", `9223372036`: "at most 100 years", `9223372037`: "", `99999999999999999999`: "", `"1y"`: "", `"1_0"`: "", `"NaN"`: "",
		}},
		{role, "token_num_uses", role, "token_num_uses", map[string]string{
			`3`: "", `"3"`: "", `""`: "", `null`: "", `-1`: "", `"-1"`: "", `1.0`: "", `1.5`: "", `1e2`: "", `"1e2"`: "", `true`: "", `false`: "", `"x"`: "", `[3]`: "", `{}`: "", `"0x10"`: "", `"010"`: "", `" 3 "`: "", `99999999999999999999`: "", `"1_0"`: "",
		}},
		{"transit/keys/v/config", "min_encryption_version", "transit/keys/v", "min_encryption_version", map[string]string{
			`1`: "", `"1"`: "", `""`: "", `null`: "", `-1`: "", `1.0`: "", `1e0`: "", `"1e0"`: "", `true`: "", `"x"`: "", `[1]`: "", `{}`: "", `"0x1"`: "", `" 1 "`: "",
		}},
		{tokenRole, "orphan", tokenRole, "orphan", map[string]string{
			`true`: "", `"true"`: "", `"T"`: "", `"TRUE"`: "", `"tRUE"`: "", `1`: "", `"1"`: "", `0`: "", `2`: "", `"2"`: "", `-1`: "", `1.0`: "", `0.0`: "", `""`: "", `null`: "", `"yes"`: "", `[true]`: "", `[]`: "", `{}`: "", `" true "`: "",
		}},
		{"transit/keys/v/config", "deletion_allowed", "transit/keys/v", "deletion_allowed", map[string]string{
			`true`: "", `"T"`: "", `1`: "", `0`: "", `2`: "", `"2"`: "", `1.0`: "", `""`: "", `null`: "", `"yes"`: "", `[true]`: "", `{}`: "",
		}},
		{role, "token_policies", role, "token_policies", map[string]string{
			`"a,b"`: "", `" a , b "`: "", `["a","b"]`: "", `["a,b"]`: "", `[" a ","b"]`: "", `["a",""]`: "a policy has a name and stands once", `"a,,b"`: "a policy has a name and stands once", `","`: "a policy has a name and stands once", `""`: "", `[]`: "", `null`: "", `[1,true]`: "a policy has a name and stands once", `7`: "", `true`: "", `[["a"]]`: "", `{}`: "an object is no list", `{"a":"b"}`: "", `[null]`: "a policy has a name and stands once",
		}},
		{role, "token_bound_cidrs", role, "token_bound_cidrs", map[string]string{
			`"10.0.0.0/8,127.0.0.1"`: "", `["10.0.0.0/8"]`: "", `["10.0.0.0/8",""]`: "", `"10.0.0.0/8,,"`: "", `["10.0.0.0/8,127.0.0.1"]`: "it is no network", `[" 10.0.0.0/8 "]`: "", `[]`: "", `""`: "",
		}},
		{"auth/token/create", "meta", "", "metadata", map[string]string{
			`{"a":"b"}`: "", `{"a":1}`: "", `{"a":true}`: "", `{"a":null}`: "", `{"a":["b"]}`: "", `{"a":{}}`: "", `null`: "no metadata is an empty object", `{}`: "", `[]`: "", `"a"`: "", `"{\"a\":\"b\"}"`: "an object in a text is taken everywhere", `"a=b"`: "", `["a=b"]`: "", `""`: "no metadata in a text is taken",
		}},
		{"auth/token/create", "display_name", "", "display_name", map[string]string{`"a"`: "", `1`: "", `true`: "", `null`: "", `[]`: "", `1.0`: ""}},
	}
}

// TestVaultPeerValues gives a real Vault and rotor the same values of each type that Vault's clients send, well spelt or not: both take the same ones, and show the same.
func TestVaultPeerValues(t *testing.T) {
	real := testenv.Vault(t)
	ours := newWorld(t).operator()
	theirs := &vaultClient{t, real.Address + "/v1/", real.Root, http.Header{}, ours.http}
	both := []*vaultClient{ours, theirs}
	for _, c := range both {
		c.do("POST", "sys/auth/approle", m{"type": "approle"})
	}
	for _, v := range valuesOfClients() {
		for value, why := range v.values {
			var got [2]string
			for i, c := range both {
				got[i] = v.ask(c, value)
			}
			if same := got[0] == got[1]; same != (why == "") {
				t.Errorf("%s %s %s (%s)\n  rotor: %s\n  Vault: %s", v.write, v.member, value, why, got[0], got[1])
			}
		}
	}
}

// ask writes a value and says what became of it.
func (v valueOf) ask(c *vaultClient, value string) string {
	if v.read != "" { // begin anew
		c.do("DELETE", v.read, nil)
	}
	if strings.HasPrefix(v.read, "transit/") {
		c.do("POST", v.read, nil)
		c.do("POST", v.write, m{v.member: 0}) // the key is there still unless its deletion was allowed
	}
	a := c.do("POST", v.write, []byte(fmt.Sprintf("{%q: %s}", v.member, value)))
	if a.status/100 != 2 {
		return fmt.Sprint(a.status)
	}
	if v.read != "" {
		a = c.do("GET", v.read, nil)
	}
	for _, where := range []string{"data", "auth"} {
		if in, ok := a.body[where].(map[string]any); ok {
			b, _ := json.Marshal(in[v.shown])
			return string(b)
		}
	}
	return a.text
}
