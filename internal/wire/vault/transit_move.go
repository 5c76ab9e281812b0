package vault

import (
	"context"
	"fmt"

	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/transit"
)

// moveRoutes are those by which keys come in and go out.
func moveRoutes(c Config) []route {
	imported := []field{
		fieldName,
		{"ciphertext", "base64", "An AES-256 key under RSAES-OAEP with the wrapping key, and the key under AES-KWP (RFC 5649) with it.", false},
		{"public_key", "string", "Public half in PEM, of a key of which no more is known; if there is no ciphertext.", false},
		{"hash_function", "string", "Of RSAES-OAEP: SHA1, SHA224, SHA256 (default), SHA384, SHA512.", false},
	}
	return []route{
		{pattern: "wrapping_key", doc: "Shows the public key that imports are wrapped with.", ops: map[operation]handler{opRead: c.wrappingKey}, needs: every(mount(policy.ActImport))},
		{
			pattern: "keys/:name/import", doc: "Makes a key whose first version comes from outside.", ops: map[operation]handler{opUpdate: c.importKey}, needs: every(key(policy.ActImport)),
			fields: append(imported[:len(imported):len(imported)], field{"type", "string", "As when it is created.", false}, field{"allow_rotation", "bool", "Later versions may be made here.", false},
				field{"derived", "bool", "Each context has a key of its own.", false}, fieldExportable, fieldBackup, fieldPeriod, fieldJitter, fieldMaxUses, fieldWindows, fieldMargin),
		},
		{
			pattern: "keys/:name/import_version", doc: "Brings the next version of an imported key, or the private half of one.", ops: map[operation]handler{opUpdate: c.importVersion}, needs: every(key(policy.ActImport)),
			fields: append(imported[:len(imported):len(imported)], field{"version", "int", "Version whose private half comes.", false}),
		},
		{
			pattern: "keys/:name/csr", doc: "Makes a request for a certificate (PKCS #10).", ops: map[operation]handler{opUpdate: c.csr}, needs: every(key(policy.ActSign)),
			fields: []field{fieldName, {"version", "int", "Left out: the latest.", false}, {"csr", "string", "Template in PEM.", false}},
		},
		{
			pattern: "keys/:name/set-certificate", doc: "Keeps a chain of certificates with a version.", ops: map[operation]handler{opUpdate: c.setCertificate}, needs: every(key(policy.ActConfigure)),
			fields: []field{fieldName, {"version", "int", "Left out: the latest.", false}, {"certificate_chain", "string", "PEM, its own certificate first.", true}},
		},
	}
}

func (c Config) wrappingKey(ctx context.Context, r *request) (*response, error) {
	public, err := c.KMS.TransitWrappingKey(stays(ctx), r.caller, r.namespace, r.mount)
	if err != nil {
		return nil, err
	}
	text, err := transit.PublicText(transit.WrappingAlgorithm, public)
	return &response{data: map[string]any{"public_key": text}}, err
}

// imported is the key that a request brings.
func (r *request) imported() (in kms.TransitImported, err error) {
	in.Ciphertext = r.str("ciphertext")
	in.PublicKey = []byte(r.str("public_key"))
	if in.Ciphertext == "" && len(in.PublicKey) == 0 {
		return in, bad("one of the following fields, ciphertext and public_key, must be set")
	}
	in.Hash, err = transit.ParseWrapHash(r.str("hash_function"))
	return in, err
}

func (c Config) importKey(ctx context.Context, r *request) (*response, error) {
	if r.has("convergent_encryption") {
		return nil, bad("import cannot be used on keys with convergent encryption enabled")
	}
	spec, err := r.settings()
	if err != nil {
		return nil, err
	}
	if spec.Transit.RotationAllowed, err = r.is("allow_rotation", false); err != nil {
		return nil, err
	}
	in, err := r.imported()
	if err != nil {
		return nil, err
	}
	_, err = c.KMS.TransitImport(stays(ctx), r.caller, spec, in)
	return nil, underived(spec, err)
}

func (c Config) importVersion(ctx context.Context, r *request) (*response, error) {
	in, err := r.imported()
	if err != nil {
		return nil, err
	}
	n, err := r.versionOr0("version")
	if err != nil {
		return nil, err
	}
	_, err = c.KMS.TransitImportVersion(stays(ctx), r.caller, r.named(), in, n)
	return nil, noSuch(fmt.Sprintf("no key found with name %s; to import a new key, use the import/ endpoint", r.vars["name"]), err)
}

// versionOr0 is a member that is the number of a version; 0 when it is not there.
func (r *request) versionOr0(name string) (uint32, error) {
	n, err := r.version(name, "key")
	if err != nil || n == nil {
		return 0, err
	}
	return *n, nil
}

// noNamed is a key that is not there, as the paths of certificates have it.
func (r *request) noNamed(err error) error {
	return noSuch(fmt.Sprintf("key with provided name '%s' not found", r.vars["name"]), err)
}

func (c Config) csr(ctx context.Context, r *request) (*response, error) {
	n, err := r.versionOr0("version")
	if err != nil {
		return nil, err
	}
	text, err := c.KMS.TransitCSR(ctx, r.caller, r.named(), n, r.str("csr"))
	if err != nil {
		return nil, r.noNamed(err)
	}
	return c.about(r, r.vars["name"], "csr", text), nil
}

// about is an answer about a key of the mount.
func (c Config) about(r *request, name, what string, value any) *response {
	data := map[string]any{"name": name, what: value}
	if k, ok := c.KMS.Lookup(r.namespace, r.key(name).Name); ok && k.Transit != nil {
		data["type"] = typeOf(k.Algorithm, k.Transit.Spelling)
	}
	return &response{data: data}
}

func (c Config) setCertificate(ctx context.Context, r *request) (*response, error) {
	n, err := r.versionOr0("version")
	if err != nil {
		return nil, err
	}
	chain := r.str("certificate_chain")
	if _, err := c.KMS.TransitSetCertificate(stays(ctx), r.caller, r.named(), n, chain); err != nil {
		return nil, r.noNamed(err)
	}
	return c.about(r, r.vars["name"], "certificate-chain", chain), nil
}
