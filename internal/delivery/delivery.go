// Package delivery is how a key's versions travel from the server to a process: a signed snapshot, and beside it the material
// sealed by HPKE to a key that the process made when it started. The server's signature authenticates (HPKE's base mode authenticates
// nobody), so an intermediary can withhold but neither read, change, inject nor replay. Normative text: spec/delivery.md.
package delivery

import (
	"crypto/hmac"
	"crypto/hpke"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/secret"
)

// SnapshotDomain separates signatures of snapshots from all other uses of the server's signing key.
const SnapshotDomain = "rotor/snapshot/1"

// Bounds of what a process accepts.
const (
	MaxBody      = 1 << 20
	MaxMaterials = 1024
	NonceSize    = 16 // of an incarnation and of a session
)

// Address says for which stream of which process a parcel is made.
type Address struct {
	Cluster     string `json:"cluster"`
	Instance    string `json:"instance"`
	Incarnation []byte `json:"incarnation"`
	Session     []byte `json:"session"`
}

// Body is what the server signs.
type Body struct {
	Address
	Issued   time.Time        `json:"issued"`
	Snapshot keyring.Snapshot `json:"snapshot"`
	Sealed   []byte           `json:"sealed"` // SHA-256 of the sealed material, empty when there is none
}

// Parcel is a body with its signature and the material.
type Parcel struct {
	Body      []byte
	Sealed    []byte
	Signature []byte
}

// Private is the process's half of the delivery key.
type Private struct{ key hpke.PrivateKey }

// NewPrivate makes a fresh X-Wing key pair (ML-KEM-768 with X25519, draft-ietf-hpke-pq).
func NewPrivate() (Private, error) {
	k, err := hpke.MLKEM768X25519().GenerateKey()
	if err != nil {
		return Private{}, fmt.Errorf("make delivery key: %w", err)
	}
	return Private{k}, nil
}

// Public is the encoded public key.
func (p Private) Public() []byte { return p.key.PublicKey().Bytes() }

// CheckPublic says whether bytes are a delivery key. fault.Invalid.
func CheckPublic(public []byte) error {
	if _, err := hpke.MLKEM768X25519().NewPublicKey(public); err != nil {
		return fault.Wrap(fault.Invalid, "delivery key", err)
	}
	return nil
}

// HelloInput is what a process signs with its certificate's key to bind its delivery key to itself.
func HelloInput(a Address, public []byte) []byte {
	return sequence("rotor/hello/1", []byte(a.Cluster), []byte(a.Instance), a.Incarnation, a.Session, public)
}

// Materials are key bytes by version number.
type Materials map[uint32]secret.Bytes

// Pack makes a parcel. sign signs in SnapshotDomain. Without materials nothing is sealed.
func Pack(a Address, public []byte, s keyring.Snapshot, m Materials, now time.Time, sign func(domain string, msg []byte) []byte) (Parcel, error) {
	b := Body{Address: a, Issued: now, Snapshot: s}
	var sealed []byte
	if len(m) > 0 {
		pk, err := hpke.MLKEM768X25519().NewPublicKey(public)
		if err != nil {
			return Parcel{}, fault.Wrap(fault.Invalid, "delivery key of "+a.Instance, err)
		}
		plain := encode(m)
		sealed, err = hpke.Seal(pk, hpke.HKDFSHA256(), hpke.AES256GCM(), info(a, s), plain)
		clear(plain)
		if err != nil {
			return Parcel{}, fmt.Errorf("seal delivery to %s: %w", a.Instance, err)
		}
		sum := sha256.Sum256(sealed)
		b.Sealed = sum[:]
	}
	body, err := json.Marshal(b)
	if err != nil {
		return Parcel{}, fmt.Errorf("encode snapshot of %s: %w", s.Name, err)
	}
	return Parcel{Body: body, Sealed: sealed, Signature: sign(SnapshotDomain, body)}, nil
}

