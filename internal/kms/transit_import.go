package kms

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
	"github.com/rotorkms/rotor/internal/transit"
)

// TransitImported is a key that comes in: wrapped to TransitWrappingKey, or the public half alone.
type TransitImported struct {
	Ciphertext string       // base64 of what transit.Unwrap opens
	Hash       transit.Hash // of RSAES-OAEP
	PublicKey  []byte       // PKIX in PEM, if there is no ciphertext
}

// lasting is the record of a namespace's wrapping key, which is there for good. The private half is sealed once more, as material is.
type lasting struct {
	Public  []byte    `json:"public"`
	Private []byte    `json:"private"`
	Created time.Time `json:"created"`
}

func lastingPath(ns keyring.Namespace) string { return "wrapping/" + string(ns) }

func lastingFacts(cluster, path string) []byte {
	return []byte("rotor/wrapping/1\x00" + cluster + "\x00" + path)
}

// TransitWrappingKey returns the public half of the namespace's wrapping key, RSA of 4096 bits in PKIX, which is made when it is asked for first.
// Unlike rotor's own it serves any number of imports, as clients of other systems expect. mount is where the caller asks.
func (s *Service) TransitWrappingKey(ctx context.Context, c policy.Caller, ns keyring.Namespace, mount string) ([]byte, error) {
	p, err := s.guard.Admit(ctx, c, policy.ActImport, policy.Resource{Namespace: string(ns), Key: mount + "/"})
	if err != nil {
		return nil, err
	}
	w, err := s.lasting(ctx, ns)
	if fault.CodeOf(err) != fault.NotFound {
		return w.Public, err
	}
	private, public, err := suite.Generate(transit.WrappingAlgorithm)
	if err != nil {
		return nil, err
	}
	defer private.Destroy()
	path := lastingPath(ns)
	sealed, err := s.guard.SealMaterial(ctx, string(ns), lastingFacts(s.guard.ClusterID(), path), private)
	if err != nil {
		return nil, err
	}
	value, err := json.Marshal(lasting{public, sealed, s.now().UTC()})
	if err != nil {
		return nil, fmt.Errorf("encode wrapping key: %w", err)
	}
	writes := []guard.Write{{Path: path, Value: value}}
	_, err = s.settle(ctx, writes)(p.Commit(ctx, []guard.Cond{{Path: path}}, writes, map[string]string{"wrapping_key": "made"}))
	if fault.CodeOf(err) == fault.Conflict { // somebody else made one
		w, err = s.lasting(ctx, ns)
		return w.Public, err
	}
	return public, err
}

func (s *Service) lasting(ctx context.Context, ns keyring.Namespace) (w lasting, err error) {
	rec, err := s.guard.Get(ctx, lastingPath(ns))
	if err != nil {
		return w, err
	}
	if err := json.Unmarshal(rec.Value, &w); err != nil {
		return w, fault.Wrap(fault.RecordTampered, rec.Path, err)
	}
	return w, nil
}

// unwrap opens what came in. fault.Invalid when no wrapping key was ever asked for, DecryptFailed.
func (s *Service) unwrap(ctx context.Context, ns keyring.Namespace, in TransitImported) (secret.Bytes, error) {
	w, err := s.lasting(ctx, ns)
	if fault.CodeOf(err) == fault.NotFound {
		return secret.Bytes{}, fault.Wrap(fault.DecryptFailed, "ciphertext", transit.WrongRSA)
	}
	if err != nil {
		return secret.Bytes{}, err
	}
	private, err := s.guard.OpenMaterial(ctx, string(ns), lastingFacts(s.guard.ClusterID(), lastingPath(ns)), w.Private)
	if err != nil {
		return secret.Bytes{}, err
	}
	defer private.Destroy()
	return transit.Unwrap(private, in.Ciphertext, in.Hash)
}

// TransitImport makes a key whose first version comes from outside. fault.Exists, Invalid, DecryptFailed, Denied.
func (s *Service) TransitImport(ctx context.Context, c policy.Caller, spec TransitSpec, in TransitImported) (keyring.Key, error) {
	if _, err := s.guard.Admit(ctx, c, policy.ActImport, policy.Resource{Namespace: string(spec.Namespace), Key: spec.Name, Labels: spec.Labels}); err != nil {
		return keyring.Key{}, err
	}
	spec.Transit.Imported = true
	switch {
	case spec.Transit.Convergent != 0:
		return keyring.Key{}, invalid("convergent_encryption", "import cannot be used on keys with convergent encryption enabled")
	case !spec.Schedule.IsZero() && !spec.Transit.RotationAllowed:
		return keyring.Key{}, invalid("auto_rotate_period", "allow_rotation must be set to true if auto-rotation is enabled")
	}
	k, err := s.make(ctx, c, spec.key(), func(ctx context.Context, k keyring.Key, now time.Time) (keyring.Version, change, error) {
		if _, there := s.Lookup(k.Namespace, k.Name); there { // before what came is opened
			return keyring.Version{}, change{}, fault.New(fault.Exists, "key "+k.Name)
		}
		return s.cameIn(ctx, k, 1, now, in)
	})
	if fault.CodeOf(err) == fault.Exists {
		return keyring.Key{}, fault.Wrap(fault.Exists, "key "+spec.Name, transit.Refusal("the import path cannot be used with an existing key; use import-version to rotate an existing imported key"))
	}
	return k, err
}

