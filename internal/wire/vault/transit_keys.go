package vault

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/suite"
	"github.com/rotorkms/rotor/internal/transit"
)

// keyRoutes are those of keys and of what is set on them.
func keyRoutes(c Config) []route {
	return []route{
		{
			pattern: "keys", ops: map[operation]handler{opList: c.listKeys}, needs: every(mount(policy.ActShow)), doc: "Lists the names of the keys.",
		},
		{
			pattern: "keys/:name", doc: "Creates, shows and deletes a key.", exists: c.keyThere,
			ops:   map[operation]handler{opRead: c.readKey, opUpdate: c.createKey, opDelete: c.deleteKey},
			needs: needs{opRead: key(policy.ActShow), opUpdate: key(policy.ActCreate), opDelete: key(policy.ActDelete)},
			fields: []field{
				fieldName,
				{"type", "string", "Type of the key: " + strings.Join(transit.Types(), ", ") + ". Default aes256-gcm96.", false},
				{"parameter_set", "string", "Of ml-dsa: 44, 65 or 87.", false},
				{"derived", "bool", "Each context has a key of its own.", false},
				{"convergent_encryption", "bool", "The same plaintext and context give the same ciphertext; needs derived.", false},
				fieldExportable, fieldBackup, fieldPeriod, fieldJitter, fieldMaxUses, fieldWindows, fieldMargin,
				{"key_size", "int", "Length of an hmac key in bytes, 32 to 512; 0: 32.", false},
				{"context", "base64", "When read: of a derived ed25519 key the context whose public key is shown.", false},
			},
			differs: "A deleted key is gone for clients and its name free at once; it is kept under another name until it is destroyed through rotor's gates, and can be restored (rotor key undelete). With several servers the answer comes when all know of it, else 503. Use by the deleted name restarts the wait before the destruction. auto_rotate_period may be " +
				"as short as a second. What is read also has primary_version, next_rotation (of a key that rotates by itself), versions with what is known of each and how often it was used, and rotation_required with rotation_reasons: " +
				"true while another version should protect than does, because the schedule asks for it by time or by uses, the cryptoperiod is over, 15/16 of the uses that the algorithm allows are spent, the primary is " +
				"compromised, or a newer version is on its way. A client that polls moves what is older than latest_version; this says that it is about to change, or should. managed_key, hybrid, slh-dsa, cmac and cbc types are not there.",
		},
		{
			pattern: "keys/:name/config", doc: "Changes settings of a key.", ops: map[operation]handler{opUpdate: c.configureKey}, needs: every(key(policy.ActConfigure)),
			fields: []field{
				fieldName,
				{"min_decryption_version", "int", "What older versions protected is refused; 0 is 1.", false},
				{"min_encryption_version", "int", "The oldest version that may protect when key_version names it; 0: any whose rollback window is open.", false},
				{"deletion_allowed", "bool", "The key may be deleted.", false},
				fieldExportable, fieldBackup, fieldPeriod, fieldJitter, fieldMaxUses, fieldWindows, fieldMargin,
			},
		},
		{
			pattern: "keys/:name/rotate", doc: "Makes the next version of a key.", ops: map[operation]handler{opUpdate: c.rotateKey}, needs: every(key(policy.ActRotate)), fields: []field{fieldName},
			differs: "A key that processes hold, or that has a margin, is staged first: the answer then has the latest_version of before. The answer has the newest 100 versions, however many there are.",
		},
		{
			pattern: "keys/:name/trim", doc: "Takes the versions before a number away from clients.", ops: map[operation]handler{opUpdate: c.trimKey}, needs: every(key(policy.ActConfigure)),
			fields:  []field{fieldName, {"min_available_version", "int", "The first version that stays.", true}},
			differs: "Material stays until it is retired and destroyed through rotor's gates.",
		},
		{
			pattern: "keys/:name/soft-delete", doc: "Puts a key aside: nothing can be done with it until it is restored.",
			ops: map[operation]handler{opDelete: c.softDelete, opUpdate: c.softDelete}, needs: every(key(policy.ActDelete)), fields: []field{fieldName},
		},
		{
			pattern: "keys/:name/soft-delete-restore", doc: "Takes a key up again that was put aside.", ops: map[operation]handler{opUpdate: c.softRestore}, needs: every(key(policy.ActDelete)), fields: []field{fieldName},
		},
	}
}

func (c Config) listKeys(ctx context.Context, r *request) (*response, error) {
	names, err := c.KMS.TransitList(ctx, r.caller, r.namespace, r.mount)
	return keys(names), err
}

