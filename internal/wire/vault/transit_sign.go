package vault

import (
	"context"
	"encoding/base64"
	"math"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/lenient"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/transit"
)

// signRoutes are those that authenticate.
func signRoutes(c Config) []route {
	input := field{"input", "base64", "What is signed or authenticated.", false}
	how := []field{
		fieldName, input, fieldContext, fieldHash, fieldURLHash,
		{"prehashed", "bool", "The input is a hash already.", false},
		{"signature_algorithm", "string", "Of RSA keys: pss (default) or pkcs1v15.", false},
		{"marshaling_algorithm", "string", "asn1 (default) or jws.", false},
		{"salt_length", "string", "Of pss: auto (default), hash or bytes.", false},
		{"signature_context", "base64", "Of ed25519 keys: context of Ed25519ctx or Ed25519ph (RFC 8032).", false},
		fieldBatch,
	}
	return []route{
		{
			pattern: "hmac/:name(/:urlalgorithm)", doc: "Makes HMACs.", direct: true, ops: map[operation]handler{opUpdate: c.hmac}, needs: every(key(policy.ActMAC)),
			fields: []field{fieldName, input, fieldHash, fieldURLHash, fieldVersion, fieldBatch},
		},
		{pattern: "sign/:name(/:urlalgorithm)", doc: "Signs.", direct: true, ops: map[operation]handler{opUpdate: c.sign}, needs: every(key(policy.ActSign)), fields: append(how[:len(how):len(how)], fieldVersion)},
		{
			pattern: "verify/:name(/:urlalgorithm)", doc: "Verifies signatures or HMACs.", direct: true, ops: map[operation]handler{opUpdate: c.verify}, needs: every(key(policy.ActVerify)),
			fields: append(how[:len(how):len(how)], field{"signature", "string", "vault:vN: and base64.", false}, field{"hmac", "string", "The same of an HMAC.", false}),
		},
		{
			pattern: "derive-key/:name", doc: "Makes a key of the secret that a key agrees on with a peer's (ECDH).", ops: map[operation]handler{opUpdate: c.deriveKey}, needs: every(key(policy.ActCreate)),
			differs: "A policy has to give derive-key/BASE_KEY_NAME, too: the private half of that key is used",
			fields: []field{
				fieldName, {"base_key_name", "string", "ECDSA key whose private half agrees.", true}, {"base_key_version", "int", "Its version; 0: the latest.", false},
				{"peer_public_key", "string", "Public key of the peer, in PEM.", true}, {"derived_key_type", "string", "Type of the new key; default aes256-gcm96.", false},
				{"key_derivation_algorithm", "string", "ecdh.", false},
			},
		},
	}
}

// signItem is one item of hmac, sign and verify.
type signItem struct {
	Input            *lenient.Text `json:"input"`
	Signature        *lenient.Text `json:"signature"`
	HMAC             *lenient.Text `json:"hmac"`
	Context          lenient.Text  `json:"context"`
	SignatureContext lenient.Text  `json:"signature_context"`
	Reference        lenient.Text  `json:"reference"`
}

// signBody is the body of hmac, sign and verify.
type signBody struct {
	signItem
	Batch      *[]signItem  `json:"batch_input"`
	KeyVersion lenient.Int  `json:"key_version"`
	Hash       lenient.Text `json:"hash_algorithm"`
	Algorithm  lenient.Text `json:"algorithm"`
	Prehashed  lenient.Bool `json:"prehashed"`
	Padding    lenient.Text `json:"signature_algorithm"`
	Marshaling lenient.Text `json:"marshaling_algorithm"`
	Salt       lenient.Text `json:"salt_length"`
}

// signResult is what became of one item of sign and hmac.
type signResult struct {
	Signature  string  `json:"signature,omitempty"`
	HMAC       string  `json:"hmac,omitempty"`
	KeyVersion *uint32 `json:"key_version,omitempty"` // of sign, also where it failed
	PublicKey  []byte  `json:"publickey,omitempty"`
	Error      string  `json:"error,omitempty"`
	Reference  string  `json:"reference"`
}

