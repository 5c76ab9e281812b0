// Package delivery is how a key's versions travel from the server to a process: a signed snapshot, and beside it the material
// sealed by HPKE to a key that the process made when it started. The server's signature authenticates (HPKE's base mode authenticates
// nobody), so an intermediary can withhold but neither read, change, inject nor replay. Normative text: spec/delivery.md.
package delivery

import (
	"crypto/fips140"
	"crypto/hmac"
	"crypto/hpke"
	"crypto/sha256"
	"encoding/base64"
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
const SnapshotDomain = "rotor/snapshot/2"

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
	Sealed   []byte           `json:"sealed"` // SHA-256 of encapsulated key and sealed material, empty when there is none
}

// Parcel is a body with its signature and the material.
type Parcel struct {
	Body         []byte
	Encapsulated []byte // key of the stream's sealings, with the first of them
	Sealed       []byte
	Signature    Signature
}

// Private is the process's half of the delivery key.
type Private struct{ key hpke.PrivateKey }

// kemOf finds the KEM of an encoded delivery key by its length: X-Wing (ML-KEM-768 with X25519) or ML-KEM-768 with P-256
// (draft-ietf-hpke-pq).
func kemOf(public []byte) hpke.KEM {
	if len(public) == p256Size {
		return hpke.MLKEM768P256()
	}
	return hpke.MLKEM768X25519()
}

// p256Size is the length of a public key of ML-KEM-768 with P-256, in bytes.
const p256Size = 1184 + 65

// NewPrivate makes a fresh key pair: X-Wing, in FIPS mode ML-KEM-768 with P-256.
func NewPrivate() (Private, error) {
	kem := hpke.MLKEM768X25519()
	if fips140.Enabled() {
		kem = hpke.MLKEM768P256()
	}
	k, err := kem.GenerateKey()
	if err != nil {
		return Private{}, fmt.Errorf("make delivery key: %w", err)
	}
	return Private{k}, nil
}

// Public is the encoded public key.
func (p Private) Public() []byte { return p.key.PublicKey().Bytes() }

