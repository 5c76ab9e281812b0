package movein

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/suite"
	"github.com/rotorkms/rotor/internal/transit"
)

// maxKeys bounds the keys of one engine.
const maxKeys = 100_000

// Way is how a key moves.
type Way string

// The ways.
const (
	Backup    Way = "backup"     // all versions, in the source's own form
	Export    Way = "export"     // all versions that the source does not hold back by its min_decryption_version
	Reencrypt Way = "re-encrypt" // the source lets no version out: what it protected is read there and protected here
	There     Way = "there"      // a key of the name is here: it is proved to be the same
	Left      Way = "left"       // rotor has no keys of its type
)

// keptBack is why a key is not copied.
const keptBack = "the source lets no version out: neither exportable nor allow_plaintext_backup"

// Item is what is planned for one key.
type Item struct {
	Key      string
	Type     string
	Versions int // that move; of re-encrypt those that there are
	Way      Way
	Why      string
	Steps    []string // of re-encrypt: what to do, in order, at both ends

	known info
}

// info is what a server tells of a key.
type info struct {
	Type            string                     `json:"type"`
	Set             string                     `json:"parameter_set"`
	Latest          int                        `json:"latest_version"`
	MinAvailable    int                        `json:"min_available_version"`
	MinDecryption   int                        `json:"min_decryption_version"`
	MinEncryption   int                        `json:"min_encryption_version"`
	Exportable      bool                       `json:"exportable"`
	PlaintextBackup bool                       `json:"allow_plaintext_backup"`
	Deletion        bool                       `json:"deletion_allowed"`
	Derived         bool                       `json:"derived"`
	KDF             string                     `json:"kdf"`
	Convergent      bool                       `json:"convergent_encryption"`
	ConvergentBy    int                        `json:"convergent_encryption_version"`
	Imported        bool                       `json:"imported_key"`
	Rotation        bool                       `json:"imported_key_allow_rotation"`
	AutoRotate      json.RawMessage            `json:"auto_rotate_period"`
	Keys            map[string]json.RawMessage `json:"keys"`
}

func (i info) algorithm() (suite.Algorithm, error) {
	a, _, err := transit.ParseType(i.Type, i.Set)
	return a, err
}

// oldest is the oldest version that clients of the source can use.
func (i info) oldest() int { return max(1, i.MinAvailable, i.MinDecryption) }

// autoRotate is in seconds, or a duration as Go writes it.
func (i info) autoRotate() time.Duration {
	s := string(bytes.Trim(i.AutoRotate, `"`))
	if d, err := time.ParseDuration(s); err == nil {
		return d
	}
	n, _ := strconv.ParseInt(s, 10, 64) // absent: never
	return time.Duration(n) * time.Second
}

// created is when a version was made, in one of the forms that servers tell it.
func (i info) created(version string) time.Time {
	var seconds int64
	if json.Unmarshal(i.Keys[version], &seconds) == nil {
		return time.Unix(seconds, 0).UTC()
	}
	var told struct {
		Time time.Time `json:"creation_time"`
	}
	_ = json.Unmarshal(i.Keys[version], &told) // then it is not known
	return told.Time
}

// Move is a move of keys from one end to the other.
type Move struct{ From, To *Server }

// Plan looks at the keys that are named, or else at all of the source. fault.NotFound for a name that the source does not have, and what asking it
// fails with.
func (m Move) Plan(ctx context.Context, names []string) ([]Item, error) {
	if len(names) == 0 {
		var listed struct{ Keys []string }
		if err := m.From.get(ctx, "LIST", &listed, "keys"); err != nil && !errors.Is(err, errNothing) {
			return nil, err
		}
		names = listed.Keys
	}
	if len(names) > maxKeys {
		return nil, fault.New(fault.TooLarge, "keys of the source").WithHint("at most %d at a time: name them with --key", maxKeys)
	}
	slices.Sort(names)
	var plan []Item
	for _, name := range slices.Compact(names) {
		item, err := m.plan(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("look at key %s: %w", name, err)
		}
		plan = append(plan, item)
	}
	return plan, nil
}

func (m Move) plan(ctx context.Context, name string) (Item, error) {
	item := Item{Key: name}
	k := &item.known
	err := m.From.get(ctx, "GET", k, "keys", name)
	if errors.Is(err, errNothing) {
		return item, fault.New(fault.NotFound, "key "+name).WithHint("the source has no key of the name in %s/", m.From.Mount)
	}
	if err != nil {
		return item, err
	}
	item.Type, item.Versions = k.Type, k.Latest-max(1, k.MinAvailable)+1
	var here info
	err = m.To.get(ctx, "GET", &here, "keys", name)
	if err != nil && !errors.Is(err, errNothing) {
		return item, err
	}
	_, unknown := k.algorithm()
	kept := !k.Exportable && !k.Imported // so no key that is elsewhere can be the same
	switch {
	case unknown != nil:
		item.Way, item.Versions, item.Why = Left, 0, "rotor has no keys of this type"
	case err == nil && kept && here.Type == k.Type:
		item.Way, item.Why = Reencrypt, keptBack+"; the key of its name here is for what is encrypted or signed from now on"
		item.Steps = m.steps(name, *k)[1:]
	case err == nil && (here.Type != k.Type || here.Latest < k.Latest):
		item.Way, item.Versions, item.Why = Left, 0, fmt.Sprintf("another key has the name here: %s with %d versions", here.Type, here.Latest)
	case err == nil:
		item.Way, item.Why = There, "a key of this name is here already"
	case k.Exportable && k.PlaintextBackup:
		item.Way = Backup
	case k.Exportable:
		item.Way = Export
		if older := k.MinDecryption - max(1, k.MinAvailable); older > 0 {
			item.Versions -= older
			item.Why = fmt.Sprintf("%d older versions stay: the source exports none below min_decryption_version %d", older, k.MinDecryption)
		}
	default:
		item.Way, item.Why = Reencrypt, keptBack
		item.Steps = m.steps(name, *k)
	}
	return item, nil
}

// steps are those of a key that cannot be copied.
func (m Move) steps(name string, k info) []string {
	a, _ := k.algorithm() // it was asked before
	there, here := m.From.Mount+"/", m.To.Mount+"/"
	made := fmt.Sprintf("make it here: write %skeys/%s type=%s", here, name, k.Type)
	if k.Derived {
		made += " derived=true"
	}
	if k.Convergent {
		made += " convergent_encryption=true"
	}
	steps := []string{made}
	switch {
	case transit.Encrypts(a):
		steps = append(steps,
			fmt.Sprintf("let writers encrypt here, and readers ask %sdecrypt/%s of the source for what is not moved yet", there, name),
			fmt.Sprintf("move each ciphertext: %sdecrypt/%s at the source, %sencrypt/%s here (batch_input, with the same context and associated_data), and replace it where it is kept", there, name, here, name),
			"when no ciphertext of the source is left, take its clients' rights to decrypt away there",
		)
	case transit.Signs(a):
		steps = append(steps,
			"publish the public half of the key that was made here beside the one of the source, and wait until verifiers have both",
			"let signers sign here; what the source signed is verified with its public half, which needs no server",
		)
	}
	return append(steps, fmt.Sprintf("HMACs of %s are verified at the source until their messages have new ones: nobody can compute them elsewhere", name))
}
