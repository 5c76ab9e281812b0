package kms

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/transit"
)

// MaxBatch bounds the items of one request.
const MaxBatch = 100_000

// TransitItem is one thing to do in a request.
type TransitItem struct {
	Plaintext      []byte
	Ciphertext     string
	Context        []byte // of derived keys
	AssociatedData []byte
	Nonce          []byte // of keys of the first convergent construction
	Version        uint32 // that protects; 0: the primary

	secret secret.Bytes // in place of Plaintext
}

func (it TransitItem) encrypt(k *transit.Key) (string, error) {
	if !it.secret.IsZero() {
		return k.EncryptSecret(it.secret, it.params())
	}
	return k.Encrypt(it.Plaintext, it.params())
}

func (it TransitItem) params() transit.Params {
	return transit.Params{Context: it.Context, Associated: it.AssociatedData, Nonce: it.Nonce}
}

// TransitResult is what became of one item. Err is of this item alone.
type TransitResult struct {
	Ciphertext string // or an HMAC, or a signature
	Plaintext  []byte
	Version    uint32 // that was used
	Changed    bool   // of rewrap: it was under another version
	Valid      bool   // of verify
	Public     []byte // of a signature with a derived key: its public half
	Err        error
}

// wording is what refusals of versions are called in one kind of request.
type wording struct{ tooNew, tooOld transit.Refusal }

var (
	encrypting   = wording{"requested version for encryption is higher than the latest key version", "requested version for encryption is less than the minimum encryption key version"}
	signing      = wording{"requested version for signing is higher than the latest key version", "requested version for signing is less than the minimum encryption key version"}
	authenticate = wording{transit.HMACTooNew, "cannot generate HMAC: version is too old (disallowed by policy)"}
	decrypting   = wording{transit.TooNew, transit.TooOld}
	verifying    = wording{transit.SigTooNew, transit.TooOld}
	importing    = wording{tooNew: "no such key version"}
	verifyHMAC   = wording{transit.HMACTooNew, transit.HMACTooOld}
)

// say gives a refusal of a version its words.
func (w wording) say(err error) error {
	var words transit.Refusal
	switch fault.CodeOf(err) {
	case fault.UnknownVersion:
		words = w.tooNew
	case fault.BelowFloor:
		words = w.tooOld
	default:
		return err
	}
	return fault.Wrap(fault.CodeOf(err), "version", words)
}

// ofItem says whether an error is about what one item asked for, and the others go on. All else ends the request.
func ofItem(err error) bool {
	return slices.Contains([]fault.Code{
		fault.Invalid, fault.UnknownVersion, fault.BelowFloor, fault.WrongState, fault.VersionRetired, fault.VersionDestroyed, fault.PeriodOver, fault.VolumeOver,
		fault.DecryptFailed, fault.TooLarge, fault.AlgorithmForbidden, fault.WrongPurpose,
	}, fault.CodeOf(err))
}

// ready is a version that a request uses: opened, admitted and counted; or why not.
type readied struct {
	key *transit.Key
	err error
}

// batch is one request on a key: every version that it uses is asked for, counted and opened once.
type batch struct {
	s      *Service
	key    keyring.Key
	permit *guard.Permit
}

// begin admits a request of so many items.
func (s *Service) begin(ctx context.Context, c policy.Caller, a policy.Action, ref Ref, items int) (*batch, error) {
	k, p, err := s.usable(ctx, c, a, ref)
	if err != nil {
		return nil, err
	}
	if items > MaxBatch {
		return nil, fault.New(fault.TooLarge, "batch").WithHint("at most %d items", MaxBatch)
	}
	return &batch{s, k, p}, nil
}

// counts are how often versions are used.
type counts map[uint32]uint64

// ready prepares each version by get, as often as it is counted. An error that is not of one version ends the request.
func (b *batch) ready(ctx context.Context, n counts, words wording, what kind, get func(context.Context, uint32, uint64) (keyring.Version, error)) (map[uint32]readied, error) {
	out := make(map[uint32]readied, len(n))
	for number, uses := range n {
		key, err := b.open(ctx, number, uses, what, get)
		if err != nil && !ofItem(err) {
			return nil, err
		}
		out[number] = readied{key, words.say(err)}
	}
	return out, nil
}