// verifyResult is what became of one item of verify.
type verifyResult struct {
	Valid     bool   `json:"valid"`
	Error     string `json:"error,omitempty"`
	Reference string `json:"reference"`
}

// signing is a request of hmac, sign or verify.
type signing struct {
	signBody
	items  []signItem
	inputs []kms.TransitMessage
	good   []int
	errs   []error // by item
}

// readSigning decodes a request. lack says what an item lacks; empty: nothing.
func readSigning(r *request, lack func(signItem) string) (*signing, error) {
	s := &signing{}
	if err := r.decode(&s.signBody); err != nil {
		return nil, err
	}
	s.items = []signItem{s.signItem}
	if s.Batch != nil {
		if s.items = *s.Batch; len(s.items) == 0 {
			return nil, bad("missing batch input to process")
		}
	}
	s.errs = make([]error, len(s.items))
	for i, it := range s.items {
		in := kms.TransitMessage{Version: s.version()}
		var err error
		if l := lack(it); l != "" {
			err = bad("%s", l)
		} else {
			err = it.read(&in)
		}
		if s.errs[i] = err; err == nil {
			s.inputs, s.good = append(s.inputs, in), append(s.good, i)
		}
	}
	return s, nil
}

// version is the one that protects. What is no number of a version is one that no key has.
func (s *signing) version() uint32 {
	if s.KeyVersion < 0 || s.KeyVersion > math.MaxInt32 {
		return math.MaxUint32
	}
	return uint32(s.KeyVersion)
}

// read decodes an item.
func (it signItem) read(in *kms.TransitMessage) (err error) {
	if it.Input != nil {
		if in.Input, err = base64.StdEncoding.DecodeString(string(*it.Input)); err != nil {
			return bad("unable to decode input as base64: %s", err)
		}
	}
	if in.Options.Context, err = base64.StdEncoding.DecodeString(string(it.Context)); err != nil {
		return bad("failed to base64-decode context")
	}
	if in.Options.Signature, err = base64.StdEncoding.DecodeString(string(it.SignatureContext)); err != nil {
		return bad("failed to base64-decode signature_context")
	}
	switch {
	case it.Signature != nil:
		in.Text = string(*it.Signature)
	case it.HMAC != nil:
		in.Text = string(*it.HMAC)
	}
	return nil
}

// take gives results of use cases to their items.
func (s *signing) take(results []kms.TransitResult, set func(i int, res kms.TransitResult)) {
	for j, res := range results {
		if s.errs[s.good[j]] = res.Err; res.Err == nil {
			set(s.good[j], res)
		}
	}
}

// hash is the hash that a request names: in the path, else in the body.
func (s *signing) hash(r *request) (transit.Hash, string, bool) {
	for _, name := range []string{r.vars["urlalgorithm"], string(s.Hash), string(s.Algorithm)} {
		if name != "" {
			h, ok := transit.ParseHash(name)
			return h, name, ok
		}
	}
	return transit.SHA256, "sha2-256", true
}

// options sets what all signatures of a request have in common.
func (s *signing) options(r *request) error {
	h, name, ok := s.hash(r)
	if !ok {
		return bad("invalid hash algorithm %q", name)
	}
	marshaling, err := transit.ParseMarshaling(string(s.Marshaling))
	if err != nil {
		return err
	}
	salt, err := transit.ParseSalt(string(s.Salt))
	if err != nil {
		return err
	}
	for i := range s.inputs {
		o := &s.inputs[i].Options
		o.Hash, o.Prehashed, o.Padding, o.Marshaling, o.Salt = h, bool(s.Prehashed), string(s.Padding), marshaling, salt
	}
	return nil
}

// hashes sets the hash of all HMACs of a request.
func (s *signing) hashes(r *request) error {
	h, name, ok := s.hash(r)
	if !ok || h == 0 {
		return bad("unsupported algorithm %q", name)
	}
	for i := range s.inputs {
		s.inputs[i].Hash = h
	}
	return nil
}