// Unpack checks a parcel and opens its material. verify checks the server's signature with the key that was pinned at join.
// fault.SnapshotRefused when it is not of the server, not for this stream, or changed.
func Unpack(a Address, private Private, p Parcel, verify func(domain string, msg, sig []byte) bool) (keyring.Snapshot, Materials, error) {
	refuse := func(why string) (keyring.Snapshot, Materials, error) {
		return keyring.Snapshot{}, nil, fault.New(fault.SnapshotRefused, why)
	}
	if len(p.Body) > MaxBody || len(p.Sealed) > MaxBody {
		return refuse("parcel is too large")
	}
	if !verify(SnapshotDomain, p.Body, p.Signature) {
		return refuse("parcel is not signed by the server")
	}
	var b Body
	if err := json.Unmarshal(p.Body, &b); err != nil {
		return refuse("parcel does not parse")
	}
	if b.Cluster != a.Cluster || b.Instance != a.Instance || !hmac.Equal(b.Incarnation, a.Incarnation) || !hmac.Equal(b.Session, a.Session) {
		return refuse("parcel is for another stream")
	}
	if len(b.Sealed) == 0 && len(p.Sealed) == 0 {
		return b.Snapshot, nil, nil
	}
	if sum := sha256.Sum256(p.Sealed); !hmac.Equal(b.Sealed, sum[:]) {
		return refuse("sealed material is not the one that was signed")
	}
	plain, err := hpke.Open(private.key, hpke.HKDFSHA256(), hpke.AES256GCM(), info(a, b.Snapshot), p.Sealed)
	if err != nil {
		return refuse("sealed material does not open")
	}
	m, err := decode(plain)
	if err != nil {
		return refuse("material does not parse")
	}
	return b.Snapshot, m, nil
}

// Proof shows that a process can use the material of the versions that the snapshot lists as live: an HMAC-SHA256 over address
// and epoch under a key made of all of them. With no material (public keys only) it is keyed by nothing and proves receipt alone.
func Proof(a Address, s keyring.Snapshot, material func(version uint32) (secret.Bytes, bool)) ([]byte, error) {
	h := hmac.New(sha256.New, []byte("rotor/ack/1"))
	for _, v := range s.Versions {
		if !v.Live() || s.Custody != keyring.CustodyFleet {
			continue
		}
		m, ok := material(v.Number)
		if !ok {
			return nil, fault.New(fault.UnknownVersion, fmt.Sprintf("key %s, version %d", s.Name, v.Number))
		}
		t := hmac.New(sha256.New, m.Reveal())
		t.Write(sequence("rotor/ack-version/1", binary.BigEndian.AppendUint32(nil, v.Number)))
		h.Write(t.Sum(nil))
	}
	epoch := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(nil, s.Epoch.Incarnation), s.Epoch.Counter)
	h.Write(sequence("rotor/ack/1", []byte(a.Cluster), []byte(a.Instance), a.Incarnation, a.Session, []byte(s.Key), epoch))
	return h.Sum(nil), nil
}

// info binds a sealing to its stream, key and epoch (RFC 9180, 5.1: the application's info).
func info(a Address, s keyring.Snapshot) []byte {
	epoch := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(nil, s.Epoch.Incarnation), s.Epoch.Counter)
	return sequence("rotor/delivery/1", []byte(a.Cluster), []byte(a.Instance), a.Incarnation, a.Session, []byte(s.Key), epoch)
}

// sequence joins fields with their lengths, so that no two lists give the same bytes.
func sequence(domain string, fields ...[]byte) []byte {
	out := append(binary.BigEndian.AppendUint32(nil, uint32(len(domain))), domain...)
	for _, f := range fields {
		out = binary.BigEndian.AppendUint32(out, uint32(len(f)))
		out = append(out, f...)
	}
	return out
}

// encode lists materials as version (4 B), length (2 B), bytes.
func encode(m Materials) []byte {
	var out []byte
	for n, s := range m {
		out = binary.BigEndian.AppendUint32(out, n)
		out = binary.BigEndian.AppendUint16(out, uint16(s.Len()))
		out = append(out, s.Reveal()...)
	}
	return out
}

func decode(b []byte) (Materials, error) {
	m := Materials{}
	for len(b) > 0 {
		if len(b) < 6 || len(m) == MaxMaterials {
			return nil, errors.New("material list is malformed")
		}
		n, size := binary.BigEndian.Uint32(b), int(binary.BigEndian.Uint16(b[4:]))
		if len(b) < 6+size || size == 0 {
			return nil, errors.New("material list is malformed")
		}
		if _, twice := m[n]; twice {
			return nil, errors.New("material list names a version twice")
		}
		m[n], b = secret.Copy(b[6:6+size]), b[6+size:]
	}
	return m, nil
}
