package movein

import (
	"context"
	"encoding/base64"
	"slices"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/transit"
)

// This file proves every version. The target protects only under the latest version of what came in, so what it would make under an older one is made
// here, with the material that was just copied: it has to be read by the source, whose material it is, and by the target, which has it now.

// atOnce is how many versions one request is about.
const atOnce = 500

// results are what became of a batch.
type results struct {
	Items []struct {
		Plaintext, Ciphertext string
		Valid                 bool
	} `json:"batch_results"`
}

// proveEach has both ends read what each version makes here, as far as clients of the source can use it. fault.RecordTampered.
func (m Move) proveEach(ctx context.Context, item Item, content transit.Backup) error {
	var open []transit.BackupVersion
	for _, v := range content.Versions {
		if int(v.Number) >= item.known.oldest() {
			open = append(open, v)
		}
	}
	for versions := range slices.Chunk(open, atOnce) {
		made, err := m.make(content, versions)
		if err != nil {
			return err
		}
		for _, end := range []*Server{m.From, m.To} {
			if err := made.read(ctx, end, item, versions); err != nil {
				return err
			}
		}
	}
	return nil
}

// made is what versions made, as the items of batches.
type made struct {
	sample
	texts, signatures, sums []map[string]any
}

func (m Move) make(content transit.Backup, versions []transit.BackupVersion) (out made, err error) {
	out.sample = newSample()
	for _, v := range versions {
		if err := out.add(content, v); err != nil {
			return out, err
		}
	}
	return out, nil
}

// add makes an item of each kind under one version. One whose private half is not known, or whose convergent construction takes the client's nonce or is
// refused by its own engine by now, makes those that it can.
func (d *made) add(content transit.Backup, v transit.BackupVersion) error {
	settings := content.Settings
	settings.Convergent = v.Convergent
	k, err := transit.New(content.Algorithm, v.Number, v.Bundle, v.Public, settings)
	if err != nil {
		return err
	}
	defer k.Destroy()
	input, of := []byte(d.plain), []byte(nil)
	if settings.Derived {
		of = []byte(d.context)
	}
	item := func(more map[string]any) map[string]any {
		more["input"] = base64.StdEncoding.EncodeToString(input)
		if settings.Derived {
			more["context"] = base64.StdEncoding.EncodeToString(of)
		}
		return more
	}
	if transit.Encrypts(content.Algorithm) && k.HasPrivate() && (v.Convergent == 0 || v.Convergent == transit.ConvergentVersion) {
		text, err := k.Encrypt(input, transit.Params{Context: of})
		if err != nil {
			return err
		}
		d.texts = append(d.texts, item(map[string]any{"ciphertext": text}))
	}
	if transit.Signs(content.Algorithm) && k.HasPrivate() {
		text, _, err := k.Sign(input, transit.SignOptions{Hash: transit.SHA256, Salt: transit.SaltAuto, Marshaling: transit.ASN1, Context: of})
		if err != nil {
			return err
		}
		d.signatures = append(d.signatures, item(map[string]any{"signature": text}))
	}
	text, err := k.HMAC(transit.SHA256, input)
	if err != nil {
		return err
	}
	d.sums = append(d.sums, item(map[string]any{"hmac": text}))
	return nil
}

// read has one end read all of it.
func (d made) read(ctx context.Context, end *Server, item Item, versions []transit.BackupVersion) error {
	for _, b := range []struct {
		verb  string
		items []map[string]any
	}{{"decrypt", d.texts}, {"verify", d.signatures}, {"verify", d.sums}} {
		if len(b.items) == 0 {
			continue
		}
		var out results
		err := end.post(ctx, map[string]any{"batch_input": b.items}, &out, b.verb, item.Key)
		if code := fault.CodeOf(err); code != "" && code != fault.Invalid {
			return err
		}
		bad := err != nil || len(out.Items) != len(b.items)
		for _, r := range out.Items {
			bad = bad || (b.verb == "decrypt" && r.Plaintext != base64.StdEncoding.EncodeToString([]byte(d.plain))) || (b.verb == "verify" && !r.Valid)
		}
		if bad {
			return fault.New(fault.RecordTampered, "key "+item.Key).
				WithHint("versions %s: what their own material makes, the %s does not know (%s)", keyring.Ranges(numbers(versions)), end.What, b.verb)
		}
	}
	return nil
}

func numbers(versions []transit.BackupVersion) func(func(uint32) bool) {
	return func(yield func(uint32) bool) {
		for _, v := range versions {
			if !yield(v.Number) {
				return
			}
		}
	}
}

// readsEach has the target read what the source encrypts under each version that it still encrypts with. One that refuses to is not asked. fault.RecordTampered.
func (m Move) readsEach(ctx context.Context, item Item) error {
	a, err := item.known.algorithm()
	if err != nil || !transit.Encrypts(a) {
		return err
	}
	s := newSample()
	for from := max(item.known.oldest(), item.known.MinEncryption); from <= item.known.Latest; from += atOnce {
		var ask, read []map[string]any
		for v := from; v < from+atOnce && v <= item.known.Latest; v++ {
			ask = append(ask, item.known.params(s, map[string]any{"plaintext": s.plain, "key_version": v}))
		}
		var texts, plain results
		if err := m.From.post(ctx, map[string]any{"batch_input": ask}, &texts, "encrypt", item.Key); fault.CodeOf(err) == fault.Invalid {
			continue
		} else if err != nil {
			return err
		}
		for _, r := range texts.Items {
			read = append(read, item.known.params(s, map[string]any{"ciphertext": r.Ciphertext}))
		}
		err := m.To.post(ctx, map[string]any{"batch_input": read}, &plain, "decrypt", item.Key)
		if code := fault.CodeOf(err); code != "" && code != fault.Invalid {
			return err
		}
		bad := err != nil || len(plain.Items) != len(ask)
		for _, r := range plain.Items {
			bad = bad || r.Plaintext != s.plain
		}
		if bad {
			return fault.New(fault.RecordTampered, "key "+item.Key).WithHint("versions %d and later: what the source encrypts, the target does not read", from)
		}
	}
	return nil
}

// params adds what a derived key needs.
func (i info) params(s sample, more map[string]any) map[string]any {
	if i.Derived {
		more["context"] = s.context
	}
	return more
}
