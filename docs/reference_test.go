package docs_test

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/rotorkms/rotor/internal/policy"
)

// actionRow is a row of the tables of actions in rules.md.
var actionRow = regexp.MustCompile("(?m)^\\| `([a-z.]+)` \\| [^|]+ \\| [^|]+ \\|$")

// TestRulesNameEveryAction: the tables have every action that a rule may name, once, and no other.
func TestRulesNameEveryAction(t *testing.T) {
	_, tables, _ := strings.Cut(read(t, "reference/rules.md"), "## Actions about a key")
	var told []policy.Action
	for _, m := range actionRow.FindAllStringSubmatch(tables, -1) {
		told = append(told, policy.Action(m[1]))
	}
	if diff := cmp.Diff(policy.Actions(), told, cmpopts.SortSlices(func(a, b policy.Action) bool { return a < b })); diff != "" {
		t.Errorf("rules.md against the code:\n%s", diff)
	}
}

// TestRulesExample: the rules that the page shows do what it says of them.
func TestRulesExample(t *testing.T) {
	all, err := blocks(read(t, "reference/rules.md"))
	if err != nil || len(all) != 2 {
		t.Fatalf("%d blocks: %v", len(all), err)
	}
	if _, err := policy.Parse("rules.md", []byte("version: 1\n"+all[1].code)); err != nil {
		t.Error(err)
	}
	rules, err := policy.Parse("rules.md", []byte(all[0].code))
	if err != nil {
		t.Fatal(err)
	}
	models := policy.Resource{Namespace: "default", Key: "models", Labels: map[string]string{"stage": "production"}}
	trial := policy.Resource{Namespace: "default", Key: "models", Labels: map[string]string{"stage": "trial"}}
	for _, a := range policy.Actions() {
		for _, c := range []struct {
			caller string
			about  policy.Resource
			want   bool
		}{
			{"admin/root", models, true},
			{"admin/root", policy.Resource{}, true},
			{"spiffe://example.org/instance/reader-1", models, a == policy.ActUnwrap},
			{"spiffe://example.org/instance/reader-1", trial, false},
			{"spiffe://example.org/instance/reader-2", models, false},
		} {
			if _, got := rules.Allows(policy.Caller{Name: c.caller}, a, c.about); got != c.want {
				t.Errorf("%s, %s, %+v: allowed %v, expected %v", c.caller, a, c.about, got, c.want)
			}
		}
	}
}

// TestRulesOfNoKey: which actions are about no key is what the page says of rules without keys and of "*" beside chosen ones.
func TestRulesOfNoKey(t *testing.T) {
	rules, err := policy.Parse("rules", []byte(`version: 1
rules:
  - {name: none, callers: [none], actions: ["*"]}
  - {name: star, callers: [star], actions: ["*"], keys: {namespace: default, names: [models]}}
  - {name: named, callers: [named], actions: [audit.read], keys: {namespace: default, names: [models]}}
`))
	if err != nil {
		t.Fatal(err)
	}
	models := policy.Resource{Namespace: "default", Key: "models"}
	for _, c := range []struct {
		caller string
		a      policy.Action
		about  policy.Resource
		want   bool
	}{
		{"none", policy.ActAudit, policy.Resource{}, true},
		{"none", policy.ActDecrypt, models, false},
		{"star", policy.ActDecrypt, models, true},
		{"star", policy.ActAudit, policy.Resource{}, false},
		{"named", policy.ActAudit, policy.Resource{}, true},
	} {
		if _, got := rules.Allows(policy.Caller{Name: c.caller}, c.a, c.about); got != c.want {
			t.Errorf("%s, %s, %+v: allowed %v, expected %v", c.caller, c.a, c.about, got, c.want)
		}
	}
}

