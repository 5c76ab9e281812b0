package vault

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"math"
	"net/http"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/lenient"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/suite"
	"github.com/rotorkms/rotor/internal/transit"
)

// useRoutes are those that encrypt and decrypt.
func useRoutes(c Config) []route {
	ciphertext := field{"ciphertext", "string", "vault:vN: and base64.", true}
	return []route{
		{
			pattern: "encrypt/:name", doc: "Encrypts one plaintext or a batch; makes the key if it is not there and the caller may create it.", exists: c.keyThere, direct: true,
			ops: map[operation]handler{opUpdate: c.encrypt}, needs: every(key(policy.ActEncrypt)),
			fields: []field{
				fieldName, {"plaintext", "base64", "What is encrypted.", true}, fieldContext, fieldAssociated, fieldNonce, fieldVersion, fieldPadding, fieldBatch, fieldPartial,
				{"type", "string", "Of a key that is made.", false}, {"convergent_encryption", "bool", "Of a key that is made.", false},
			},
		},
		{
			pattern: "decrypt/:name", doc: "Decrypts one ciphertext or a batch.", direct: true, ops: map[operation]handler{opUpdate: c.decrypt}, needs: every(key(policy.ActDecrypt)),
			fields: []field{fieldName, ciphertext, fieldContext, fieldAssociated, fieldNonce, fieldPadding, fieldBatch, fieldPartial},
		},
		{
			pattern: "rewrap/:name", doc: "Decrypts and encrypts again, with the latest version; nobody sees the plaintext.", direct: true, ops: map[operation]handler{opUpdate: c.rewrap}, needs: every(key(policy.ActRewrap)),
			fields: []field{fieldName, ciphertext, fieldContext, fieldAssociated, fieldNonce, fieldVersion, fieldBatch, fieldPartial},
			differs: "It takes associated_data. What is of the version already comes back as it is; changed says which. A batch with a bad item is answered with " +
				"200, as Vault does, unless partial_failure_response_code is there.",
		},
		{
			pattern: "datakey/:plaintext/:name", doc: "Makes a data key: plaintext and wrapped, or wrapped alone.", ops: map[operation]handler{opUpdate: c.dataKey}, needs: every(key(policy.ActEncrypt)),
			fields: []field{
				{"plaintext", "string", "plaintext or wrapped.", true}, fieldName, {"bits", "int", "128, 256 (default) or 512.", false}, fieldContext, fieldAssociated, fieldNonce, fieldVersion, fieldPadding,
			},
		},
	}
}