// cameIn makes version n of what comes in.
func (s *Service) cameIn(ctx context.Context, k keyring.Key, n uint32, now time.Time, in TransitImported) (keyring.Version, change, error) {
	v := keyring.Version{Number: n, Algorithm: k.Algorithm, Origin: keyring.OriginImported, Created: now}
	if in.Ciphertext == "" {
		return s.keepPublic(ctx, k, v, in.PublicKey)
	}
	foreign, err := s.unwrap(ctx, k.Namespace, in)
	if err != nil {
		return v, change{}, err
	}
	defer foreign.Destroy()
	return s.keepForeign(ctx, k, v, foreign)
}

// keepForeign keeps a version of a key that is not a bundle yet.
func (s *Service) keepForeign(ctx context.Context, k keyring.Key, v keyring.Version, foreign secret.Bytes) (keyring.Version, change, error) {
	bundle, _, err := transit.Import(k.Algorithm, foreign)
	if err != nil {
		return v, change{}, err
	}
	defer bundle.Destroy()
	return s.keep(ctx, k, v, bundle)
}

// keepPublic keeps a version of which the public half alone is known.
func (s *Service) keepPublic(ctx context.Context, k keyring.Key, v keyring.Version, text []byte) (_ keyring.Version, made change, err error) {
	if k.Transit.Derived {
		return v, made, invalid("derived", "a public key alone cannot be derived from")
	}
	v.PublicOnly = true
	if v.Public, err = transit.ImportPublic(k.Algorithm, text); err != nil {
		return v, made, err
	}
	bundle, err := transit.ImportPublicOnly()
	if err != nil {
		return v, made, err
	}
	defer bundle.Destroy()
	v, handle, err := s.newHandle(ctx, k, v)
	if err != nil {
		return v, made, err
	}
	made, err = s.place(ctx, k, v, bundle)
	return v, made.and(handle), err
}

// TransitImportVersion brings the next version of an imported key, or the private half of version n; 0: of the latest, if that lacks it. fault.Invalid,
// DecryptFailed, Denied.
func (s *Service) TransitImportVersion(ctx context.Context, c policy.Caller, ref Ref, in TransitImported, n uint32) (keyring.Key, error) {
	k, p, err := s.usable(ctx, c, policy.ActImport, ref)
	if err != nil {
		return keyring.Key{}, err
	}
	switch {
	case !k.Transit.Imported:
		return keyring.Key{}, invalid("name", "the import_version endpoint can only be used with an imported key")
	case k.Transit.Convergent != 0:
		return keyring.Key{}, invalid("name", "import_version cannot be used on keys with convergent encryption enabled")
	}
	if n == 0 && in.Ciphertext != "" {
		if last, _ := k.Last(); last.PublicOnly {
			n = last.Number
		}
	}
	if n != 0 {
		return s.addPrivate(ctx, p, k.ID, ref, in, n)
	}
	return s.stage(ctx, c, ref, 0, "", func(ctx context.Context, k keyring.Key, n uint32, now time.Time) (keyring.Version, change, error) {
		return s.cameIn(ctx, k, n, now, in)
	})
}

// addPrivate completes a version.
func (s *Service) addPrivate(ctx context.Context, p *guard.Permit, id keyring.KeyID, ref Ref, in TransitImported, n uint32) (keyring.Key, error) {
	if in.Ciphertext == "" {
		return keyring.Key{}, invalid("version", "no ciphertext: a version is completed with its private key")
	}
	detail := versionDetail(n)
	detail["origin"] = keyring.OriginImported
	return s.update(ctx, p, id, detail, func(k keyring.Key) (keyring.Key, change, error) {
		if err := unmoved(k, ref); err != nil {
			return k, change{}, err
		}
		v, err := k.Version(n)
		if err != nil {
			return k, change{}, importing.say(err)
		}
		if !v.PublicOnly {
			return k, change{}, invalid("version", "private key imported, key version cannot be updated")
		}
		w, err := s.completed(ctx, k, v, in)
		if err != nil {
			return k, change{}, err
		}
		return k.Clone().Edit(n, func(v *keyring.Version) { v.PublicOnly = false }), w, nil
	})
}

// completed returns the write that puts the private half into a version's material.
func (s *Service) completed(ctx context.Context, k keyring.Key, v keyring.Version, in TransitImported) (change, error) {
	rec, err := s.guard.Get(ctx, materialPath(k, v.Number))
	if err != nil {
		return change{}, err
	}
	f, err := s.facts(k, v)
	if err != nil {
		return change{}, fmt.Errorf("encode facts: %w", err)
	}
	half, err := s.guard.OpenMaterial(ctx, string(k.Namespace), f, rec.Value)
	if err != nil {
		return change{}, err
	}
	defer half.Destroy()
	foreign, err := s.unwrap(ctx, k.Namespace, in)
	if err != nil {
		return change{}, err
	}
	defer foreign.Destroy()
	whole, err := transit.AddPrivate(v.Algorithm, half, v.Public, foreign)
	if err != nil {
		return change{}, err
	}
	defer whole.Destroy()
	blob, err := s.guard.SealMaterial(ctx, string(k.Namespace), f, whole)
	if err != nil {
		return change{}, err
	}
	return change{conds: []guard.Cond{{Path: rec.Path, Rev: rec.Rev}}, writes: []guard.Write{{Path: rec.Path, Value: blob}}}, nil
}
