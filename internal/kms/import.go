package kms

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/suite"
)

// Bounds of imports.
const (
	ImportTTL  = 24 * time.Hour // of a wrapping key
	maxImports = 100            // wrapping keys at a time in a namespace
	maxOfOne   = 20             // of them of one caller, so that it does not keep others from importing
	maxBlob    = 64 << 10       // of a sealed key, in bytes
	maxID      = 64             // of a wrapping key that a caller names, in bytes
)

// WrappingKey is what an importer seals material to, once.
type WrappingKey struct {
	ID        string
	Transport suite.Transport
	Public    []byte // PKIX, or the encoding of HPKE for hybrids
	Expires   time.Time
}

// wrapping is the record of a wrapping key. The private half is sealed once more, as material is.
type wrapping struct {
	Transport suite.Transport `json:"transport"`
	Caller    string          `json:"caller"`
	Name      string          `json:"name"`
	Expires   time.Time       `json:"expires"`
	Private   []byte          `json:"private"`
}

// Imported is one sealed key that comes in.
type Imported struct {
	WrappingKey string    // ID
	Blob        []byte    // suite.SealKey with the ID as its label
	Originated  time.Time // since when its originator has used it; zero: not used so far. The cryptoperiod counts from then
}

func importPrefix(ns keyring.Namespace) string { return "import/" + string(ns) + "/" }

func importFacts(cluster, path string) []byte {
	return []byte("rotor/import/1\x00" + cluster + "\x00" + path)
}

// PrepareImport makes a wrapping key for one key name and one caller; it is good for one import within ImportTTL. Empty transport: the default.
// fault.AlgorithmForbidden, TooLarge.
func (s *Service) PrepareImport(ctx context.Context, c policy.Caller, ref Ref, t suite.Transport) (WrappingKey, error) {
	res := policy.Resource{Namespace: string(ref.Namespace), Key: ref.Name}
	if k, ok := s.Lookup(ref.Namespace, ref.Name); ok {
		res = Resource(k)
	}
	p, err := s.guard.Admit(ctx, c, policy.ActImport, res)
	if err != nil {
		return WrappingKey{}, err
	}
	if t == "" {
		t = s.suites.Transport()
	}
	if err := s.suites.AllowsTransport(t); err != nil {
		return WrappingKey{}, err
	}
	now := s.now().UTC()
	writes, err := s.expired(ctx, c, ref.Namespace, now) // before a key is made, which takes a while for RSA
	if err != nil {
		return WrappingKey{}, err
	}
	private, public, err := suite.GenerateTransport(t)
	if err != nil {
		return WrappingKey{}, err
	}
	defer private.Destroy()
	var id [16]byte
	rand.Read(id[:])
	w := WrappingKey{hex.EncodeToString(id[:]), t, public, now.Add(ImportTTL)}
	path := importPrefix(ref.Namespace) + w.ID
	sealed, err := s.guard.SealMaterial(ctx, string(ref.Namespace), importFacts(s.guard.ClusterID(), path), private)
	if err != nil {
		return WrappingKey{}, err
	}
	value, err := json.Marshal(wrapping{t, c.Name, ref.Name, w.Expires, sealed})
	if err != nil {
		return WrappingKey{}, fmt.Errorf("encode wrapping key: %w", err)
	}
	_, err = p.Commit(ctx, []guard.Cond{{Path: path}}, append(writes, guard.Write{Path: path, Value: value}), map[string]string{"wrapping_key": w.ID, "transport": string(t)})
	return w, err
}

// expired are deletions of wrapping keys whose time is over. fault.TooLarge when too many are not.
func (s *Service) expired(ctx context.Context, c policy.Caller, ns keyring.Namespace, now time.Time) (writes []guard.Write, err error) {
	records, _, err := s.guard.List(ctx, importPrefix(ns))
	if err != nil {
		return nil, err
	}
	live, own := 0, 0
	for _, r := range records {
		var w wrapping
		if json.Unmarshal(r.Value, &w) == nil && now.Before(w.Expires) {
			if live++; w.Caller == c.Name {
				own++
			}
		} else if len(writes) < 25 {
			writes = append(writes, guard.Write{Path: r.Path, Delete: true})
		}
	}
	if own >= maxOfOne {
		return nil, fault.New(fault.TooLarge, "imports").WithHint("%d wrapping keys of yours wait for their import; use or await them", own)
	}
	if live >= maxImports {
		return nil, fault.New(fault.TooLarge, "imports").WithHint("%d wrapping keys wait for their import; use or await them", live)
	}
	return writes, nil
}

// Import makes a key whose first version is material from outside. fault.DecryptFailed, Invalid, Exists, and what Create returns.
func (s *Service) Import(ctx context.Context, c policy.Caller, spec keyring.Key, in Imported) (keyring.Key, error) {
	res := policy.Resource{Namespace: string(spec.Namespace), Key: spec.Name, Labels: spec.Labels}
	if _, err := s.guard.Admit(ctx, c, policy.ActImport, res); err != nil {
		return spec, err
	}
	return s.make(ctx, c, spec, func(ctx context.Context, k keyring.Key, now time.Time) (keyring.Version, change, error) {
		return s.importedVersion(ctx, c, k, 1, now, in)
	})
}