func (c Config) hmac(ctx context.Context, r *request) (*response, error) {
	s, err := readSigning(r, func(it signItem) string {
		if it.Input == nil {
			return "missing input for HMAC"
		}
		return ""
	})
	if err != nil {
		return nil, err
	}
	if err := s.hashes(r); err != nil {
		return nil, err
	}
	results, err := c.KMS.TransitHMAC(ctx, r.caller, r.named(), s.inputs)
	if err != nil {
		return nil, noKey(err)
	}
	out := make([]signResult, len(s.items))
	s.take(results, func(i int, res kms.TransitResult) { out[i].HMAC = res.Ciphertext })
	for i, err := range s.errs {
		if fault.CodeOf(err) == fault.UnknownVersion {
			s.errs[i] = c.noVersion(r, s.KeyVersion)
		}
	}
	return s.signed(out)
}

// noVersion says of a key that the caller may use that a version of it that an HMAC was asked for is not there.
func (c Config) noVersion(r *request, n lenient.Int) error {
	k, _ := c.KMS.Lookup(r.namespace, r.named().Name)
	switch {
	case n >= 0:
		return bad("key version does not exist; latest key version is %d", k.Primary)
	case k.Transit != nil && k.Transit.MinEncryption > 0:
		return bad("cannot generate HMAC: version is too old (disallowed by policy)")
	}
	return bad("key version does not exist (cannot be negative)")
}

func (c Config) sign(ctx context.Context, r *request) (*response, error) {
	s, err := readSigning(r, func(signItem) string { return "" })
	if err != nil {
		return nil, err
	}
	if s.Batch != nil {
		s.lacking("missing input", func(it signItem) bool { return it.Input == nil })
	}
	if err := s.options(r); err != nil {
		return nil, err
	}
	results, err := c.KMS.TransitSign(ctx, r.caller, r.named(), s.inputs)
	if err != nil {
		return nil, noSuch("signing key not found", err)
	}
	out, versions := make([]signResult, len(s.items)), make([]uint32, len(s.items))
	for i := range out {
		out[i].KeyVersion = &versions[i]
	}
	s.take(results, func(i int, res kms.TransitResult) {
		out[i].Signature, versions[i], out[i].PublicKey = res.Ciphertext, res.Version, res.Public
	})
	for i, err := range s.errs {
		if s.KeyVersion < 0 && fault.CodeOf(err) == fault.UnknownVersion {
			s.errs[i] = bad("requested version for signing is negative")
		}
	}
	return s.signed(out)
}

// lacking fails the items that lack something.
func (s *signing) lacking(what string, does func(signItem) bool) {
	inputs, good := s.inputs[:0], s.good[:0]
	for j, i := range s.good {
		if does(s.items[i]) {
			s.errs[i] = bad("%s", what)
			continue
		}
		inputs, good = append(inputs, s.inputs[j]), append(good, i)
	}
	s.inputs, s.good = inputs, good
}

// signed is the answer of sign and hmac.
func (s *signing) signed(out []signResult) (*response, error) {
	if s.Batch != nil {
		for i := range out {
			out[i].Reference = string(s.items[i].Reference)
			if s.errs[i] != nil {
				out[i].Error = itemText(s.errs[i])
			}
		}
		return &response{data: map[string]any{"batch_results": out}}, nil
	}
	if s.errs[0] != nil {
		return nil, itemError(s.errs[0])
	}
	one := out[0]
	if one.HMAC != "" {
		return &response{data: map[string]any{"hmac": one.HMAC}}, nil
	}
	data := map[string]any{"signature": one.Signature, "key_version": one.KeyVersion}
	if len(one.PublicKey) > 0 {
		data["public_key"] = one.PublicKey
	}
	return &response{data: data}, nil
}

// noSuch is a key that is not there, in other words.
func noSuch(words string, err error) error {
	if fault.CodeOf(err) != fault.NotFound {
		return err
	}
	return &refusal{400, []string{words}, nil, err}
}

