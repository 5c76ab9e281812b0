package vault

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/transit"
)

// releaseRoutes are those by which keys go out, and come back.
func releaseRoutes(c Config) []route {
	version := field{"version", "string", "Number of a version, or latest; left out: all.", false}
	return []route{
		{
			pattern: "export/:type/:name(/:version)", doc: "Releases versions in clear.", ops: map[operation]handler{opRead: c.export}, needs: every(exporting()),
			fields:  []field{{"type", "string", "encryption-key, signing-key, hmac-key, public-key or certificate-chain.", true}, fieldName, version},
			differs: "It is a release: a right of its own (key.export), and in the audit log before the answer leaves.",
		},
		{
			pattern: "byok-export/:destination/:source(/:version)", doc: "Releases versions wrapped to a key.", ops: map[operation]handler{opRead: c.byok}, needs: every(keyCalled("source", policy.ActExport)),
			fields: []field{
				{"destination", "string", "RSA key that they are wrapped with.", true}, {"source", "string", "Key that is released.", true}, version,
				{"hash", "string", "Of RSAES-OAEP; default SHA256.", false},
			},
			differs: "It is a release, as export is.",
		},
		{
			pattern: "backup/:name", doc: "Releases a key with all versions and settings, in clear.", ops: map[operation]handler{opRead: c.backup}, needs: every(key(policy.ActKeyBackup)), fields: []field{fieldName},
			differs: "It is a release (key.backup and key.export). Another Vault can restore it, and rotor what a Vault has backed up.",
		},
		{
			pattern: "restore(/:name)", doc: "Makes a key of a backup.", ops: map[operation]handler{opUpdate: c.restore}, needs: every(restoring()),
			fields: []field{
				{"backup", "string", "What backup gave.", true}, {"name", "string", "Another name.", false},
				{"force", "bool", "A key that has the name is deleted first, if it may be.", false},
			},
			differs: "It overwrites no key, and uses no handle again: with force the key that is there is deleted as DELETE does, and can be brought back. Versions of a backup decrypt; only the latest protects, and key_version of another one is refused as below min_encryption_version is: what took its place elsewhere nobody knows here.",
		},
	}
}

// chosen reads which versions are released.
func (r *request) chosen() (uint32, error) {
	text := strings.TrimPrefix(r.vars["version"], "v")
	switch text {
	case "":
		return kms.AllVersions, nil
	case "latest":
		return kms.LatestVersion, nil
	}
	n, err := strconv.ParseUint(text, 10, 31)
	if err != nil || n == 0 {
		return 0, bad("invalid key version")
	}
	return uint32(n), nil
}

var exports = []transit.Export{transit.ExportEncryption, transit.ExportSigning, transit.ExportHMAC, transit.ExportPublic, transit.ExportChain}

func (c Config) export(ctx context.Context, r *request) (*response, error) {
	which, err := r.chosen()
	if err != nil {
		return nil, err
	}
	what := transit.Export(r.vars["type"])
	if !slices.Contains(exports, what) {
		return nil, bad("invalid export type: %s", what)
	}
	released, err := c.KMS.TransitExport(ctx, r.caller, r.named(), what, which)
	if fault.CodeOf(err) == fault.NotFound {
		return nil, missing()
	}
	if err != nil {
		return nil, err
	}
	keys := make(map[string]string, len(released))
	for n, b := range released {
		keys[strconv.FormatUint(uint64(n), 10)] = string(b.Reveal())
		b.Destroy()
	}
	return c.about(r, r.vars["name"], "keys", keys), nil
}

func (c Config) byok(ctx context.Context, r *request) (*response, error) {
	which, err := r.chosen()
	if err != nil {
		return nil, err
	}
	h, err := transit.ParseWrapHash(r.str("hash"))
	if err != nil {
		return nil, err
	}
	source, destination := r.key(r.vars["source"]), r.key(r.vars["destination"])
	keys, err := c.KMS.TransitBYOK(ctx, r.caller, source, destination, which, h)
	if fault.CodeOf(err) == fault.NotFound {
		if _, ok := c.KMS.Lookup(source.Namespace, source.Name); ok { // the caller has been let in for it
			return nil, noSuch("no such destination key to export to", err)
		}
		return nil, noSuch("no such source key for export", err)
	}
	if err != nil {
		return nil, err
	}
	out := make(map[string]string, len(keys))
	for n, text := range keys {
		out[strconv.FormatUint(uint64(n), 10)] = text
	}
	return c.about(r, r.vars["source"], "keys", out), nil
}

func (c Config) backup(ctx context.Context, r *request) (*response, error) {
	text, err := c.KMS.TransitBackup(stays(ctx), r.caller, r.named())
	if fault.CodeOf(err) == fault.NotFound {
		return nil, noSuch(fmt.Sprintf("key %q not found", r.vars["name"]), err)
	}
	if err != nil {
		return nil, err
	}
	defer text.Destroy()
	return &response{data: map[string]any{"backup": string(text.Reveal())}}, nil
}

func (c Config) restore(ctx context.Context, r *request) (*response, error) {
	text := r.str("backup")
	if text == "" {
		return nil, bad("'backup' must be supplied")
	}
	name := r.str("name")
	if strings.Contains(name, "/") {
		return nil, bad("key names cannot be paths")
	}
	force, err := r.is("force", false)
	if err != nil {
		return nil, err
	}
	_, err = c.KMS.TransitRestore(stays(ctx), r.caller, kms.TransitRestoring{
		Namespace: r.namespace, Mount: r.mount, Name: name, Backup: secret.Copy([]byte(text)), Force: force,
	})
	return nil, err
}
