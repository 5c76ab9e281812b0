package kms

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
	"github.com/rotorkms/rotor/internal/transit"
)

// facts are what never changes about material; they are its associated data.
type facts struct {
	Cluster   string            `json:"cluster"`
	Namespace keyring.Namespace `json:"namespace"`
	Key       keyring.KeyID     `json:"key"`
	Version   uint32            `json:"version"`
	Handle    uint32            `json:"handle"`
	Algorithm suite.Algorithm   `json:"algorithm"`
	Purpose   suite.Purpose     `json:"purpose"`
	Custody   keyring.Custody   `json:"custody"`
	Created   time.Time         `json:"created"`

	Exportable bool   `json:"exportable,omitempty"`
	Origin     string `json:"origin,omitempty"`
}

func (s *Service) facts(k keyring.Key, v keyring.Version) ([]byte, error) {
	return json.Marshal(facts{s.guard.ClusterID(), k.Namespace, k.ID, v.Number, v.Handle, v.Algorithm, k.Purpose, k.Custody, v.Created.UTC(), k.Exportable, v.Origin})
}

func materialPath(k keyring.Key, n uint32) string {
	return "material/" + string(k.Namespace) + "/" + string(k.ID) + "/" + strconv.FormatUint(uint64(n), 10)
}

func handlePath(ns keyring.Namespace, h uint32) string {
	return fmt.Sprintf("handle/%s/%08x", ns, h)
}

type materialID struct {
	key     keyring.KeyID
	version uint32
}

// opened is the material of one version, ready to use; only the field that fits the purpose is set.
type opened struct {
	material secret.Bytes
	message  *envelope.MessageKey
	signer   *suite.Signer

	decrypter    *suite.Decrypter
	decapsulator *suite.Decapsulator
	transit      *transit.Key

	object string // in the token; then nothing else is set
	hsm    HSM
}

// materials caches opened material. Guarded by mu.
type materials struct {
	mu    sync.RWMutex
	cache map[materialID]opened
}

func (m *materials) get(id materialID) (opened, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	o, ok := m.cache[id]
	return o, ok
}

// forget drops what is no longer live, as far as the key has changed since an earlier state.
func (m *materials) forget(k, was keyring.Key) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for v := range k.ChangedSince(was) {
		if k.KeepsMaterial(v) && v.Phase != keyring.PhaseRetired {
			continue
		}
		delete(m.cache, materialID{k.ID, v.Number}) // a user in flight may still hold it, so the bytes are left to the collector
	}
}

// Material opens the material of a version, for the server's own use and for delivery to holders that were admitted. Retired
// and destroyed versions are refused. fault.VersionRetired, VersionDestroyed, RecordTampered.
func (s *Service) Material(ctx context.Context, k keyring.Key, n uint32) (secret.Bytes, error) {
	if k.Custody == keyring.CustodyHSM {
		return secret.Bytes{}, fault.New(fault.NotExportable, "key "+k.Name).WithHint("its material is in a token, which does not give it away")
	}
	o, err := s.open(ctx, k, n)
	return o.material, err
}

func (s *Service) open(ctx context.Context, k keyring.Key, n uint32) (opened, error) {
	v, err := k.Version(n)
	if err != nil {
		return opened{}, err
	}
	name := func() string { return fmt.Sprintf("key %s, version %d", k.Name, n) }
	switch v.Phase {
	case keyring.PhaseDestroyed:
		return opened{}, fault.New(fault.VersionDestroyed, name())
	case keyring.PhaseRetired:
		return opened{}, fault.New(fault.VersionRetired, name())
	}
	if !k.KeepsMaterial(v) {
		return opened{}, fault.New(fault.WrongState, name()+" is "+string(v.State)+", its private half is gone")
	}
	id := materialID{k.ID, n}
	if o, ok := s.vault.get(id); ok && (o.transit == nil || v.PublicOnly || o.transit.HasPrivate()) { // the private half may have come since
		return o, nil
	}
	m, err := s.unseal(ctx, k, v)
	if fault.CodeOf(err) == fault.NotFound { // another server has withdrawn it
		return opened{}, s.withdrawn(ctx, k, n)
	}
	if err != nil {
		return opened{}, err
	}
	o, err := s.ready(k, v, m)
	if err != nil {
		return opened{}, err
	}
	s.vault.mu.Lock()
	defer s.vault.mu.Unlock()
	if fresh, ok := s.Key(k.ID); ok { // not into the cache when it was retired meanwhile
		if now, err := fresh.Version(n); err == nil && fresh.KeepsMaterial(now) && now.Phase != keyring.PhaseRetired {
			s.vault.cache[id] = o
		}
	}
	return o, nil
}

// unseal reads the material of a version from the store, whatever phase it is in. fault.NotFound when there is none.
func (s *Service) unseal(ctx context.Context, k keyring.Key, v keyring.Version) (secret.Bytes, error) {
	rec, err := s.guard.Get(ctx, materialPath(k, v.Number))
	if err != nil {
		return secret.Bytes{}, err
	}
	f, err := s.facts(k, v)
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("encode facts of key %s, version %d: %w", k.Name, v.Number, err)
	}
	return s.guard.OpenMaterial(ctx, string(k.Namespace), f, rec.Value)
}

// withdrawn says why the material of a version is not there, from a ring that has caught up.
func (s *Service) withdrawn(ctx context.Context, k keyring.Key, n uint32) error {
	if err := s.CatchUp(ctx); err != nil {
		return err
	}
	if now, ok := s.Key(k.ID); ok {
		k = now
	}
	v, err := k.Version(n)
	switch name := fmt.Sprintf("key %s, version %d", k.Name, n); {
	case err != nil:
		return err
	case v.Phase == keyring.PhaseDestroyed:
		return fault.New(fault.VersionDestroyed, name)
	case !k.KeepsMaterial(v):
		return fault.New(fault.WrongState, name+" is "+string(v.State)+", its private half is gone")
	default:
		return fault.New(fault.NotFound, "material of "+name)
	}
}

func (s *Service) ready(k keyring.Key, v keyring.Version, m secret.Bytes) (opened, error) {
	if k.Custody == keyring.CustodyHSM {
		return s.readyObject(k, v, m)
	}
	o := opened{material: m}
	var err error
	switch k.Purpose {
	case suite.Transit:
		o.transit, err = transit.New(v.Algorithm, v.Number, m, v.Public, constructions(k, v))
		m.Destroy() // the key has its own copy
		o.material = secret.Bytes{}
	case suite.Encrypt:
		o.message, err = envelope.NewMessageKeyOf(v.Algorithm, m, v.Handle, string(k.Namespace), string(k.ID))
	case suite.Sign:
		o.signer, err = suite.NewSigner(v.Algorithm, m)
	case suite.Decrypt:
		o.decrypter, err = suite.NewDecrypter(v.Algorithm, m)
	case suite.Decapsulate:
		o.decapsulator, err = suite.NewDecapsulator(v.Algorithm, m)
	}
	return o, err
}

// constructions are what all uses of a version depend on. They never change.
func constructions(k keyring.Key, v keyring.Version) transit.Settings {
	t := k.Transit
	return transit.Settings{Derived: t.Derived, Counter: t.Counter, Convergent: cmp.Or(v.Convergent, t.Convergent)}
}
