package docs_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
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
	if err != nil || len(all) != 3 {
		t.Fatalf("%d blocks: %v", len(all), err)
	}
	denying, err := policy.Parse("rules.md", []byte("version: 1\n"+all[1].code))
	if err != nil {
		t.Fatal(err)
	}
	for ns, want := range map[string]bool{"prod": true, "test": false} {
		if _, got := denying.Denies(policy.Caller{Name: "admin/a"}, policy.ActDestroy, policy.Resource{Namespace: ns, Key: "k"}); got != want {
			t.Errorf("%s: denied %v", ns, got)
		}
	}
	if _, err := policy.Parse("rules.md", []byte("version: 1\n"+all[2].code)); err != nil {
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
	limits := []struct{ row, file, code string }{
		{"name of a key, namespace, instance or data set: 64 bytes: lower-case letters, digits, and inside `.`, `_`, `-`", "internal/keyring/validate.go", "MaxName = 64"},
		{"key `MOUNT/NAME`; its HMAC keys: 192 bytes; 32 to 512 bytes", "internal/keyring/transit.go", "MaxKeyName = 192;MinKeyBytes = 32;MaxKeyBytes = 512"},
		{"items of one request of Vault's clients: 100,000", "internal/kms/transit_use.go", "MaxBatch = 100_000"},
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
		{"bodies of requests at a time of one caller, together; of all callers, what is beyond the first MiB of each: 64 MiB; 128 MiB", "internal/wire/callers.go", "maxBodies = 64 << 20;maxLarge = 128 << 20;smallBody = 1 << 20"},
		{"streams at a time of one caller: 16", "internal/wire/callers.go", "maxOpen = 16"},
		{"connections of the server: 20,000", "internal/wire/callers.go", "maxConnections = 20_000"},
		{"request at `/v1/`; elements of one of its arrays or objects, for example a batch; of all of them; their depth: 32 MiB; 10,000; 500,000; 32", "internal/wire/vault/vault.go", "MaxBody = 32 << 20"},
		{"request at `/v1/`; elements of one of its arrays or objects, for example a batch; of all of them; their depth: 32 MiB; 10,000; 500,000; 32", "internal/wire/vault/body.go", "maxElements = 10_000;maxAll = 500_000;maxDepth = 32"},
		{"token in a header at `/v1/`: 4 KiB", "internal/wire/vault/vault.go", "maxToken = 4096"},
		{"members and elements of one request: 20,000", "internal/wire/native/bounded.go", "maxElements = 20_000"},
		{"message that a process encrypts with a fleet key: 32 GiB, and what fits into memory", "envelope/message.go", "maxPlaintext = 1 << 35"},
		{"message that `rotor encrypt` reads from standard input: 4 MiB, and at the server 1 MiB", "internal/cli/encrypt.go", "maxText = 4 << 20"},
		{"front of a file: content type and encryption context: 16 KiB, 64 entries", "envelope/header.go", "maxImmutable = 16 << 10;maxContext = 64"},
		{"wraps of a file: 64, together 12 KiB", "envelope/header.go", "maxWraps = 64;slotSize = 12 << 10"},
		{"statement of how far the log was; between two that an instance keeps on disk: 4 KiB; 1 minute", "internal/identity/statement.go", "MaxStatement = 4 << 10"},
		{"statement of how far the log was; between two that an instance keeps on disk: 4 KiB; 1 minute", "witness.go", "keepEvery = time.Minute"},
		{"audit log that is sent for a recovery; certificate of a destruction: 4 GiB; 1 MiB", "internal/wire/native/recovery.go", "maxLog = 4 << 30"},
		{"audit log that is sent for a recovery; certificate of a destruction: 4 GiB; 1 MiB", "internal/audit/certificate.go", "MaxCertificate = 1 << 20"},
		{"keys that an instance holds: 256", "internal/fleet/session.go", "MaxKeys = 256"},
		{"instances that join, hold keys or leave in one commit; that one entry says were delivered to: 30; 600", "internal/fleet/publish.go", "releaseBatch = 30;releaseTexts = 20"},
		{"instances that join, hold keys or leave in one commit; that one entry says were delivered to: 30; 600", "internal/fleet/group.go", "maxGroup = releaseBatch"},
		{"versions in one delivery; its signed part: 1,024; 1 MiB", "internal/delivery/delivery.go", "MaxMaterials = 1024;MaxBody = 1 << 20"},
		{"life of a join token: 10 minutes", "internal/identity/token.go", "MaxTTL = 10 * time.Minute"},
		{"join tokens that are remembered: 100,000", "internal/authn/join.go", "maxTokens = 100_000"},
		{"certificate of an instance: 7 days, and 30 days more to renew it", "internal/authn/authority.go", "InstanceLife = 7 * 24 * time.Hour;RenewGrace = 30 * 24 * time.Hour"},
		{"logins from one address in a second; at once: 20; 100, unless configured", "internal/wire/limits.go", "loginRate = 20;loginBurst = 100"},
		{"mounts of a namespace; path of one; all of them together: 256; 96 bytes in 8 segments; 512 KiB", "internal/mounts/mounts.go", "MaxMounts = 256;MaxPath = 96;maxSegments = 8;maxRecord = 512 << 10"},
		{"description of a mount, or one of its lists; elements of one: 4 KiB; 64", "internal/mounts/mounts.go", "maxText = 4 << 10;maxElements = 64"},
		{"life of what a mount gives, that it can be tuned to: 10 years", "internal/mounts/mounts.go", "maxLease = 10 * 366 * 24 * time.Hour"},
		{"unknown members that an answer names; of each: 16; 64 bytes", "internal/wire/vault/request.go", "maxStrange = 16;maxStrangeName = 64"},
		{"random bytes in one answer: 128 KiB", "internal/wire/vault/tools.go", "maxRandom = 128 << 10"},
		{"path of the local socket; request there: 107 bytes; 64 KiB", "internal/server/local.go", "maxSocketPath = 107;maxLocal = 64 << 10"},
		{"namespaces; names that they have and had: 1,000; 10,000", "internal/mounts/namespaces.go", "MaxNamespaces = 1000;MaxNamespaceNames = 10_000"},
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
		{"record of a key, without the pages of its older versions, before a rotation: 512 KiB", "internal/kms/rotate.go", "maxRecord = 512 << 10"},
		{"versions of a key; of one that instances can hold: 100,000; 1,024", "internal/kms/rotate.go", "maxVersions = 100_000"},
		{"versions of a key; of one that instances can hold: 100,000; 1,024", "internal/keyring/snapshot.go", "const MaxHeld = 1024"},
		{"one commit of the store: 1 MiB", "internal/store/store.go", "MaxBytes = 1 << 20"},
		{"commits of PostgreSQL that are kept for servers that are behind: 1,073,741,824", "internal/store/postgres/url.go", "maxHistory = 1 << 30"},
		{"password of a PostgreSQL, in its file: 4 KiB", "internal/store/postgres/url.go", "maxPassword = 4 << 10"},
		{"entry of the audit log: 65,535 bytes", "internal/audit/entry.go", "const MaxEntry = 1<<16 - 1"},
		{"URL: 1,024 bytes", "internal/campaign/campaign.go", "const maxURL = 1024"},
		{"shards; name of one: 4,096; 256 bytes", "internal/campaign/adapter.go", "maxShards = 4096;maxName = 256"},
		{"name of a record; cursor: 1,024 bytes; 4,096 bytes", "internal/campaign/adapter.go", "maxID = 1024;maxCursor = 4096"},
		{"page of a scan; other answers; members and elements of one: 16 MiB; 1 MiB; 200,000", "internal/campaign/adapter.go", "maxPage = 16 << 20;maxAnswer = 1 << 20;maxElements = 200_000"},
		{"old and new values in one swap: 4 MiB", "internal/campaign/adapter.go", "maxSwap = 4 << 20"},
		{"certificate request; session token in a header: 16 KiB; 256 bytes", "internal/authn/authority.go", "maxCSR = 16 << 10"},
		{"certificate request; session token in a header: 16 KiB; 256 bytes", "internal/wire/front.go", "maxBearer = 256"},
		{"callers, namespaces and addresses whose rates are counted apart: 20,000 of each", "internal/wire/limits.go", "maxBuckets = 20_000"},
		{"servers in one list of addresses: 16", "internal/identity/failover.go", "maxAddresses = 16"},
		{"profile of the process: 25 s", "internal/server/observe.go", "maxProfile = 25 * time.Second"},
		{"keys that have metrics of their own: 1,000 unless configured, at most 100,000", "internal/server/config.go", "maxMetricKeys = 100_000"},
		{"keys that have metrics of their own: 1,000 unless configured, at most 100,000", "internal/telemetry/telemetry.go", "DefaultMaxKeys = 1000"},
		{"each time of a drain: 10 minutes", "internal/server/profile.go", "maxDrain = 10 * time.Minute"},
		{"handles that a process remembers as unknown: 1,024", "held.go", "maxUnknown = 1024"},
		{
			"time between two rotations of a schedule; part of it by which one is due earlier; windows; name of a time zone: 1 s to 100 years; 50 %; 16; 64 bytes", "internal/keyring/schedule.go",
			"MinEvery = time.Second;MaxEvery = 100 * 365 * 24 * time.Hour;MaxJitter = 50;MaxWindows = 16;MaxZoneName = 64",
		},
		{"uses of a version of AES-GCM or ChaCha20-Poly1305; taken in one piece: 2,147,483,648; 65,536", "internal/suite/table.go", "randomNonceUses = 1 << 31"},
		{"uses of a version of AES-GCM or ChaCha20-Poly1305; taken in one piece: 2,147,483,648; 65,536", "internal/kms/volume.go", "DefaultBlock = 1 << 16"},
		{"approvals of a destruction; least wait that a server can ask for: 16; a year", "internal/keyring/validate.go", "MaxApprovals = 16"},
		{"approvals of a destruction; least wait that a server can ask for: 16; a year", "internal/server/limits.go", "maxDestroyWait = 365 * 24 * time.Hour"},
		{"wrapping keys at a time in a namespace; of one caller; life of one: 100; 20; 24 hours", "internal/kms/import.go", "maxImports = 100;maxOfOne = 20;ImportTTL = 24 * time.Hour"},
		{"sealed key that comes in: 64 KiB", "internal/kms/import.go", "maxBlob = 64 << 10"},
		{"backup of a key in the form of Vault; versions in it; objects; elements: 64 KiB less than 32 MiB (about 40,000 versions of AES-256-GCM); 100,000; 250,000; 1,500,000", "internal/transit/backup.go", "MaxBackup = 32<<20 - 64<<10;MaxBackupVersions = 100_000;maxObjects = 250_000;maxElements = 1_500_000"},
		{"elements of a list or map that comes as one text; paths that capabilities are asked of: 10,000; 1,000", "internal/lenient/lenient.go", "maxList = 10_000"},
		{"elements of a list or map that comes as one text; paths that capabilities are asked of: 10,000; 1,000", "internal/wire/vault/capabilities.go", "maxPaths = 1000"},
		{"wrapped key, public key or request for a certificate of a client of Vault; chain of certificates; certificates in it: 64 KiB; 256 KiB; 16", "internal/transit/imports.go", "maxText = 64 << 10"},
		{"wrapped key, public key or request for a certificate of a client of Vault; chain of certificates; certificates in it: 64 KiB; 256 KiB; 16", "internal/transit/certificates.go", "maxChainText = 256 << 10;maxChain = 16"},
		{"versions of a key in one answer, the newest; of a list of keys: 500; as many as take 2 MiB, then `more`", "internal/wire/native/convert.go", "shownVersions = 500"},
		{"versions of a key in one answer, the newest; of a list of keys: 500; as many as take 2 MiB, then `more`", "internal/wire/native/keys.go", "maxListed = 2 << 20"},
		{"backup of one key; record in it; material of a version in it; number of a version: 32 MiB (about 70,000 versions of AES-256-GCM); 24 MiB; 64 KiB; 2,147,483,648", "internal/keybackup/keybackup.go", "MaxBytes = 32 << 20;maxRecord = 24 << 20;maxMaterial = 64 << 10;maxNumber = 1 << 31"},
		{"numbers that a recovery without the log leaves out: 100", "internal/kms/recover.go", "unknownVersions = 100"},
		{"conditions and writes of one commit; name of a record: 100; 512 bytes", "internal/store/store.go", "MaxItems = 100;MaxKeyBytes = 512"},
		{"generations of the root key; that a server which slept can be behind and go on without a start: 65,536; 256", "internal/guard/hierarchy.go", "maxGeneration = 1 << 16"},
		{"generations of the root key; that a server which slept can be behind and go on without a start: 65,536; 256", "internal/guard/roots.go", "keptLogs = 256"},
		{"writes of one record of the store: 281,474,976,710,655", "internal/guard/hierarchy.go", "counterBits = 48;maxCounter = 1<<counterBits - 1"},
		{"refusals told apart in a minute; of one caller: 10,000; 1,000", "internal/guard/refusals.go", "maxRefusals = 10_000;maxOfCaller = 1000"},
		{"text of a caller's in an entry; name of a caller: 256 bytes; 2,048 bytes", "internal/guard/permit.go", "maxText = 256;maxCaller = 2048"},
		{"custodians' shares; needed at least: 255; 2", "internal/seal/shamir/share.go", "MinThreshold = 2;MaxShares = 255"},
		{"parts of a composition: 8", "internal/seal/every/every.go", "maxParts = 8"},
		{"wrong shares in a minute from one address; addresses told apart; an unfinished collection is forgotten after: 20; 10,000; 15 minutes", "internal/sealing/keeper.go", "AttemptLife = 15 * time.Minute;maxWrong = 20;maxSources = 10_000"},
		{"a backup is kept: 1 minute to 10 years", "internal/guard/backups.go", "MinKeep = time.Minute;MaxKeep = 10 * 365 * 24 * time.Hour"},
		{"header of a backup of the store: 1 MiB", "internal/backup/backup.go", "maxHeader = 1 << 20"},
		{"part of a file: 4 PiB", "envelope/payload.go", "chunkSize = 16 << 10;maxChunks = int64(1) << 38"},
		{"message to a public key, made by a process: 1 GiB", "envelope/public.go", "maxSealed = 1 << 30"},
		{"subject of an issuer's token; claim that becomes an attribute: 512 bytes each", "internal/oidc/token.go", "maxSubject = 512;maxText = 512"},
		{"skew of the clocks of an issuer: 2 minutes", "internal/oidc/issuer.go", "maxSkew = 2 * time.Minute"},
		{"authorities of client certificates in one file; certificates in a chain; identity: 64 in 16 MiB; 8; 512 bytes", "internal/authn/certificate.go", "maxPEM = 16 << 20;maxAnchors = 64;maxSubject = 512;maxChain = 8"},
		{"configuration file: 1 MiB", "internal/server/file.go", "maxFile = 1 << 20"},
		{"endpoints of etcd in one URL; prefix: 16; 128 bytes", "internal/store/etcd/config.go", "maxEndpoints = 16;maxPrefixBytes = 128"},
		{"label of a token; PIN: 32 bytes; 255 bytes", "internal/hsm/hsm.go", "maxLabel = 32"},
		{"label of a token; PIN: 32 bytes; 255 bytes", "internal/hsm/token.go", "maxPIN = 255"},
		{"file with a key or secret that a command reads: 64 KiB", "internal/cli/input.go", "maxSecret = 64 << 10"},
		{"ciphertexts of one shard that are opened before a destruction: 4,294,967,296", "internal/campaign/inspect.go", "maxInspected = 1 << 32"},
		{"delay of a recovery; audit log that is sent for one: 1 hour to 30 days; 4 GiB", "internal/server/profile.go", "minRecoverWait = time.Hour;maxRecoverWait = 30 * 24 * time.Hour"},
		{"delay of a recovery; audit log that is sent for one: 1 hour to 30 days; 4 GiB", "internal/wire/native/recovery.go", "maxLog = 4 << 30"},
		{"file: 1 MiB", "internal/policy/rules.go", "maxFile = 1 << 20"},
		{"policy about paths; its paths; one of them; brackets in brackets: 128 KiB; 1,000; 512 bytes; 8", "internal/policy/hcl.go", "MaxPolicy = 128 << 10;maxStanzas = 1000;maxPath = 512;maxDepth = 8"},
		{"tokens; wrapped answers; secret IDs, each at a time: 100,000; 10,000; 100,000", "internal/acl/token.go", "maxTokens = 100_000;maxWraps = 10_000"},
		{"tokens; wrapped answers; secret IDs, each at a time: 100,000; 10,000; 100,000", "internal/acl/approle.go", "maxSecrets = 100_000"},
		{"time after which the record of what is over is deleted: 10 to 20 s", "internal/acl/room.go", "sweepEvery = 10 * time.Second"},
		{"part of the tokens and of the wrapped answers that one caller with all that it has made, one mount and one namespace have while others have none, and less the more others have: 2/5; 1/2; 2/3", "internal/acl/room.go", "groupParts = 2"},
		{"the same of the secret IDs, for one role and one mount: 1/2; 2/3", "internal/acl/room.go", "groupParts = 2"},
		{"tokens below one another: 32", "internal/acl/token.go", "maxChain = 32"},
		{"batch token: 4,000 bytes", "internal/acl/batch.go", "maxBatchText = 4000"},
		{"policies of one; networks; display name: 64; 64; 256 bytes", "internal/acl/token.go", "maxPolicies = 64;maxCIDRs = 64;maxDisplay = 256"},
		{"metadata: 64 elements, 4 KiB together", "internal/acl/token.go", "maxMeta = 64;maxMetaText = 4 << 10"},
		{"makers that a token comes from; their names and metadata: 32; 8 KiB", "internal/acl/token.go", "maxMakers = 32;maxMakerText = 8 << 10"},
		{"policies of a namespace: 1,000", "internal/acl/policies.go", "maxStored = 1000"},
		{"roles, users, certificates and configurations; one of them: 20,000; 64 KiB", "internal/acl/entries.go", "maxEntries = 20_000;maxSpec = 64 << 10"},
		{"role ID; secret ID of a client's choice: 4,096 bytes; 8 to 4,096 bytes", "internal/acl/approle.go", "minSecretID = 8;maxSecretID = 4096;maxRoleID = 4096"},
		{"password; wrong ones in a row: 8 characters to 512 bytes; 5, then none is taken for 15 minutes", "internal/acl/userpass.go", "minPassword = 8;maxPassword = 512;maxFailures = 5;lockFor = 15 * time.Minute"},
		{"certificates of an entry; public keys of an issuer; skew of its clocks: 16; 64; 10 minutes", "internal/acl/cert.go", "maxTrusted = 16"},
		{"certificates of an entry; public keys of an issuer; skew of its clocks: 16; 64; 10 minutes", "internal/oidc/claims.go", "MaxPEM = 64"},
		{"certificates of an entry; public keys of an issuer; skew of its clocks: 16; 64; 10 minutes", "internal/acl/jwt.go", "maxSkew = 10 * time.Minute"},
		{"answer that is wrapped; life of it: 256 KiB; 32 days", "internal/acl/wrapping.go", "maxWrapped = 256 << 10;MaxWrapTTL = 32 * 24 * time.Hour"},
		{"time in a policy or of a token: 100 years", "internal/lenient/lenient.go", "MaxTime = 100 * 365 * 24 * time.Hour"},
		{"rules; labels of a selector: 1,000; 100", "internal/policy/rules.go", "maxRules = 1000;maxFields = 100"},
	}
	told := map[string]bool{}
	for _, l := range limits {
		if !strings.Contains(page, "| "+strings.Replace(l.row, ": ", " | ", 1)+" |\n") && !rows[l.row] {
			t.Errorf("limits.md has no row %q", l.row)
		}
		rows[l.row] = false
		code := words(read(t, filepath.Join(root, l.file)))
		for _, line := range strings.Split(l.code, ";") {
			name, _, _ := strings.Cut(line, " = ")
			told[l.file+" "+strings.TrimPrefix(name, "const ")] = true
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
	bounds := constants(t)
	for _, c := range inner {
		if told[c] || !slices.Contains(bounds, c) {
			t.Errorf("%s is told, or is not there: take it out of the list of inner bounds", c)
		}
	}
	for _, c := range bounds {
		if !told[c] && !slices.Contains(inner, c) {
			t.Errorf("%s is a bound that limits.md does not tell: add a row, or put it among the inner bounds", c)
		}
	}
}

// constants are the constants of the code that are named as bounds: max…, Max…, each as "file name".
func constants(t *testing.T) (all []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(root, path)
		switch {
		case err != nil:
			return err
		case d.IsDir() && rel != "." && rel != "envelope" && !strings.HasPrefix(rel+"/", "internal/"):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(rel, ".go") || strings.HasSuffix(rel, "_test.go"):
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			d, ok := n.(*ast.GenDecl)
			if !ok || d.Tok != token.CONST {
				return true
			}
			for _, s := range d.Specs {
				for _, name := range s.(*ast.ValueSpec).Names {
					if bound.MatchString(name.Name) {
						all = append(all, filepath.ToSlash(rel)+" "+name.Name)
					}
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

var bound = regexp.MustCompile(`^[mM]ax[A-Z0-9]`)

// inner are bounds that no user meets: of what rotor's own parts say to each other, of memory, and of what another bound holds already.
var inner = []string{
	"internal/policy/values.go maxParts",
	"internal/transit/entry.go maxDigits", "internal/movein/server.go maxReply", "internal/movein/plan.go maxKeys", "internal/cli/importvault.go maxVaultToken", "internal/cli/importvault.go maxAuthority",
	"internal/kms/rotate.go maxAttempts", "internal/wire/native/members.go maxAttempts", "stream.go maxAttempts",
	"internal/wire/native/recovery.go maxPath",
	"envelope/header.go maxBlob", "envelope/header.go maxTime",
	"envelope/message.go maxScratch",
	"internal/authn/grant.go maxGrantee",
	"internal/authn/hash.go maxMemory", "internal/authn/hash.go maxPasses", "internal/authn/hash.go maxThreads",
	"internal/authn/session.go maxSlotsSearched",
	"internal/campaign/move.go maxPasses", "internal/campaign/move.go maxWarnings",
	"internal/cli/audit.go maxCheckpoint",
	"internal/cli/campaign.go maxETA",
	"internal/cli/connect.go maxAnswer",
	"internal/cli/login.go maxSession",
	"internal/cli/status.go maxNames",
	"internal/cli/token.go maxJWKS",
	"internal/delivery/sign.go maxBatch", "internal/delivery/sign.go maxPath",
	"internal/fleet/group.go maxItems",
	"internal/fleet/members.go maxConflicts",
	"internal/fleet/session.go maxRefused",
	"internal/acl/signers.go maxSigners", "internal/oidc/claims.go maxValues",
	"internal/acl/room.go maxFreeSearches",
	"internal/policy/values.go maxNumber",
	"internal/guard/witness.go maxDetections",
	"internal/hsm/module.go maxCalls",
	"internal/identity/dir.go maxBundle",
	"internal/identity/failover.go maxWhole",
	"internal/identity/token.go maxJoinToken",
	"internal/keyring/record.go maxPage", "internal/keybackup/keybackup.go maxFacts", "internal/keybackup/keybackup.go maxWrapped", "internal/wire/native/native.go maxKeyBackup", "client.go maxAnswer", "internal/kms/transit_use.go maxMissed",
	"internal/kms/import.go maxID",
	"internal/kms/use.go maxOverhead",
	"internal/oidc/issuer.go maxDocument", "internal/oidc/issuer.go maxBearer",
	"internal/oidc/keys.go maxRSA",
	"internal/oidc/token.go maxPath",
	"internal/replica/replica.go maxTTL",
	"internal/rollout/rollout.go maxConflicts",
	"internal/seal/local/local.go maxFile",
	"internal/seal/pkcs11/sealer.go maxBlob",
	"internal/seal/transit/transit.go maxAnswer", "internal/seal/transit/transit.go maxBlob",
	"internal/server/anchor.go maxAnchor",
	"internal/server/replicas.go maxInvitedBytes", "internal/server/replicas.go maxInvited",
	"internal/store/bolt/bolt.go maxBatch",
	"internal/store/bolt/verify.go maxDepth",
	"internal/store/etcd/config.go maxHistory",
	"internal/store/postgres/write.go maxBatch", "internal/store/postgres/write.go maxBatchBytes",
	"internal/suite/keywrap.go maxWrapped",
	"internal/telemetry/store.go maxWaiting",
	"internal/wire/native/members.go maxNames",

	"join.go maxGrant",
	"session.go maxProof",
	"tokens.go maxJWKS", "tokens.go maxOldSet",
}
