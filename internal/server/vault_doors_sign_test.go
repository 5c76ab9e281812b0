package server_test

import (
	"fmt"
	"net/http"

	"pgregory.net/rapid"

	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/transit"
)

// doorBatch is a batch of messages as Vault's door takes it. Some of its items that door refuses by itself, as they lack something or are no base64: rotor's own
// door is asked for the others.
type doorBatch struct {
	d      *doors
	bodies []m
	texts  []doorText
	own    []kms.TransitMessage
	sane   []int // which item each of own is
}

// batch draws one; item makes an item of it.
func (d *doors) batch(item func() (doorText, m, kms.TransitMessage)) *doorBatch {
	b := &doorBatch{d: d}
	for n := rapid.IntRange(1, 4).Draw(d.T, "items"); len(b.bodies) < n; {
		x, body, own := item()
		body["reference"] = fmt.Sprintf("item %d", len(b.bodies))
		switch rapid.IntRange(0, 9).Draw(d.T, "insane") {
		case 0:
			delete(body, "input")
		case 1:
			body["input"] = "%%"
		default:
			b.own, b.sane = append(b.own, own), append(b.sane, len(b.bodies))
		}
		b.bodies, b.texts = append(b.bodies, body), append(b.texts, x)
	}
	return b
}

// ask goes through Vault's door with the batch and what the request says of all of it.
func (b *doorBatch) ask(path string, all m) answer {
	body := m{"batch_input": b.bodies}
	for name, value := range all {
		body[name] = value
	}
	return b.d.ask("POST", path, body)
}

// compare compares what came out of both doors, and calls f with the items that both did.
func (b *doorBatch) compare(a answer, out []kms.TransitResult, err error, f func(x doorText, got m, own kms.TransitResult)) {
	d := b.d
	d.Helper()
	if err != nil {
		d.agree(a, err)
		return
	}
	results := a.batch()
	if a.status != http.StatusOK || len(results) != len(b.bodies) || len(out) != len(b.own) {
		d.fatal("%d items, %d and %d results: %d %s", len(b.bodies), len(results), len(out), a.status, a.text)
	}
	asked := map[int]kms.TransitResult{}
	for j, i := range b.sane {
		asked[i] = out[j]
	}
	for i, got := range results {
		if got["reference"] != b.bodies[i]["reference"] {
			d.fatal("item %d is called %v", i, got["reference"])
		}
		text, _ := got["error"].(string)
		own, sane := asked[i]
		if !sane {
			if text == "" || got["valid"] == true || got["hmac"] != nil || got["signature"] != nil {
				d.fatal("item %d: %v is answered with %v", i, b.bodies[i], got)
			}
			continue
		}
		status := http.StatusOK
		if text != "" {
			status = http.StatusBadRequest
		}
		if why := disagrees(status, text, own.Err); why != "" {
			d.fatal("item %d: %s: %v, own %v", i, why, got, own.Err)
		}
		if own.Err == nil {
			f(b.texts[i], got, own)
		}
	}
}

func (d *doors) hmacBatch() {
	k, i := d.key(), d.side()
	all, body, own := d.message()
	delete(body, "input")
	b := d.batch(func() (doorText, m, kms.TransitMessage) {
		x, it := all, own
		x.plain = rapid.SampledFrom(doorPlains).Draw(d.T, "input")
		it.Input = []byte(x.plain)
		return x, m{"input": b64(x.plain)}, it
	})
	a := b.ask("hmac/"+k.names[i], body)
	out, err := d.kms.TransitHMAC(d.vault.t.Context(), d.caller, d.ref(k.names[1-i]), b.own)
	b.compare(a, out, err, func(x doorText, got m, own kms.TransitResult) {
		x.made(i, fmt.Sprint(got["hmac"]), own.Ciphertext)
		k.sums = append(k.sums, x)
	})
}

// made notes what each door made.
func (x *doorText) made(i int, vault, own string) {
	x.of[i], x.of[1-i], x.sound = vault, own, true
}

func (d *doors) verifyHMACBatch() {
	k, i := d.keyThat(func(k *doorKey) bool { return len(k.sums) > 0 }), d.side()
	all, _ := d.text(k.sums)
	h, _ := transit.ParseHash(all.hash)
	b := d.batch(func() (doorText, m, kms.TransitMessage) {
		x, _ := d.text(k.sums)
		return x, m{"input": b64(x.plain), "hmac": x.of[i]}, kms.TransitMessage{Input: []byte(x.plain), Hash: h, Text: x.of[1-i]}
	})
	a := b.ask("verify/"+k.names[i], m{"hash_algorithm": all.hash})
	out, err := d.kms.TransitVerifyHMAC(d.vault.t.Context(), d.caller, d.ref(k.names[1-i]), b.own)
	b.compare(a, out, err, func(x doorText, got m, own kms.TransitResult) { d.valid(x, x.hash == all.hash, got, own) })
}

// ofItem is what an item of a batch has of its own, beside what the request says of all: what it is about, and its context.
func (x doorText) ofItem(body m, own *kms.TransitMessage) {
	body["input"], own.Input = b64(x.plain), []byte(x.plain)
	own.Options.Context = nil
	if x.context != "" {
		body["context"], own.Options.Context = b64(x.context), []byte(x.context)
	}
}

func (d *doors) signBatch() {
	k, i := d.keyThat(func(k *doorKey) bool { return transit.Signs(k.kind.algorithm) }), d.side()
	all, body, own := d.unsigned(k)
	delete(body, "input")
	delete(body, "context")
	b := d.batch(func() (doorText, m, kms.TransitMessage) {
		x, item, it := all, m{}, own
		x.plain = rapid.SampledFrom(doorPlains).Draw(d.T, "input")
		if d.coin("other context", 6) {
			x.context = rapid.SampledFrom([]string{"", "c", "d"}).Draw(d.T, "context")
		}
		x.ofItem(item, &it)
		return x, item, it
	})
	a := b.ask("sign/"+k.names[i], body)
	out, err := d.kms.TransitSign(d.vault.t.Context(), d.caller, d.ref(k.names[1-i]), b.own)
	b.compare(a, out, err, func(x doorText, got m, own kms.TransitResult) {
		if got["key_version"] != float64(own.Version) {
			d.fatal("version %v and %d", got["key_version"], own.Version)
		}
		x.made(i, fmt.Sprint(got["signature"]), own.Ciphertext)
		k.sig = append(k.sig, x)
	})
}

func (d *doors) verifyBatch() {
	k, i := d.keyThat(func(k *doorKey) bool { return len(k.sig) > 0 }), d.side()
	all, _ := d.text(k.sig)
	body, own := all.checked(1 - i)
	delete(body, "signature")
	delete(body, "input")
	delete(body, "context")
	b := d.batch(func() (doorText, m, kms.TransitMessage) {
		x, item, it := all, m{}, own
		if !d.coin("the same", 3) {
			x, _ = d.text(k.sig)
		}
		x.ofItem(item, &it)
		item["signature"], it.Text = x.of[i], x.of[1-i]
		return x, item, it
	})
	a := b.ask("verify/"+k.names[i], body)
	out, err := d.kms.TransitVerify(d.vault.t.Context(), d.caller, d.ref(k.names[1-i]), b.own)
	b.compare(a, out, err, func(x doorText, got m, own kms.TransitResult) {
		d.valid(x, x.hash == all.hash && fmt.Sprint(x.with) == fmt.Sprint(all.with), got, own)
	})
}
