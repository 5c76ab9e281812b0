package main

import (
	"context"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/server"
	"github.com/rotorkms/rotor/internal/suite"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

const rules = `version: 1
rules:
  - {name: administrators, callers: ["admin/*"], actions: ["*"], keys: {namespace: "**", names: ["**"]}}
  - {name: fleet, callers: ["spiffe://rotor.local/instance/*"], actions: [deliver, encrypt, decrypt], keys: {namespace: default, names: ["*"]}}
`

const (
	fieldSize  = 256
	fieldCalls = 2000 // of a round: short, so that some rounds are not interrupted, and many, for a median
)

// fields measures messages of 256 B through the SDK, in a process that holds the keys, against bare XAES-256-GCM with a random nonce and
// associated data of the same length.
func fields(ctx context.Context, o options) (rows []Row, err error) {
	client, stop, err := join(ctx, o.dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	b, err := newBare()
	if err != nil {
		return nil, err
	}
	bareEncrypt, bareDecrypt := calls("bare encrypt", b.encrypt), calls("bare decrypt", b.decrypt)
	all := []*measured{bareEncrypt}
	var sealing, opening []*measured
	var allocated []Row
	for _, mode := range []string{"block", "fence"} {
		f, err := newField(ctx, client.Key(mode))
		if err != nil {
			return nil, err
		}
		sealing, opening = append(sealing, calls(mode+" encrypt", f.encrypt)), append(opening, calls(mode+" decrypt", f.decrypt))
		allocated = append(allocated, f.allocations(mode)...)
	}
	all = append(append(append(all, sealing...), bareDecrypt), opening...) // what is compared stands together
	if err := takeTurns(ctx, 100*o.rounds, all...); err != nil {
		return nil, err
	}
	rows = []Row{
		within("field_encrypt_block", *sealing[0], *bareEncrypt, 1.15), within("field_encrypt_fence", *sealing[1], *bareEncrypt, 1.7),
		within("field_decrypt_block", *opening[0], *bareDecrypt, 1.15), within("field_decrypt_fence", *opening[1], *bareDecrypt, 1.7),
	}
	return append(rows, allocated...), nil
}

func calls(name string, f func() error) *measured {
	return &measured{name: name, work: fieldCalls, unit: "/s", f: func() error {
		for range fieldCalls {
			if err := f(); err != nil {
				return err
			}
		}
		return nil
	}}
}

// within is a row of nanoseconds for one call, whose ratio to bare XAES must not pass a bar.
func within(name string, m, bare measured, bar float64) Row {
	ns := func(m measured) float64 { return 1e9 / m.rate() }
	ratio := medianRatio(m, bare)
	return Row{name, ns(m), "ns", "bare XAES-256-GCM, median of rounds", ratio, "<= " + map[float64]string{1.15: "1.15", 1.7: "1.7"}[bar], ratio <= bar, m.noise()}
}

// medianRatio is the median of the rounds' ratios: the two ran one after the other in each, so what disturbs a round disturbs both.
func medianRatio(m, bare measured) float64 {
	ratios := make([]float64, len(m.times))
	for i := range ratios {
		ratios[i] = float64(m.times[i]) / float64(bare.times[i])
	}
	slices.Sort(ratios)
	return ratios[len(ratios)/2]
}

// bare is XAES-256-GCM without rotor.
type bare struct {
	aead                     cipher.AEAD
	plain, data, buf, sealed []byte
	out                      []byte
}

func newBare() (*bare, error) {
	aead, err := suite.NewXAES(secret.Random(32))
	b := &bare{aead: aead, plain: noise(fieldSize), data: noise(120), buf: make([]byte, 0, 2*fieldSize), out: make([]byte, 0, 2*fieldSize)}
	if err == nil {
		err = b.encrypt()
	}
	return b, err
}

func (b *bare) encrypt() error {
	out := b.buf[:24]
	rand.Read(out)
	b.sealed = b.aead.Seal(out, out, b.plain, b.data)
	return nil
}

func (b *bare) decrypt() error {
	_, err := b.aead.Open(b.out, b.sealed[:24], b.sealed[24:], b.data)
	return err
}

// field is a message of a key of the fleet.
type field struct {
	ctx                 context.Context
	key                 *rotor.Key
	plain, message, buf []byte
	parts               []rotor.Part
}

func newField(ctx context.Context, key *rotor.Key) (*field, error) {
	f := &field{ctx: ctx, key: key, plain: noise(fieldSize), buf: make([]byte, 0, 2*fieldSize), parts: []rotor.Part{{Label: "id", Value: []byte("0123456789")}}}
	var err error
	f.message, err = key.Encrypt(ctx, f.plain, f.parts...)
	return f, err
}

func (f *field) encrypt() error {
	_, err := f.key.AppendEncrypt(f.ctx, f.buf, f.plain, f.parts...)
	return err
}

func (f *field) decrypt() error {
	_, err := f.key.AppendDecrypt(f.ctx, f.buf, f.message, f.parts...)
	return err
}

func (f *field) allocations(mode string) []Row {
	count := func(call func() error) float64 { return testing.AllocsPerRun(1000, func() { _ = call() }) } // calls were checked before
	return []Row{
		atMost("field_encrypt_append_"+mode, count(f.encrypt), "allocations", 2),
		atMost("field_decrypt_append_"+mode, count(f.decrypt), "allocations", 2),
		atMost("field_encrypt_"+mode, count(func() error { _, err := f.key.Encrypt(f.ctx, f.plain, f.parts...); return err }), "allocations", 3),
		atMost("field_decrypt_"+mode, count(func() error { _, err := f.key.Decrypt(f.ctx, f.message, f.parts...); return err }), "allocations", 3),
	}
}

// join starts a server in this process and joins one instance, which holds a key of each mode.
func join(ctx context.Context, dir string) (client *rotor.Client, stop func() error, err error) {
	c := server.Config{Dir: filepath.Join(dir, "server"), Listen: "127.0.0.1:0", Rules: filepath.Join(dir, "rules.yaml"), Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	if err := os.WriteFile(c.Rules, []byte(rules), 0o600); err != nil {
		return nil, nil, err
	}
	made, err := server.Init(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	s, err := server.Start(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	if client, err = instance(ctx, dir, made.AdminDir, s.Address()); err != nil {
		return nil, nil, errors.Join(err, s.Close())
	}
	return client, func() error { return errors.Join(client.Close(), s.Close()) }, nil
}

func instance(ctx context.Context, dir, admin, address string) (*rotor.Client, error) {
	a, err := rotor.Dial(ctx, rotor.Config{Identity: admin, Address: address})
	if err != nil {
		return nil, err
	}
	defer func() { _ = a.Close() }() // only asked
	for _, mode := range []string{"block", "fence"} {
		k := &rotorv1.Key{Name: mode, Purpose: "encrypt", Custody: "fleet", Rotation: &rotorv1.Rotation{Silence: mode}}
		if _, err := a.Admin().Keys.Create(ctx, connect.NewRequest(&rotorv1.CreateRequest{Key: k})); err != nil {
			return nil, err
		}
	}
	invited, err := a.Admin().Fleet.Invite(ctx, connect.NewRequest(&rotorv1.InviteRequest{Name: "bench"}))
	if err != nil {
		return nil, err
	}
	return rotor.Dial(ctx, rotor.Config{Identity: filepath.Join(dir, "bench"), JoinToken: invited.Msg.GetToken(), Keys: []string{"block", "fence"}})
}