// CheckPublic says whether bytes are a delivery key. fault.Invalid.
func CheckPublic(public []byte) error {
	if _, err := kemOf(public).NewPublicKey(public); err != nil {
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

// Sender makes the parcels of one stream. HPKE's key is encapsulated once, with the first material, because that costs a hundred times
// what a sealing costs; each later one takes the next number of the sequence (RFC 9180, 5.2). Not safe for concurrent use.
type Sender struct {
	address Address
	public  []byte
	sign    func(body []byte) (Signature, error)
	context *hpke.Sender // nil before the first material
}

// NewSender makes parcels for a stream whose process has the delivery key public. sign is Signer.Sign.
func NewSender(a Address, public []byte, sign func(body []byte) (Signature, error)) *Sender {
	return &Sender{address: a, public: public, sign: sign}
}

// Encoded is a snapshot as it stands in the parcels of all streams, so that it is encoded once.
type Encoded struct {
	keyring.Snapshot
	text []byte
}

// Encode encodes a snapshot.
func Encode(s keyring.Snapshot) (Encoded, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return Encoded{}, fmt.Errorf("encode snapshot of %s: %w", s.Name, err)
	}
	return Encoded{s, b}, nil
}

// Pack makes the next parcel of the stream. They have to arrive in their order, so after an error the stream has to end. Without
// materials nothing is sealed. fault.Invalid.
func (d *Sender) Pack(s Encoded, m Materials, now time.Time) (Parcel, error) {
	p, err := d.seal(s.Snapshot, m)
	if err != nil {
		return Parcel{}, err
	}
	var sealed []byte
	if len(m) > 0 {
		sealed = sealedHash(p)
	}
	if p.Body, err = d.body(s, now, sealed); err != nil {
		return Parcel{}, err
	}
	p.Signature, err = d.sign(p.Body)
	return p, err
}

// body is the encoding of a Body, put together from what is the same for all streams and what is not.
func (d *Sender) body(s Encoded, now time.Time, sealed []byte) ([]byte, error) {
	head, err := json.Marshal(d.address)
	if err != nil {
		return nil, fmt.Errorf("encode address of %s: %w", d.address.Instance, err)
	}
	issued, err := now.MarshalJSON()
	if err != nil {
		return nil, fmt.Errorf("encode time: %w", err)
	}
	b := make([]byte, 0, len(head)+len(s.text)+160)
	b = append(b, head[:len(head)-1]...)
	b = append(append(b, `,"issued":`...), issued...)
	b = append(append(b, `,"snapshot":`...), s.text...)
	b = append(b, `,"sealed":`...)
	if sealed == nil {
		b = append(b, "null"...)
	} else {
		b = append(base64.StdEncoding.AppendEncode(append(b, '"'), sealed), '"')
	}
	return append(b, '}'), nil
}

func (d *Sender) seal(s keyring.Snapshot, m Materials) (p Parcel, err error) {
	if len(m) == 0 {
		return p, nil
	}
	if d.context == nil {
		pk, err := kemOf(d.public).NewPublicKey(d.public)
		if err != nil {
			return p, fault.Wrap(fault.Invalid, "delivery key of "+d.address.Instance, err)
		}
		if p.Encapsulated, d.context, err = hpke.NewSender(pk, hpke.HKDFSHA256(), hpke.AES256GCM(), info(d.address)); err != nil {
			return p, fmt.Errorf("seal delivery to %s: %w", d.address.Instance, err)
		}
		d.public = nil // it is not needed again, and there are many streams
	}
	plain := encode(m)
	p.Sealed, err = d.context.Seal(label(s), plain)
	clear(plain)
	if err != nil {
		return p, fmt.Errorf("seal delivery to %s: %w", d.address.Instance, err)
	}
	return p, nil
}

func sealedHash(p Parcel) []byte {
	h := sha256.New()
	h.Write(sequence("rotor/sealed/1", p.Encapsulated, p.Sealed))
	return h.Sum(nil)
}

// ErrGap is in the refusal of a parcel that would have opened if an earlier one had come: the stream brings no more material.
var ErrGap = errors.New("an earlier parcel of the stream is missing")

// Receiver opens the parcels of one stream. Not safe for concurrent use.
type Receiver struct {
	address Address
	private Private
	verify  func(domain string, msg, sig []byte) bool
	context *hpke.Recipient                 // nil before the first material
	opened  map[keyring.KeyID]keyring.Epoch // of the last material of each key
}

// NewReceiver opens what NewSender made for the same address and delivery key. verify checks the server's signature with the key that was
// pinned at join.
func NewReceiver(a Address, private Private, verify func(domain string, msg, sig []byte) bool) *Receiver {
	return &Receiver{address: a, private: private, verify: verify, opened: map[keyring.KeyID]keyring.Epoch{}}
}

// Unpack checks the next parcel of the stream and opens its material. fault.SnapshotRefused when it is not of the server, not for this
// stream, repeated, or changed; it changes nothing then. With ErrGap when it came too early.
func (d *Receiver) Unpack(p Parcel) (keyring.Snapshot, Materials, error) {
	refuse := func(why string) (keyring.Snapshot, Materials, error) {
		return keyring.Snapshot{}, nil, fault.New(fault.SnapshotRefused, why)
	}
	if len(p.Body) > MaxBody || len(p.Sealed) > MaxBody {
		return refuse("parcel is too large")
	}
	if !p.Signature.covers(p.Body, d.verify) {
		return refuse("parcel is not signed by the server")
	}
	var b Body
	if err := json.Unmarshal(p.Body, &b); err != nil {
		return refuse("parcel does not parse")
	}
	a := d.address
	if b.Cluster != a.Cluster || b.Instance != a.Instance || !hmac.Equal(b.Incarnation, a.Incarnation) || !hmac.Equal(b.Session, a.Session) {
		return refuse("parcel is for another stream")
	}
	if len(b.Sealed) == 0 && len(p.Sealed) == 0 && len(p.Encapsulated) == 0 {
		return b.Snapshot, nil, nil
	}
	if !hmac.Equal(b.Sealed, sealedHash(p)) {
		return refuse("sealed material is not the one that was signed")
	}
	plain, err := d.open(b.Snapshot, p)
	if err != nil && d.opened[b.Snapshot.Key].Less(b.Snapshot.Epoch) {
		return keyring.Snapshot{}, nil, fault.Wrap(fault.SnapshotRefused, "sealed material does not open", ErrGap)
	}
	if err != nil {
		return refuse("sealed material does not open")
	}
	d.opened[b.Snapshot.Key] = b.Snapshot.Epoch
	m, err := decode(plain)
	if err != nil {
		return refuse("material does not parse")
	}
	return b.Snapshot, m, nil
}

func (d *Receiver) open(s keyring.Snapshot, p Parcel) (plain []byte, err error) {
	if (d.context == nil) != (len(p.Encapsulated) > 0) {
		return nil, errors.New("the first sealing of a stream has the encapsulated key, no other has one")
	}
	context := d.context
	if context == nil {
		if context, err = hpke.NewRecipient(p.Encapsulated, d.private.key, hpke.HKDFSHA256(), hpke.AES256GCM(), info(d.address)); err != nil {
			return nil, err
		}
	}
	if plain, err = context.Open(label(s), p.Sealed); err == nil {
		d.context = context
	}
	return plain, err
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

// info binds the sealings of a stream to it (RFC 9180, 5.1: the application's info).
func info(a Address) []byte {
	return sequence("rotor/delivery/2", []byte(a.Cluster), []byte(a.Instance), a.Incarnation, a.Session)
}

// label is the associated data of a sealing: its key and epoch.
func label(s keyring.Snapshot) []byte {
	epoch := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(nil, s.Epoch.Incarnation), s.Epoch.Counter)
	return sequence("rotor/delivery/2", []byte(s.Key), epoch)
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