func (c Config) readKey(ctx context.Context, r *request) (*response, error) {
	k, err := c.KMS.TransitGet(ctx, r.caller, r.named())
	if fault.CodeOf(err) == fault.NotFound {
		return nil, missing()
	}
	if err != nil {
		return nil, err
	}
	out := c.shown(k)
	if r.has("context") && k.Transit.Derived && transit.Signs(k.Algorithm) {
		err = c.showDerived(ctx, r, k, out)
	}
	return out, err
}

// showDerived adds the public keys that a derived key has for a context.
func (c Config) showDerived(ctx context.Context, r *request, k keyring.Key, out *response) error {
	context, err := r.bytes("context")
	if err != nil {
		return err
	}
	public, err := c.KMS.TransitPublic(ctx, r.caller, r.named(), context)
	if err != nil {
		return err
	}
	pairs := out.data.(map[string]any)["keys"].(map[string]publicVersion) //nolint:errcheck // versionData has made them
	for n, raw := range public {
		name := strconv.FormatUint(uint64(n), 10)
		if v, ok := pairs[name]; ok {
			v.PublicKey = base64.StdEncoding.EncodeToString(raw)
			pairs[name] = v
		}
	}
	return nil
}

// shown is the answer about a key.
func (c Config) shown(k keyring.Key, warnings ...string) *response {
	return &response{data: c.keyData(k, 0), warnings: warnings}
}

// settings are what the creator of a key chooses, also with its import.
func (r *request) settings() (spec kms.TransitSpec, err error) {
	spec.Ref = r.named()
	kind := r.str("type")
	if kind == "" {
		kind = "aes256-gcm96"
	}
	if spec.Algorithm, spec.Transit.Spelling, err = transit.ParseType(kind, r.str("parameter_set")); err != nil {
		return spec, err
	}
	t := &spec.Transit
	for name, to := range map[string]*bool{"derived": &t.Derived, "exportable": &t.Exportable, "allow_plaintext_backup": &t.PlaintextBackup} {
		if *to, err = r.is(name, false); err != nil {
			return spec, err
		}
	}
	margin, err := r.margin()
	if err != nil {
		return spec, err
	}
	if margin != nil {
		spec.Rotation.Margin = *margin
	}
	schedule, err := r.scheduled()
	spec.Schedule = schedule.Of(keyring.Schedule{})
	return spec, err
}

func (c Config) createKey(ctx context.Context, r *request) (*response, error) {
	spec, err := r.settings()
	if err != nil {
		return nil, err
	}
	size, err := r.whole("key_size", 0)
	if err != nil {
		return nil, err
	}
	convergent, err := r.is("convergent_encryption", false)
	switch {
	case err != nil:
		return nil, err
	case size != 0 && spec.Algorithm != suite.HMAC:
		return nil, bad("key_size is not valid for algorithm %s", typeOf(spec.Algorithm, spec.Transit.Spelling))
	case size != 0 && (size < keyring.MinKeyBytes || size > keyring.MaxKeyBytes):
		return nil, bad("invalid key_size %d", size)
	case convergent && !spec.Transit.Derived:
		return nil, bad("convergent encryption requires derivation to be enabled")
	case convergent:
		spec.Transit.Convergent = transit.ConvergentVersion
	}
	spec.Transit.KeyBytes = int(size)
	k, created, err := c.KMS.TransitCreate(stays(ctx), r.caller, spec)
	if err != nil {
		return nil, underived(spec, err)
	}
	if !created {
		return c.shown(k, fmt.Sprintf("key %s already existed", r.vars["name"])), nil
	}
	return c.shown(k), nil
}

// underived says of a type that cannot be derived, or be convergent, that it cannot. A key that is there already is answered as it is, whatever is asked for.
func underived(spec kms.TransitSpec, err error) error {
	kind := typeOf(spec.Algorithm, spec.Transit.Spelling)
	switch {
	case fault.CodeOf(err) != fault.Invalid:
	case spec.Transit.Derived && !transit.Derives(spec.Algorithm):
		return bad("key derivation and convergent encryption not supported for keys of type %s", kind)
	case spec.Transit.Convergent != 0 && !transit.Converges(spec.Algorithm):
		return bad("convergent encryption not supported for keys of type %s", kind)
	}
	return err
}

func (c Config) deleteKey(ctx context.Context, r *request) (*response, error) {
	_, err := c.KMS.TransitDelete(stays(ctx), r.caller, r.named())
	switch {
	case errors.Is(err, kms.ErrDeletionNotAllowed):
		return nil, bad("error deleting policy %s: deletion is not allowed for this key", r.vars["name"])
	case fault.CodeOf(err) == fault.NotFound:
		return nil, bad("error deleting policy %s: could not delete key; not found", r.vars["name"])
	}
	return nil, err
}