func (b *batch) open(ctx context.Context, number uint32, uses uint64, what kind, get func(context.Context, uint32, uint64) (keyring.Version, error)) (*transit.Key, error) {
	v, err := get(ctx, number, uses)
	if err != nil {
		return nil, err
	}
	o, err := b.s.open(ctx, b.key, v.Number)
	if err != nil {
		return nil, err
	}
	return o.transit, b.s.counted(ctx, b.permit, b.key, v.Number, what, uses)
}

// protecting finds a version that may protect, 0 for the primary, and takes its uses from the volume that its algorithm allows. fault.Unavailable
// when this server may not act on its memory.
func (b *batch) protecting(ctx context.Context, number uint32, uses uint64) (v keyring.Version, err error) {
	of := primary
	if number != 0 {
		of = func(k keyring.Key) (keyring.Version, error) {
			if number > k.Primary {
				return v, fault.New(fault.UnknownVersion, fmt.Sprintf("key %s, version %d", k.Name, number))
			}
			return k.Version(number)
		}
	}
	b.key, v, err = b.s.pick(ctx, b.key, of, func(k keyring.Key, v keyring.Version) error { return k.MayProtectAs(v, b.s.now()) })
	if err != nil {
		return v, err
	}
	if b.s.fresh != nil && !b.s.fresh() { // asked after the ring was read
		return v, fault.New(fault.Unavailable, "server").WithHint("it has lost the store; another one may serve")
	}
	return v, b.s.spend(ctx, b.key, v, uses)
}

// authenticating is protecting with the HMAC key, which has no volume.
func (b *batch) authenticating(ctx context.Context, number uint32, _ uint64) (v keyring.Version, err error) {
	return b.protecting(ctx, number, 0)
}

// processing finds a version that may process, and notes an attempt on one that is retired.
func (b *batch) processing(ctx context.Context, n uint32, _ uint64) (v keyring.Version, err error) {
	b.key, v, err = b.s.pick(ctx, b.key, number(n), func(k keyring.Key, v keyring.Version) error {
		if err := k.AboveFloor(v.Number); err != nil {
			return err
		}
		return k.MayProcess(v, time.Time{}, b.s.now(), false)
	})
	if fault.CodeOf(err) == fault.VersionRetired {
		b.s.attempted(ctx, b.permit.Caller().Name, b.key, n)
	}
	return v, err
}

// TransitEncrypt encrypts items, each under the version that it names. fault.NotFound, WrongState, Denied.
func (s *Service) TransitEncrypt(ctx context.Context, c policy.Caller, ref Ref, items []TransitItem) ([]TransitResult, error) {
	b, err := s.begin(ctx, c, policy.ActEncrypt, ref, len(items))
	if err != nil {
		return nil, s.missed(ctx, c, ref, err, named(items))
	}
	return b.encrypt(ctx, items)
}

func (b *batch) encrypt(ctx context.Context, items []TransitItem) ([]TransitResult, error) {
	if err := transit.CanEncrypt(b.key.Algorithm); err != nil {
		return refusing(len(items), err), nil
	}
	n := counts{}
	for _, it := range items {
		n[it.Version]++
	}
	keys, err := b.ready(ctx, n, encrypting, protects, b.protecting)
	if err != nil {
		return nil, err
	}
	out := make([]TransitResult, len(items))
	for i, it := range items {
		if r := keys[it.Version]; r.err != nil {
			out[i].Err = r.err
		} else if out[i].Ciphertext, out[i].Err = it.encrypt(r.key); out[i].Err == nil {
			out[i].Version = r.key.Number()
		}
	}
	return out, failed(out)
}

// refusing is what becomes of items that none of a key's type can do.
func refusing(n int, err error) []TransitResult {
	out := make([]TransitResult, n)
	for i := range out {
		out[i].Err = err
	}
	return out
}

