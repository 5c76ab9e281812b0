package vault

import (
	"context"
	"slices"

	"github.com/rotorkms/rotor/internal/kms"
)

// Fields that several routes have.
var (
	fieldName       = field{"name", "string", "Name of the key.", true}
	fieldContext    = field{"context", "base64", "Context that the key of a derived key is derived by; needed by those alone.", false}
	fieldAssociated = field{"associated_data", "base64", "Data that is authenticated and not kept; AEAD keys alone.", false}
	fieldNonce      = field{"nonce", "base64", "Of convergent keys of version 1 alone.", false}
	fieldVersion    = field{"key_version", "int", "Version of the key; 0, or left out: the latest. At least min_encryption_version, and within its rollback window: a day after the next version, unless the key says otherwise.", false}
	fieldPadding    = field{"padding_scheme", "string", "Of RSA keys: oaep.", false}
	fieldBatch      = field{"batch_input", "batch", "Items, each with the fields of a single request and `reference`, which comes back; at most 10,000. What is beside it is ignored.", false}
	fieldPartial    = field{"partial_failure_response_code", "int", "Status of the answer when some items of a batch failed and others did not; 400 otherwise.", false}
	fieldHash       = field{"hash_algorithm", "string", "sha1, sha2-224, sha2-256 (default), sha2-384, sha2-512, sha3-224, sha3-256, sha3-384, sha3-512, or none. `algorithm` is the same.", false}
	fieldURLHash    = field{"urlalgorithm", "string", "The same in the path, where it counts first.", false}
	fieldPeriod     = field{"auto_rotate_period", "duration", "Time after which the key rotates by itself; 0: never.", false}
	fieldBackup     = field{"allow_plaintext_backup", "bool", "The key may be backed up in clear; once set it stays.", false}
	fieldExportable = field{"exportable", "bool", "The key may be exported in clear; once set it stays.", false}
)

// transitRoutes are those below a mount of transit.
func transitRoutes(c Config) []route {
	all := slices.Concat(keyRoutes(c), versionRoutes(c), useRoutes(c))
	all = append(all, signRoutes(c)...)
	all = append(all, moveRoutes(c)...)
	all = append(all, releaseRoutes(c)...)
	all = append(all, aroundRoutes(c)...)
	for i := range all {
		all[i].engine = "transit"
	}
	return all
}

// key is the key that a request of a mount names.
func (r *request) key(name string) kms.Ref {
	return kms.Ref{Namespace: r.namespace, Name: r.mount + "/" + name}
}

// named is the key of the path.
func (r *request) named() kms.Ref { return r.key(r.vars["name"]) }

// keyThere says whether the key of the path is there.
func (c Config) keyThere(ctx context.Context, r *request) (bool, error) {
	return c.KMS.TransitExists(ctx, r.named())
}