// version is a member that is the number of a version; nil when it is not there.
func (r *request) version(name, what string) (*uint32, error) {
	if !r.has(name) {
		return nil, nil
	}
	n, err := r.whole(name, 0)
	switch {
	case err != nil:
		return nil, err
	case n < 0:
		return nil, bad("%s version cannot be negative", what)
	case n > math.MaxInt32:
		return nil, bad("%s version is too large", what)
	}
	v := uint32(n)
	return &v, nil
}

// flag is a member that is a bool; nil when it is not there.
func (r *request) flag(name string) (*bool, error) {
	if !r.has(name) {
		return nil, nil
	}
	is, err := r.is(name, false)
	return &is, err
}

func (c Config) configureKey(ctx context.Context, r *request) (*response, error) {
	var ch kms.TransitChange
	var errs [7]error
	ch.MinDecryption, errs[0] = r.version("min_decryption_version", "min decryption")
	ch.MinEncryption, errs[1] = r.version("min_encryption_version", "min encryption")
	ch.DeletionAllowed, errs[2] = r.flag("deletion_allowed")
	ch.Exportable, errs[3] = r.flag("exportable")
	ch.PlaintextBackup, errs[4] = r.flag("allow_plaintext_backup")
	ch.Schedule, errs[5] = r.scheduled()
	ch.Margin, errs[6] = r.margin()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	k, err := c.KMS.TransitConfigure(stays(ctx), r.caller, r.named(), ch)
	if fault.CodeOf(err) == fault.NotFound {
		return nil, bad("no existing key named %s could be found", r.vars["name"])
	}
	if err != nil {
		return nil, err
	}
	if d := ch.MinDecryption; d != nil && *d == 0 {
		return c.shown(k, "since Vault 0.3, transit key numbering starts at 1; forcing minimum to 1"), nil
	}
	return c.shown(k), nil
}

// rotatedVersions is how many versions the answer to a rotation tells of, the newest: to rotate costs the same however many there are.
const rotatedVersions = 100

func (c Config) rotateKey(ctx context.Context, r *request) (*response, error) {
	k, err := c.KMS.TransitRotate(stays(ctx), r.caller, r.named())
	switch {
	case errors.Is(err, kms.ErrImported):
		return nil, bad("imported key %s does not allow rotation within Vault", r.vars["name"])
	case fault.CodeOf(err) == fault.NotFound:
		return nil, bad("key not found")
	case err != nil:
		return nil, err
	}
	return &response{data: c.keyData(k, k.NextNumber()-min(k.NextNumber(), rotatedVersions))}, nil
}

func (c Config) trimKey(ctx context.Context, r *request) (*response, error) {
	if !r.has("min_available_version") {
		return nil, bad("missing min_available_version")
	}
	n, err := r.version("min_available_version", "minimum available")
	if err != nil {
		return nil, err
	}
	k, err := c.KMS.TransitTrim(stays(ctx), r.caller, r.named(), *n)
	switch {
	case fault.CodeOf(err) == fault.NotFound:
		return nil, bad("invalid key name")
	case err != nil:
		return nil, err
	}
	return c.shown(k), nil
}

func (c Config) softDelete(ctx context.Context, r *request) (*response, error) {
	_, err := c.KMS.TransitSoftDelete(stays(ctx), r.caller, r.named())
	if errors.Is(err, kms.ErrDeletionNotAllowed) {
		return nil, bad("error soft-deleting policy %s: deletion is not allowed for this key", r.vars["name"])
	}
	return nil, noKey(err)
}

func (c Config) softRestore(ctx context.Context, r *request) (*response, error) {
	_, err := c.KMS.TransitUnsoftDelete(stays(ctx), r.caller, r.named())
	return nil, noKey(err)
}

// noKey says of a key that is not there what clients expect of its use.
func noKey(err error) error {
	if fault.CodeOf(err) != fault.NotFound {
		return err
	}
	return &refusal{http.StatusBadRequest, []string{"encryption key not found"}, nil, err}
}

// typeOf is the type of a key in one word, as errors and answers about it have it.
func typeOf(a suite.Algorithm, spelling string) string {
	name, _ := transit.Describe(a, spelling)
	return name
}