// coded is base64 that is decoded as it is read: the text of all plaintexts of a batch would be the most that is read of it.
type coded struct {
	bytes []byte
	err   error // of this item alone
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (c *coded) UnmarshalText(text []byte) error {
	c.bytes = make([]byte, base64.StdEncoding.DecodedLen(len(text)))
	n, err := base64.StdEncoding.Decode(c.bytes, text)
	c.bytes, c.err = c.bytes[:n], err
	return nil
}

// cryptItem is one item of encrypt, decrypt and rewrap.
type cryptItem struct {
	Plaintext      *coded       `json:"plaintext"`
	Ciphertext     string       `json:"ciphertext"`
	Context        string       `json:"context"`
	AssociatedData string       `json:"associated_data"`
	Nonce          string       `json:"nonce"`
	KeyVersion     lenient.Int  `json:"key_version"`
	PaddingScheme  string       `json:"padding_scheme"`
	EncryptPadding string       `json:"encrypt_padding_scheme"`
	DecryptPadding string       `json:"decrypt_padding_scheme"`
	Reference      lenient.Text `json:"reference"`
}

// cryptBody is the body of encrypt, decrypt and rewrap.
type cryptBody struct {
	cryptItem
	Batch      *[]cryptItem `json:"batch_input"`
	Partial    *lenient.Int `json:"partial_failure_response_code"`
	Type       lenient.Text `json:"type"`
	Convergent lenient.Bool `json:"convergent_encryption"`
}

// cryptResult is what became of one item.
type cryptResult struct {
	Ciphertext string  `json:"ciphertext,omitempty"`
	Plaintext  *[]byte `json:"plaintext,omitempty"`
	KeyVersion uint32  `json:"key_version,omitempty"`
	Changed    *bool   `json:"changed,omitempty"`
	Error      string  `json:"error,omitempty"`
	Reference  string  `json:"reference"`

	err error
}

// single is cryptResult without what a batch alone has.
type single struct {
	Ciphertext string  `json:"ciphertext,omitempty"`
	Plaintext  *[]byte `json:"plaintext,omitempty"`
	KeyVersion uint32  `json:"key_version,omitempty"`
	Changed    *bool   `json:"changed,omitempty"`
}

// crypt is a request of encrypt, decrypt or rewrap.
type crypt struct {
	cryptBody
	items   []cryptItem
	inputs  []kms.TransitItem
	results []cryptResult
	good    []int // items that are well formed, by what inputs and results of use cases are in the order of
}

// readCrypt decodes a request. Items that are not well formed have their error in results.
func readCrypt(r *request, need func(cryptItem) string) (*crypt, error) {
	c := &crypt{}
	if err := r.decode(&c.cryptBody); err != nil {
		return nil, err
	}
	c.items = []cryptItem{c.cryptItem}
	if c.Batch != nil {
		if c.items = *c.Batch; len(c.items) == 0 {
			return nil, bad("missing batch input to process")
		}
	}
	c.results = make([]cryptResult, len(c.items))
	c.inputs, c.good = make([]kms.TransitItem, 0, len(c.items)), make([]int, 0, len(c.items))
	for i := range c.items {
		it := &c.items[i]
		if (it.Context == "") != (c.items[0].Context == "") {
			return nil, bad("context should be set either in all the request blocks or in none")
		}
		c.results[i].Reference = string(it.Reference)
		if lack := need(*it); lack != "" {
			c.fail(i, bad("%s", lack))
			continue
		}
		in, err := it.input()
		if err != nil {
			c.fail(i, err)
			continue
		}
		c.inputs, c.good = append(c.inputs, in), append(c.good, i)
	}
	return c, nil
}

// input decodes what is in base64.
func (it cryptItem) input() (in kms.TransitItem, err error) {
	if it.Plaintext != nil {
		if in.Plaintext, err = it.Plaintext.bytes, it.Plaintext.err; err != nil {
			return in, bad("%s", err)
		}
	}
	for _, f := range []struct {
		to   *[]byte
		text string
	}{{&in.Context, it.Context}, {&in.AssociatedData, it.AssociatedData}, {&in.Nonce, it.Nonce}} {
		if f.text == "" {
			continue
		}
		if *f.to, err = base64.StdEncoding.DecodeString(f.text); err != nil {
			return in, bad("%s", err)
		}
	}
	for _, p := range []string{it.PaddingScheme, it.EncryptPadding, it.DecryptPadding} {
		if p != "" && p != "oaep" {
			return in, bad("padding_scheme %.40q is not supported: oaep is", p)
		}
	}
	switch {
	case it.KeyVersion < 0:
		return in, bad("requested version for encryption is negative")
	case it.KeyVersion > math.MaxInt32:
		return in, bad("requested version for encryption is higher than the latest key version")
	}
	in.Ciphertext, in.Version = it.Ciphertext, uint32(it.KeyVersion)
	return in, nil
}

func (c *crypt) fail(i int, err error) {
	c.results[i].Error, c.results[i].err = itemText(err), err
}

// take puts what use cases gave to its items.
func (c *crypt) take(results []kms.TransitResult, set func(*cryptResult, kms.TransitResult)) {
	for j, res := range results {
		i := c.good[j]
		if res.Err != nil {
			c.fail(i, res.Err)
			continue
		}
		set(&c.results[i], res)
	}
}

// answer is that of a batch, or of one item. lenient: a batch with bad items is 200 all the same.
func (c *crypt) answer(lenient bool) (*response, error) {
	if c.Batch == nil {
		res := c.results[0]
		if res.err != nil {
			return nil, itemError(res.err)
		}
		return &response{data: single{res.Ciphertext, res.Plaintext, res.KeyVersion, res.Changed}}, nil
	}
	out := &response{data: map[string]any{"batch_results": c.results}}
	out.status, out.warnings = c.status(lenient)
	return out, nil
}

// status is that of a batch: what is the client's mistake counts before what is ours.
func (c *crypt) status(lenient bool) (status int, warnings []string) {
	failed := 0
	for _, res := range c.results {
		if res.err == nil {
			continue
		}
		if failed++; status != http.StatusBadRequest {
			status = refused(itemError(res.err)).status
			if status < http.StatusInternalServerError {
				status = http.StatusBadRequest
			}
		}
	}
	if failed == 0 || lenient && c.Partial == nil {
		return 0, nil
	}
	if c.Partial != nil && failed < len(c.results) {
		if n := *c.Partial; n >= 200 && n <= 599 { // what is below is no end of an answer
			return int(n), nil
		}
		return status, []string{fmt.Sprintf("invalid HTTP response code override from partial_failure_response_code, reverting to %d", status)}
	}
	return status, nil
}

// itemText is what an item failed for, in Vault's words where it has some.
func itemText(err error) string {
	r := refused(itemError(err))
	if len(r.texts) == 0 {
		return http.StatusText(r.status)
	}
	return r.texts[0]
}

// itemError gives what a use of a version failed for Vault's words.
func itemError(err error) error {
	if transit.Text(err) != "" {
		return err // which has its words
	}
	say := func(text transit.Refusal) error {
		return &refusal{http.StatusBadRequest, []string{string(text)}, nil, err}
	}
	switch fault.CodeOf(err) {
	case fault.UnknownVersion:
		return say(transit.TooNew)
	case fault.BelowFloor:
		return say(transit.TooOld)
	case fault.DecryptFailed:
		return say(transit.WrongCipher)
	}
	return err
}

func (c Config) encrypt(ctx context.Context, r *request) (*response, error) {
	in, err := readCrypt(r, func(it cryptItem) string {
		if it.Plaintext == nil {
			return "missing plaintext to encrypt"
		}
		return ""
	})
	if err != nil {
		return nil, err
	}
	ref, created := r.named(), true
	if r.op == opCreate && c.option(r, optionUpsert) != "true" {
		if created, err = c.upsert(ctx, r, in); err != nil {
			return nil, err
		}
	}
	results, err := c.KMS.TransitEncrypt(ctx, r.caller, ref, in.inputs)
	if err != nil {
		return nil, noKey(err)
	}
	in.take(results, func(to *cryptResult, res kms.TransitResult) {
		to.Ciphertext, to.KeyVersion = res.Ciphertext, res.Version
	})
	out, err := in.answer(false)
	if err == nil && !created {
		out.warnings = append(out.warnings, "Attempted creation of the key during the encrypt operation, but it was created beforehand")
	}
	return out, err
}

// upsert makes the key that is encrypted with, derived if there is a context.
func (c Config) upsert(ctx context.Context, r *request, in *crypt) (created bool, err error) {
	spec := kms.TransitSpec{Ref: r.named()}
	spec.Transit.Derived = in.items[0].Context != ""
	if bool(in.Convergent) && !spec.Transit.Derived {
		return false, bad("convergent encryption requires derivation to be enabled, so context is required")
	}
	if in.Convergent {
		spec.Transit.Convergent = transit.ConvergentVersion
	}
	if in.Type != "" {
		if spec.Algorithm, spec.Transit.Spelling, err = transit.ParseType(string(in.Type), ""); err != nil {
			return false, err
		}
	} else {
		spec.Algorithm = suite.AES256GCM
	}
	if !transit.Encrypts(spec.Algorithm) {
		return false, bad("key type %s not supported for this operation", in.Type)
	}
	_, created, err = c.KMS.TransitCreate(stays(ctx), r.caller, spec)
	return created, err
}

func needCiphertext(it cryptItem) string {
	if it.Ciphertext == "" {
		return "missing ciphertext to decrypt"
	}
	return ""
}

func (c Config) decrypt(ctx context.Context, r *request) (*response, error) {
	in, err := readCrypt(r, needCiphertext)
	if err != nil {
		return nil, err
	}
	results, err := c.KMS.TransitDecrypt(ctx, r.caller, r.named(), in.inputs)
	if err != nil {
		return nil, noKey(err)
	}
	in.take(results, func(to *cryptResult, res kms.TransitResult) {
		plain := res.Plaintext
		if plain == nil {
			plain = []byte{} // "" and not null
		}
		to.Plaintext = &plain
	})
	for i := range in.results { // items that failed have one, too
		if in.results[i].Plaintext == nil {
			in.results[i].Plaintext = &[]byte{}
		}
	}
	return in.answer(false)
}

func (c Config) rewrap(ctx context.Context, r *request) (*response, error) {
	in, err := readCrypt(r, needCiphertext)
	if err != nil {
		return nil, err
	}
	results, err := c.KMS.TransitRewrap(ctx, r.caller, r.named(), in.inputs)
	if err != nil {
		return nil, noKey(err)
	}
	in.take(results, func(to *cryptResult, res kms.TransitResult) {
		to.Ciphertext, to.KeyVersion, to.Changed = res.Ciphertext, res.Version, &res.Changed
	})
	return in.answer(true)
}

// dataKeyAnswer has the key in base64, which encoding/json makes of bytes.
type dataKeyAnswer struct {
	Ciphertext string `json:"ciphertext"`
	KeyVersion uint32 `json:"key_version"`
	Plaintext  []byte `json:"plaintext,omitempty"`
}

func (c Config) dataKey(ctx context.Context, r *request) (*response, error) {
	how := r.vars["plaintext"]
	if how != "plaintext" && how != "wrapped" {
		return nil, bad("Invalid path, must be 'plaintext' or 'wrapped'")
	}
	var item kms.TransitItem
	for name, to := range map[string]*[]byte{"context": &item.Context, "associated_data": &item.AssociatedData, "nonce": &item.Nonce} {
		b, err := r.bytes(name)
		if err != nil {
			return nil, err
		}
		*to = b
	}
	if p := r.str("padding_scheme"); p != "" && p != "oaep" {
		return nil, bad("padding_scheme argument invalid: %.40q", p)
	}
	bits, err := r.whole("bits", 256)
	if err != nil || bits != 128 && bits != 256 && bits != 512 {
		return nil, bad("invalid bit length")
	}
	version, err := r.version("key_version", "key")
	if err != nil {
		return nil, err
	}
	if version != nil {
		item.Version = *version
	}
	plain, ciphertext, n, err := c.KMS.TransitDataKey(ctx, r.caller, r.named(), int(bits), item, how == "plaintext")
	if err != nil {
		return nil, itemError(noKey(err))
	}
	defer plain.Destroy()
	out := dataKeyAnswer{Ciphertext: ciphertext, KeyVersion: n}
	if how == "plaintext" {
		out.Plaintext = bytes.Clone(plain.Reveal()) // the answer is written later
	}
	return &response{data: out}, nil
}