// failed is an error of an item that is none of its own making.
func failed(out []TransitResult) error {
	for _, r := range out {
		if r.Err != nil && !ofItem(r.Err) {
			return r.Err
		}
	}
	return nil
}

// TransitDecrypt decrypts items. fault.NotFound, WrongState, Denied.
func (s *Service) TransitDecrypt(ctx context.Context, c policy.Caller, ref Ref, items []TransitItem) ([]TransitResult, error) {
	b, err := s.begin(ctx, c, policy.ActDecrypt, ref, len(items))
	if err != nil {
		return nil, s.missed(ctx, c, ref, err, parsed(items))
	}
	return b.decrypt(ctx, items)
}

func (b *batch) decrypt(ctx context.Context, items []TransitItem) ([]TransitResult, error) {
	if err := transit.CanDecrypt(b.key.Algorithm); err != nil {
		return refusing(len(items), err), nil
	}
	return each(ctx, b, decrypting, items, func(it TransitItem) (uint32, []byte, error) { return transit.Parse(it.Ciphertext) },
		func(k *transit.Key, it TransitItem, body []byte, out *TransitResult) {
			out.Plaintext, out.Err = k.Decrypt(body, it.params())
		})
}

// each has what other versions protected parsed, and processed by the version that each item names.
func each[T any](
	ctx context.Context, b *batch, words wording, items []T,
	parse func(T) (version uint32, body []byte, err error), do func(k *transit.Key, item T, body []byte, out *TransitResult),
) ([]TransitResult, error) {
	out, bodies := make([]TransitResult, len(items)), make([][]byte, len(items))
	n := counts{}
	for i, it := range items {
		if out[i].Version, bodies[i], out[i].Err = parse(it); out[i].Err == nil {
			n[out[i].Version]++
		}
	}
	if err := b.versionsFirst(ctx, words, out); err != nil {
		return nil, err
	}
	keys, err := b.ready(ctx, n, words, processes, b.processing)
	if err != nil {
		return nil, err
	}
	for i, it := range items {
		if out[i].Err != nil {
			continue
		}
		if r := keys[out[i].Version]; r.err != nil {
			out[i].Err = r.err
		} else {
			do(r.key, it, bodies[i], &out[i])
		}
	}
	b.misread(ctx, out, func(r TransitResult) bool {
		code := fault.CodeOf(r.Err)
		return code == fault.DecryptFailed || code == fault.UnknownVersion
	})
	return out, failed(out)
}

// versionsFirst says of texts that are no base64 what is wrong with the versions that they name, if that is anything.
func (b *batch) versionsFirst(ctx context.Context, words wording, out []TransitResult) error {
	wrong := map[uint32]error{}
	for i, r := range out {
		if !transit.NotBase64(r.Err) {
			continue
		}
		err, known := wrong[r.Version]
		if !known {
			_, err = b.processing(ctx, r.Version, 0)
			if err != nil && !ofItem(err) {
				return err
			}
			wrong[r.Version] = err
		}
		if err != nil {
			out[i].Err = words.say(err)
		}
	}
	return nil
}

// named are the versions that items name; 0: the primary.
func named(items []TransitItem) iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		for _, it := range items {
			if !yield(it.Version) {
				return
			}
		}
	}
}

// parsed are the versions that the ciphertexts of items name.
func parsed(items []TransitItem) iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		for _, it := range items {
			if n, _, err := transit.Parse(it.Ciphertext); err == nil && !yield(n) {
				return
			}
		}
	}
}

// maxMissed is how many versions of one deleted key a request is noted at.
const maxMissed = 16

// missed restarts the destruction wait of versions of deleted keys whose name a caller, who has the right to it, wanted to use them by: somebody still
// depends on them. It returns the refusal.
func (s *Service) missed(ctx context.Context, c policy.Caller, ref Ref, refusal error, versions iter.Seq[uint32]) error {
	if fault.CodeOf(refusal) == fault.NotFound {
		s.missedBy(ctx, c.Name, ref, versions)
	}
	return refusal
}