// keyData is what clients read of a key, with the versions from a number on.
func (c Config) keyData(k keyring.Key, from uint32) map[string]any {
	t := k.Transit
	name := k.Name[strings.LastIndexByte(k.Name, '/')+1:]
	kind, set := transit.Describe(k.Algorithm, t.Spelling)
	data := map[string]any{
		"name": name, "type": kind, "derived": t.Derived, "deletion_allowed": t.DeletionAllowed, "min_available_version": t.MinAvailable,
		"min_decryption_version": max(t.MinDecryption, 1), "min_encryption_version": t.MinEncryption, "latest_version": k.Primary, "exportable": t.Exportable,
		"allow_plaintext_backup": t.PlaintextBackup, "supports_encryption": transit.Encrypts(k.Algorithm), "supports_decryption": transit.Encrypts(k.Algorithm),
		"supports_signing": transit.Signs(k.Algorithm), "supports_derivation": transit.Derives(k.Algorithm), "rotation_margin": int64(k.Rotation.Margin / time.Second),
		"imported_key": t.Imported, "soft_deleted": !t.SoftDeleted.IsZero(),
	}
	if set != "" {
		data["parameter_set"] = set
	}
	if t.KeyBytes != 0 {
		data["key_size"] = t.KeyBytes
	}
	if t.Imported {
		data["imported_key_allow_rotation"] = t.RotationAllowed
	}
	for field, p := range map[string]*keyring.Passage{"backup_info": t.BackedUp, "restore_info": t.Restored} {
		if p != nil {
			data[field] = map[string]any{"time": p.At, "version": p.Version}
		}
	}
	if t.Derived {
		maps.Copy(data, derivation(t))
	}
	scheduleData(k.Schedule, data)
	c.versionData(k, from, data)
	return data
}

// derivation is how a derived key is.
func derivation(t *keyring.Transit) map[string]any {
	data := map[string]any{"kdf": "hkdf_sha256", "convergent_encryption": t.Convergent != 0}
	if t.Counter {
		data["kdf"], data["kdf_mode"] = "hmac-sha256-counter", "hmac-sha256-counter"
	}
	if t.Convergent != 0 {
		data["convergent_encryption_version"] = t.Convergent
		if t.Convergent == transit.ConvergentVersion {
			data["convergent_encryption_version"] = -1 // as Vault says that each version has its own
		}
	}
	return data
}

// publicVersion is a version of a key whose versions have public keys.
type publicVersion struct {
	Name             string    `json:"name"`
	PublicKey        string    `json:"public_key"`
	CertificateChain string    `json:"certificate_chain"`
	CreationTime     time.Time `json:"creation_time"`
}

// state is what rotor tells of a version beyond what clients of Vault know.
type state struct {
	State   string    `json:"state"`
	Phase   string    `json:"phase"`
	Created time.Time `json:"creation_time"`
	Primary bool      `json:"primary,omitempty"`

	Uses          uint64    `json:"use_count"`
	Protected     uint64    `json:"protect_count"`
	Processed     uint64    `json:"process_count"`
	LastProtected time.Time `json:"last_protected,omitzero"`
	LastProcessed time.Time `json:"last_processed,omitzero"`
}

// versionData adds what clients read of the versions: those that they may use, and of all what rotor knows.
func (c Config) versionData(k keyring.Key, from uint32, data map[string]any) {
	times, pairs, states := map[string]int64{}, map[string]publicVersion{}, map[string]state{}
	usage := c.KMS.UsageOf(k, from)
	for v := range k.From(from) {
		n := strconv.FormatUint(uint64(v.Number), 10)
		states[n] = stateOf(k, v, usage.Versions[v.Number])
		if !k.Seen(v) || k.AboveFloor(v.Number) != nil {
			continue
		}
		if transit.Signs(k.Algorithm) {
			pairs[n] = publicOf(k, v)
		} else {
			times[n] = v.Created.Unix()
		}
	}
	switch {
	case transit.Signs(k.Algorithm):
		data["keys"] = pairs
	case k.Algorithm != suite.HMAC: // of which Vault does not list them
		data["keys"] = times
	}
	data["primary_version"], data["versions"] = k.Primary, states
	data["rotation_required"], data["rotation_reasons"] = len(usage.Required) > 0, append([]string{}, usage.Required...)
	if !usage.Next.IsZero() {
		data["next_rotation"] = usage.Next.UTC()
	}
}

func stateOf(k keyring.Key, v keyring.Version, u kms.Uses) state {
	return state{
		State: string(v.State), Phase: string(v.Phase), Created: v.Created, Primary: v.Number == k.Primary,
		Uses: u.Protected + u.Processed, Protected: u.Protected, Processed: u.Processed, LastProtected: u.LastProtected, LastProcessed: u.LastProcessed,
	}
}

// publicOf is a version as clients read it.
func publicOf(k keyring.Key, v keyring.Version) publicVersion {
	out := publicVersion{Name: curves[k.Algorithm], CreationTime: v.Created}
	if out.Name == "" {
		kind, set := transit.Describe(k.Algorithm, k.Transit.Spelling)
		if out.Name = kind; set != "" {
			out.Name += "-" + set
		}
	}
	out.CertificateChain, _ = transit.ChainText(v.Chain) // empty when there is none
	if !k.Transit.Derived {
		out.PublicKey, _ = transit.PublicText(v.Algorithm, v.Public) // empty when there is none
	}
	return out
}

// curves are the names that keys on them have in what clients read.
var curves = map[suite.Algorithm]string{suite.ES256: "P-256", suite.ES384: "P-384", suite.ES512: "P-521"}