// TestLimits: each row of limits.md, beside the lines of the code that it tells of.
func TestLimits(t *testing.T) {
	page := read(t, "reference/limits.md")
	rows := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\| ([^*-][^|]*) \| ([^|]+) \|$`).FindAllStringSubmatch(page, -1) {
		rows[m[1]+": "+m[2]] = true
	}
	delete(rows, "what: limit")
	for _, l := range []struct{ row, file, code string }{
		{"name of a key, namespace, instance or data set: 64 bytes: lower-case letters, digits, and inside `.`, `_`, `-`", "internal/keyring/validate.go", "MaxName = 64"},
		{"labels of a key: 32; name and value 256 bytes each", "internal/keyring/validate.go", "MaxLabels = 32;MaxLabel = 256"},
		{"owner; reason of a change: 256 bytes", "internal/keyring/validate.go", "MaxLabel = 256"},
		{"message to encrypt, sign or authenticate at the server: 1 MiB", "internal/kms/use.go", "const MaxMessage = 1 << 20"},
		{"request or message of a stream: 4 MiB", "internal/wire/wire.go", "MaxMessage = 4 << 20"},
		{"request of a stranger (join): 64 KiB", "internal/wire/wire.go", "maxStranger = 64 << 10"},
		{"time for a request, but for streams: 30 s", "internal/wire/wire.go", "requestTimeout = 30 * time.Second"},
		{"time to connect and to send the header of a request; the header: 10 s; 64 KiB", "internal/wire/wire.go", "headerTimeout = 10 * time.Second;maxHeader = 64 << 10"},
		{"a connection without a request: 2 minutes", "internal/wire/wire.go", "idleTimeout = 2 * time.Minute"},
		{"silence of an HTTP/2 connection; time to answer the ping after it: 15 s; 10 s", "internal/wire/wire.go", "pingEvery = 15 * time.Second;pingTimeout = 10 * time.Second"},
		{"requests at a time of one caller; of one address of strangers: 256; 64", "internal/wire/callers.go", "maxInFlight = maxStreams;maxNobody = 64"},
		{"requests at a time of one caller; of one address of strangers: 256; 64", "internal/wire/wire.go", "maxStreams = 256"},
		{"streams at a time of one caller: 16", "internal/wire/callers.go", "maxOpen = 16"},
		{"connections of the server: 20,000", "internal/wire/callers.go", "maxConnections = 20_000"},
		{"message that a process encrypts with a fleet key: 32 GiB, and what fits into memory", "envelope/message.go", "maxPlaintext = 1 << 35"},
		{"message that `rotor encrypt` reads from standard input: 4 MiB, and at the server 1 MiB", "internal/cli/encrypt.go", "maxText = 4 << 20"},
		{"front of a file: content type and encryption context: 16 KiB, 64 entries", "envelope/header.go", "maxImmutable = 16 << 10;maxContext = 64"},
		{"wraps of a file: 64, together 12 KiB", "envelope/header.go", "maxWraps = 64;slotSize = 12 << 10"},
		{"keys that an instance holds: 256", "internal/fleet/session.go", "MaxKeys = 256"},
		{"versions in one delivery; its signed part: 1,024; 1 MiB", "internal/delivery/delivery.go", "MaxMaterials = 1024;MaxBody = 1 << 20"},
		{"life of a join token: 10 minutes", "internal/identity/token.go", "MaxTTL = 10 * time.Minute"},
		{"join tokens that are remembered: 100,000", "internal/authn/join.go", "maxTokens = 100_000"},
		{"certificate of an instance: 7 days, and 30 days more to renew it", "internal/authn/authority.go", "InstanceLife = 7 * 24 * time.Hour;RenewGrace = 30 * 24 * time.Hour"},
		{"logins from one address in a second; at once: 20; 100, unless configured", "internal/wire/limits.go", "loginRate = 20;loginBurst = 100"},
		{"keys of a namespace; instances: 100,000; 20,000, unless configured", "internal/server/limits.go", "defaultKeys = 100_000;defaultInstances = 20_000"},
		{"life of an enrolment token: 1 hour", "internal/identity/token.go", "MaxEnrolTTL = time.Hour"},
		{"session: at most; one caller's; all: 24 hours; 100; 100,000", "internal/authn/session.go", "MaxSessionLife = 24 * time.Hour;maxOfCaller = 100;maxSessions = 100_000"},
		{"credential: at most; number; networks: 366 days; 10,000; 32", "internal/authn/credential.go", "MaxCredentialLife = 366 * 24 * time.Hour;maxCredentials = 10_000;maxNetworks = 32"},
		{"failures in a row of a credential: 20 unless configured, at most 100", "internal/authn/credential.go", "MaxFailures = 100"},
		{"failures in a row of a credential: 20 unless configured, at most 100", "internal/authn/access.go", "cmp.Or(a.Failures, 20)"},
		{"attributes of a caller; name; value: 32; 64 bytes; 512 bytes", "internal/authn/credential.go", "MaxAttributes = 32;maxAttributeName = 64;maxAttribute = 512"},
		{"password hashes at a time; waiting: 4; 256", "internal/authn/hash.go", "maxHashing = 4;maxWaiting = 256"},
		{"token of an issuer; its key set: 16 KiB; 1 MiB with 256 keys", "internal/oidc/token.go", "MaxToken = 16 << 10"},
		{"token of an issuer; its key set: 16 KiB; 1 MiB with 256 keys", "internal/oidc/keys.go", "maxSet = 1 << 20;maxKeys = 256"},
		{"keys of an issuer that cannot be reached: 24 hours", "internal/oidc/issuer.go", "maxStale = 24 * time.Hour"},
		{"grant: at most; number; parts of associated data: 90 days; 10,000; 16", "internal/authn/grant.go", "MaxGrantLife = 90 * 24 * time.Hour;maxGrants = 10_000;maxGrantContext = 16"},
		{"certificate of an administrator: 365 days", "internal/authn/authority.go", "adminLife = 365 * 24 * time.Hour"},
		{"life: 5 minutes unless asked for, at most 24 hours", "internal/issuer/issuer.go", "DefaultTTL = 5 * time.Minute;MaxTTL = 24 * time.Hour"},
		{"audience: 256 bytes", "internal/issuer/issuer.go", "maxAudience = 256"},
		{"scopes: 32, of 128 bytes each", "internal/issuer/issuer.go", "maxScopes = 32;maxScope = 128"},
		{"token that is verified; key set: 8 KiB; 1 MiB with 1,024 keys", "internal/token/token.go", "maxToken = 8 << 10;maxSet = 1 << 20;maxKeys = 1024"},
		{"record of a key, with all its versions, before a rotation: 512 KiB", "internal/kms/rotate.go", "const maxRecord = 512 << 10"},
		{"one commit of the store: 1 MiB", "internal/store/store.go", "MaxBytes = 1 << 20"},
		{"entry of the audit log: 65,535 bytes", "internal/audit/entry.go", "const MaxEntry = 1<<16 - 1"},
		{"URL: 1,024 bytes", "internal/campaign/campaign.go", "const maxURL = 1024"},
		{"shards; name of one: 4,096; 256 bytes", "internal/campaign/adapter.go", "maxShards = 4096;maxName = 256"},
		{"name of a record; cursor: 1,024 bytes; 4,096 bytes", "internal/campaign/adapter.go", "maxID = 1024;maxCursor = 4096"},
		{"page of a scan; other answers: 16 MiB; 1 MiB", "internal/campaign/adapter.go", "maxPage = 16 << 20;maxAnswer = 1 << 20"},
		{"old and new values in one swap: 4 MiB", "internal/campaign/adapter.go", "maxSwap = 4 << 20"},
		{"file: 1 MiB", "internal/policy/rules.go", "maxFile = 1 << 20"},
		{"rules; labels of a selector: 1,000; 100", "internal/policy/rules.go", "maxRules = 1000;maxFields = 100"},
	} {
		if !strings.Contains(page, "| "+strings.Replace(l.row, ": ", " | ", 1)+" |\n") && !rows[l.row] {
			t.Errorf("limits.md has no row %q", l.row)
		}
		rows[l.row] = false
		code := words(read(t, filepath.Join(root, l.file)))
		for _, line := range strings.Split(l.code, ";") {
			if !regexp.MustCompile(`\b` + regexp.QuoteMeta(line) + `( [^*<+_0-9-]|$)`).MatchString(code) {
				t.Errorf("%s does not say %q: %q may be wrong", l.file, line, l.row)
			}
		}
	}
	for row, unchecked := range rows {
		if unchecked {
			t.Errorf("nobody checks %q", row)
		}
	}
}