func (c Config) verify(ctx context.Context, r *request) (*response, error) {
	s, err := readSigning(r, func(signItem) string { return "" })
	if err != nil {
		return nil, err
	}
	macs, err := s.kind()
	if err != nil {
		return nil, err
	}
	if s.Batch != nil {
		s.lacking("missing input", func(it signItem) bool { return it.Input == nil })
	}
	results, err := c.verified(ctx, r, s, macs)
	if err != nil {
		return nil, err
	}
	out := make([]verifyResult, len(s.items))
	s.take(results, func(i int, res kms.TransitResult) { out[i].Valid = res.Valid })
	if s.Batch == nil {
		if s.errs[0] != nil {
			return nil, itemError(s.errs[0])
		}
		return &response{data: map[string]any{"valid": out[0].Valid}}, nil
	}
	for i := range out {
		out[i].Reference = string(s.items[i].Reference)
		if s.errs[i] != nil {
			out[i].Error = itemText(s.errs[i])
		}
	}
	return &response{data: map[string]any{"batch_results": out}}, nil
}

func (c Config) verified(ctx context.Context, r *request, s *signing, macs bool) ([]kms.TransitResult, error) {
	if macs {
		if err := s.hashes(r); err != nil {
			return nil, err
		}
		results, err := c.KMS.TransitVerifyHMAC(ctx, r.caller, r.named(), s.inputs)
		return results, noKey(err)
	}
	if err := s.options(r); err != nil {
		return nil, err
	}
	results, err := c.KMS.TransitVerify(ctx, r.caller, r.named(), s.inputs)
	return results, noSuch("signature verification key not found", err)
}

// kind says whether HMACs are verified; else it is signatures.
func (s *signing) kind() (macs bool, err error) {
	var signatures, hmacs, neither int
	for _, it := range s.items {
		switch {
		case it.Signature != nil && it.HMAC != nil && s.Batch == nil:
			return false, bad("provide one of 'signature', 'hmac' or 'cmac'")
		case it.Signature != nil:
			signatures++
		case it.HMAC != nil:
			hmacs++
		default:
			neither++
		}
	}
	switch {
	case s.Batch == nil && neither > 0:
		return false, bad("missing one of 'signature', 'hmac' or 'cmac' arguments to verify")
	case signatures > 0 && hmacs > 0:
		return false, bad("elements of batch_input must all provide either 'signature', 'hmac' or 'cmac'")
	case neither > 0 && signatures > 0:
		return false, bad("some elements of batch_input are missing 'signature'")
	case neither > 0 && hmacs > 0:
		return false, bad("some elements of batch_input are missing 'hmac'")
	case neither > 0:
		return false, bad("no batch_input elements have 'signature', 'hmac' or 'cmac'")
	}
	return hmacs > 0, nil
}

func (c Config) deriveKey(ctx context.Context, r *request) (*response, error) {
	if a := r.str("key_derivation_algorithm"); a != "" && a != "ecdh" {
		return nil, bad("key derivation algorithm %s not supported", a)
	}
	peer := r.str("peer_public_key")
	if peer == "" {
		return nil, bad("peer public key not provided")
	}
	kind := r.str("derived_key_type")
	if kind == "" {
		kind = "aes256-gcm96"
	}
	algorithm, spelling, err := transit.ParseType(kind, "")
	if err != nil {
		return nil, err
	}
	n, err := r.versionOr0("base_key_version")
	if err != nil {
		return nil, err
	}
	spec := kms.TransitSpec{Ref: r.named(), Algorithm: algorithm}
	spec.Transit.Spelling = spelling
	base, by := r.str("base_key_name"), r.caller
	asks := *by.Request
	asks.Path = r.mount + "/derive-key/" + base
	by.Request = &asks
	_, err = c.KMS.TransitDeriveKey(stays(ctx), r.caller, kms.Agreement{Base: r.key(base), Version: n, Peer: []byte(peer), Caller: by}, spec)
	return nil, noSuch("specified base key not found", err)
}