func (s *Service) missedBy(ctx context.Context, who string, ref Ref, versions iter.Seq[uint32]) {
	old := s.ring.Load().former(ref.Namespace, ref.Name)
	if k := s.ring.Load().find(ref.Namespace, ref.Name); k != nil && k.key.Deleted() { // by the name that it has now
		old = append(old, k)
	}
	for _, k := range old {
		done := map[uint32]bool{}
		for n := range versions {
			if n = cmp.Or(n, k.key.Primary); done[n] {
				continue
			}
			if done[n] = true; len(done) > maxMissed {
				break
			}
			s.attempted(ctx, who, k.key, n)
		}
	}
}

// misread is missedBy for what a key does not open: it may be of a deleted key that had its name.
func (b *batch) misread(ctx context.Context, out []TransitResult, is func(TransitResult) bool) {
	if len(b.s.ring.Load().former(b.key.Namespace, b.key.Name)) == 0 {
		return
	}
	b.s.missedBy(ctx, b.permit.Caller().Name, Ref{b.key.Namespace, b.key.Name}, func(yield func(uint32) bool) {
		for _, r := range out {
			if r.Version != 0 && is(r) && !yield(r.Version) {
				return
			}
		}
	})
}

// TransitRewrap moves ciphertexts to the version that each item names, without showing what they hold. One that is there already is opened all the
// same, and answered as it is with Changed false. fault.NotFound, WrongState, Denied.
func (s *Service) TransitRewrap(ctx context.Context, c policy.Caller, ref Ref, items []TransitItem) ([]TransitResult, error) {
	b, err := s.begin(ctx, c, policy.ActRewrap, ref, len(items))
	if err != nil {
		return nil, s.missed(ctx, c, ref, err, parsed(items))
	}
	out, err := b.decrypt(ctx, items)
	defer func() {
		for i := range out {
			clear(out[i].Plaintext)
			out[i].Plaintext = nil
		}
	}()
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(out, func(r TransitResult) bool { return r.Version == b.key.Primary }) { // as the answer may be that nothing is to be done, it must not be an old one
		if err := s.CatchUp(ctx); err != nil {
			return nil, err
		}
		b.key, _ = s.Key(b.key.ID)
	}
	var move []int
	var again []TransitItem
	for i, it := range items {
		switch to := it.Version; {
		case out[i].Err != nil:
		case out[i].Version == to, to == 0 && out[i].Version == b.key.Primary:
			out[i].Ciphertext = it.Ciphertext
		default:
			it.Plaintext, move = out[i].Plaintext, append(move, i)
			again = append(again, it)
		}
	}
	if len(again) == 0 {
		return out, nil
	}
	moved, err := b.encrypt(ctx, again)
	if err != nil {
		return nil, err
	}
	for j, i := range move {
		clear(out[i].Plaintext)
		out[i] = moved[j]
		out[i].Changed = moved[j].Err == nil
	}
	return out, nil
}

// actDataKey is what entries of the log call data keys that were answered in clear; who may encrypt may have one.
const actDataKey policy.Action = "datakey"

// TransitDataKey makes a data key of so many bits and encrypts it. With release it is answered in clear as well, which the log counts apart: it is
// nobody's secret yet, and who has it encrypted may have it decrypted as often as any text. fault.Invalid.
func (s *Service) TransitDataKey(ctx context.Context, c policy.Caller, ref Ref, bits int, item TransitItem, release bool) (plain secret.Bytes, ciphertext string, version uint32, err error) {
	b, err := s.begin(ctx, c, policy.ActEncrypt, ref, 1)
	if err != nil {
		return plain, "", 0, s.missed(ctx, c, ref, err, named([]TransitItem{item}))
	}
	key, err := transit.DataKey(bits)
	if err != nil {
		return plain, "", 0, err
	}
	item.secret = key
	if release {
		b.permit = b.permit.As(actDataKey)
	}
	out, err := b.encrypt(ctx, []TransitItem{item})
	if err == nil {
		err = out[0].Err
	}
	if err != nil || !release {
		key.Destroy()
	}
	if err != nil {
		return plain, "", 0, err
	}
	if release {
		plain = key
	}
	return plain, out[0].Ciphertext, out[0].Version, nil
}