// ImportVersion stages material from outside as the next version of a key, and leaves the gated steps to rollout, as Rotate does.
func (s *Service) ImportVersion(ctx context.Context, c policy.Caller, ref Ref, in Imported) (keyring.Key, error) {
	if k, _, err := s.admit(ctx, c, policy.ActImport, ref); err != nil {
		return k, err
	}
	return s.stage(ctx, c, ref, 0, "", func(ctx context.Context, k keyring.Key, n uint32, now time.Time) (keyring.Version, change, error) {
		return s.importedVersion(ctx, c, k, n, now, in)
	})
}

// importedVersion opens the sealed material; the wrapping key is deleted in the commit that keeps it.
func (s *Service) importedVersion(ctx context.Context, c policy.Caller, k keyring.Key, n uint32, now time.Time, in Imported) (v keyring.Version, made change, err error) {
	if err := s.suites.Allows(k.Algorithm, k.Purpose); err != nil {
		return v, made, err
	}
	if k.Purpose == suite.Transit {
		return v, made, wrongPurpose(k)
	}
	if k.Custody == keyring.CustodyHSM {
		return v, made, fault.New(fault.Invalid, "custody").WithHint("material of custody hsm is made in the token; import a key of custody server")
	}
	if in.Originated.After(now) {
		return v, made, fault.New(fault.Invalid, "originated").WithHint("it lies in the future")
	}
	if len(in.Blob) > maxBlob {
		return v, made, fault.New(fault.TooLarge, "sealed key")
	}
	private, w, err := s.wrapping(ctx, c, k.Namespace, k.Name, in.WrappingKey)
	if err != nil {
		return v, made, err
	}
	defer private.Destroy()
	foreign, err := suite.OpenKey(w.Transport, private, in.WrappingKey, in.Blob)
	if err != nil {
		return v, made, err
	}
	defer foreign.Destroy()
	material, err := suite.Normal(k.Algorithm, foreign)
	if err != nil {
		return v, made, err
	}
	defer material.Destroy()
	v = keyring.Version{Number: n, Algorithm: k.Algorithm, Origin: keyring.OriginImported, Originated: in.Originated.UTC(), Created: now}
	if v, made, err = s.keep(ctx, k, v, material); err != nil {
		return v, made, err
	}
	return v, made.and(change{conds: []guard.Cond{{Path: w.path, Rev: w.rev}}, writes: []guard.Write{{Path: w.path, Delete: true}}}), nil
}

// foundWrapping is a wrapping key with where it stands.
type foundWrapping struct {
	wrapping
	path string
	rev  store.Rev
}

// wrapping opens the private half of a wrapping key of a caller's for a name. fault.NotFound whatever does not fit.
func (s *Service) wrapping(ctx context.Context, c policy.Caller, ns keyring.Namespace, name, id string) (private secret.Bytes, w foundWrapping, err error) {
	if w.path = importPrefix(ns) + id; len(id) > maxID {
		w.path = importPrefix(ns)
	}
	rec, err := s.guard.Get(ctx, w.path)
	switch {
	case fault.CodeOf(err) == fault.NotFound:
	case err != nil:
		return private, w, err
	case json.Unmarshal(rec.Value, &w.wrapping) != nil:
		return private, w, fault.New(fault.RecordTampered, w.path)
	}
	if w.rev = rec.Rev; w.Caller != c.Name || w.Name != name || !s.now().Before(w.Expires) { // one answer, so that IDs of others cannot be found
		return private, w, fault.New(fault.NotFound, "wrapping key").WithHint("it is good once, for its caller and key, for %s; make another with rotor key import-params", ImportTTL)
	}
	private, err = s.guard.OpenMaterial(ctx, string(ns), importFacts(s.guard.ClusterID(), w.path), w.Private)
	return private, w, err
}

// Export releases the material of a version sealed to a public key, if the key was made exportable. The audit entry names the recipient by the
// SHA-256 of its public key and is durable before the answer. fault.NotExportable and what MayProcess returns.
func (s *Service) Export(ctx context.Context, c policy.Caller, ref Ref, n uint32, t suite.Transport, recipient []byte) ([]byte, error) {
	k, p, err := s.admit(ctx, c, policy.ActExport, ref)
	if err != nil {
		return nil, err
	}
	if k.Purpose == suite.Transit {
		return nil, wrongPurpose(k)
	}
	if !k.Exportable {
		return nil, fault.New(fault.NotExportable, "key "+k.Name)
	}
	if err := s.suites.AllowsTransport(t); err != nil {
		return nil, err
	}
	k, _, err = s.mayProcess(ctx, k, p, number(n), time.Time{}, false)
	if err != nil {
		return nil, err
	}
	o, err := s.open(ctx, k, n)
	if err != nil {
		return nil, err
	}
	blob, err := suite.SealKey(t, recipient, "", o.material)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(recipient)
	detail := versionDetail(n)
	detail["transport"], detail["recipient_sha256"] = string(t), hex.EncodeToString(sum[:])
	if err := p.Release(ctx, detail); err != nil {
		return nil, err
	}
	return blob, nil
}
