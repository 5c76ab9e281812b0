package etcd_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotorkms/rotor/internal/store/etcd"
)

func TestParseURL(t *testing.T) {
	plain := etcd.Config{Endpoints: []string{"h:1"}, Prefix: "rotor", Timeout: 5 * time.Second, History: 100_000}
	with := func(change func(c *etcd.Config)) etcd.Config {
		c := plain
		change(&c)
		return c
	}
	good := map[string]etcd.Config{
		"etcd://h:1":              plain,
		"etcd://h:1/":             plain,
		"etcd://h:1?tls=on":       plain,
		"etcd://h:1,[::1]:2/a/b":  with(func(c *etcd.Config) { c.Endpoints, c.Prefix = []string{"h:1", "[::1]:2"}, "a/b" }),
		"etcd://h:1/a%20b":        with(func(c *etcd.Config) { c.Prefix = "a b" }),
		"etcd://h:1/x?tls=off":    with(func(c *etcd.Config) { c.Prefix, c.Plaintext = "x", true }),
		"etcd://h:1?timeout=10s":  with(func(c *etcd.Config) { c.Timeout = 10 * time.Second }),
		"etcd://h:1?history=off":  with(func(c *etcd.Config) { c.History = -1 }),
		"etcd://h:1?history=5000": with(func(c *etcd.Config) { c.History = 5000 }),
		"etcd://h:1?ca_file=/ca&cert_file=/c&key_file=/k&user=u&password_file=/p": with(func(c *etcd.Config) {
			c.CAFile, c.CertFile, c.KeyFile, c.User, c.PasswordFile = "/ca", "/c", "/k", "u", "/p"
		}),
	}
	for text, want := range good {
		if got, err := etcd.ParseURL(text); err != nil || !cmp.Equal(got, want) {
			t.Errorf("%s: %v\n%s", text, err, cmp.Diff(want, got))
		}
	}
	for text, why := range map[string]string{
		"postgres://h:1":                         "not an etcd URL",
		"etcd://":                                "each endpoint",
		"etcd://h":                               "each endpoint",
		"etcd://h:0":                             "each endpoint",
		"etcd://h:65536":                         "each endpoint",
		"etcd://:1":                              "each endpoint",
		"etcd://h:1,":                            "each endpoint",
		"etcd://u:hunter2@h:1":                   "password does not belong",
		"etcd://h:1//a":                          "no slash at an end",
		"etcd://h:1/a/":                          "no slash at an end",
		"etcd://h:1/%zz":                         "prefix",
		"etcd://h:1/" + strings.Repeat("p", 129): "1 to 128 bytes",
		"etcd://h:1" + strings.Repeat(",h:1", 16):     "1 to 16 endpoints",
		"etcd://h:1?tls=maybe":                        "on or off",
		"etcd://h:1?tls=off&ca_file=/ca":              "exclude each other",
		"etcd://h:1?cert_file=/c":                     "go together",
		"etcd://h:1?user=u":                           "go together",
		"etcd://h:1?timeout=1ms":                      "100 ms to 1 min",
		"etcd://h:1?timeout=0s":                       "not positive",
		"etcd://h:1?timeout=soon":                     "timeout",
		"etcd://h:1?history=0":                        "a number of revisions",
		"etcd://h:1?history=9999999999999":            "too large",
		"etcd://h:1?user=":                            "is empty",
		"etcd://h:1?tls=on&tls=off":                   "appears twice",
		"etcd://h:1?password=hunter2":                 "is not known",
		"etcd://h:1?insecure_skip_verify=true&tls=on": "is not known",
	} {
		_, err := etcd.ParseURL(text)
		if err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v", text, err)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the error tells the password: %v", text, err)
		}
	}
}

// FuzzParseURL: what is taken is within bounds.
func FuzzParseURL(f *testing.F) {
	f.Add("etcd://h:1,[::1]:2/a/b?tls=off&timeout=5s&history=off")
	f.Add("etcd://h:1/%41?ca_file=/ca&cert_file=/c&key_file=/k&user=u&password_file=/p")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := etcd.ParseURL(text)
		if err != nil {
			return
		}
		if len(c.Endpoints) == 0 || len(c.Prefix) == 0 || len(c.Prefix) > 128 || c.Timeout < 100*time.Millisecond || c.Timeout > time.Minute || c.History == 0 {
			t.Errorf("%q: %+v", text, c)
		}
		if (c.CertFile == "") != (c.KeyFile == "") || (c.User == "") != (c.PasswordFile == "") {
			t.Errorf("%q: half of a pair: %+v", text, c)
		}
	})
}
