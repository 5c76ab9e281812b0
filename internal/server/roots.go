package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/hsm"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/seal/local"
	"github.com/rotorkms/rotor/internal/seal/pkcs11"
	"github.com/rotorkms/rotor/internal/seal/shamir"
	"github.com/rotorkms/rotor/internal/seal/transit"
	"github.com/rotorkms/rotor/internal/sealing"
	"github.com/rotorkms/rotor/internal/store"
)

// Seal is one root of trust that the server can ask. That it is named here does not make it a member of the wrap set: init and "rotor
// server sealer add" do. Sets of shares and compositions need no entry.
type Seal struct {
	Name    string `yaml:"name"`     // how commands name it
	Type    string `yaml:"type"`     // local, transit or pkcs11
	KeyFile string `yaml:"key_file"` // local: path of the key file

	Address   string `yaml:"address"`    // transit: https://HOST:PORT of a Vault-compatible server
	Mount     string `yaml:"mount"`      // transit: path of the engine; default transit
	Key       string `yaml:"key"`        // transit: keys are called KEY-GENERATION; pkcs11: label of the keys in the token
	TokenFile string `yaml:"token_file"` // transit: file with the token, read for each call
	CAFile    string `yaml:"ca_file"`    // transit: PEM of the authority; default the system's
	Namespace string `yaml:"namespace"`  // transit: of the server, where it has them

	Module  string `yaml:"module"`   // pkcs11: path of the token's library
	Token   string `yaml:"token"`    // pkcs11: label of the token
	PINFile string `yaml:"pin_file"` // pkcs11: file with the PIN of the token's user, read at every login
}

// theLocal is the name and type of the seal that needs no configuration.
const theLocal = "local"

const (
	theTransit = "transit"
	thePKCS11  = "pkcs11"
)

func (c Config) seals() []Seal {
	if len(c.Seals) == 0 {
		return []Seal{{Name: theLocal, Type: theLocal, KeyFile: c.SealKey}}
	}
	return c.Seals
}

// validateSeals names the first seal that is not one.
func (c Config) validateSeals() error {
	seen := map[string]bool{}
	for i, s := range c.Seals {
		at := fmt.Sprintf("seals[%d]", i)
		bad := func(field, hint string) error {
			return fault.New(fault.Invalid, at+"."+field).WithHint("%s", hint)
		}
		switch {
		case !keyring.ValidName(s.Name) || seen[s.Name]:
			return bad("name", "1 to 64 lower-case letters, digits, and inside . _ -, each once")
		case !slices.Contains(sealTypes, s.Type):
			return bad("type", strings.Join(sealTypes, ", "))
		}
		seen[s.Name] = true
		if field, ok := s.complete(); !ok {
			return bad(field, "type "+s.Type+" needs it")
		}
	}
	if c.SealHold < 0 {
		return fault.New(fault.Invalid, "seal_hold").WithHint("not negative; 0: for ever")
	}
	return nil
}

// sealTypes are the kinds of root that a configuration can name.
var sealTypes = []string{theLocal, theTransit, thePKCS11}

// complete names a setting that the type needs and that is empty.
func (s Seal) complete() (missing string, ok bool) {
	need := map[string]string{"key_file": s.KeyFile}
	switch s.Type {
	case theTransit:
		need = map[string]string{"address": s.Address, "key": s.Key, "token_file": s.TokenFile}
	case thePKCS11:
		need = map[string]string{"module": s.Module, "token": s.Token, "key": s.Key, "pin_file": s.PINFile}
	}
	for field, value := range need {
		if value == "" {
			return field, false
		}
	}
	return "", true
}

// partOf tells whether a specification of sealing.New names it.
func (s Seal) partOf(spec string) bool { return slices.Contains(strings.Split(spec, "+"), s.Name) }

// files are the paths in it, for Config.paths.
func (s *Seal) files() []*string {
	return []*string{&s.KeyFile, &s.TokenFile, &s.CAFile, &s.Module, &s.PINFile}
}

// open makes the sealer. Nothing is asked of a root that is elsewhere.
func (s Seal) open() (seal.Sealer, error) {
	switch s.Type {
	case theTransit:
		return transit.New(transit.Config{
			Address: s.Address, Mount: cmp.Or(s.Mount, theTransit), Key: s.Key, TokenFile: s.TokenFile, CAFile: s.CAFile, Namespace: s.Namespace,
		})
	case thePKCS11:
		return pkcs11.New(pkcs11.Config{Config: s.pkcs11(), Key: s.Key})
	}
	return local.Open(s.KeyFile)
}

func (s Seal) pkcs11() hsm.Config { return HSM{s.Module, s.Token, s.PINFile}.config() }

// Tokens are the PKCS #11 tokens that the configuration names, each once.
func (c Config) Tokens() []hsm.Config {
	var all []hsm.Config
	for _, s := range c.Seals {
		if s.Type == thePKCS11 && !slices.Contains(all, s.pkcs11()) {
			all = append(all, s.pkcs11())
		}
	}
	if c.HSM != (HSM{}) && !slices.Contains(all, c.HSM.config()) {
		all = append(all, c.HSM.config())
	}
	return all
}

// openSealers opens what the configuration names. What cannot be opened is in the error and not in the map: any one member of the wrap set
// opens the store.
func openSealers(c Config) (map[string]seal.Sealer, error) {
	named := map[string]seal.Sealer{}
	var failed []error
	for _, s := range c.seals() {
		sealer, err := s.open()
		if err != nil {
			failed = append(failed, err)
			continue
		}
		named[s.Name] = sealer
	}
	if len(failed) == 1 {
		return named, failed[0]
	}
	return named, errors.Join(failed...)
}

// storeSealers are those that the wrap set of a store names and that can be asked here. fault.NotFound, SealWrong, RecordTampered.
func storeSealers(ctx context.Context, c Config, db store.Store) ([]seal.Sealer, error) {
	named, problem := openSealers(c)
	if len(named) == 0 && len(c.Seals) == 0 && fault.CodeOf(problem) != fault.NotFound {
		return nil, problem
	}
	wrapped, err := guard.ReadWraps(ctx, db)
	if err != nil {
		return nil, err
	}
	sealers := sealing.Members(wrapped.Wraps, named).Sealers()
	if len(sealers) == 0 && problem != nil {
		return nil, problem
	}
	return sealers, nil
}

// makeSealers makes what a new cluster is sealed with, by the specifications of sealing.New; key files that are missing are made, and what an
// Init has left that was cut off is taken. The sealers have enough of the shares to open until they are cleared.
func makeSealers(c Config) (sealers []seal.Sealer, shares []shamir.Share, err error) {
	specs := c.InitSeals
	if len(specs) == 0 {
		specs = []string{c.seals()[0].Name}
	}
	for _, s := range c.seals() {
		if s.Type != theLocal || !slices.ContainsFunc(specs, s.partOf) {
			continue
		}
		if _, err := local.Create(s.KeyFile); err != nil && fault.CodeOf(err) != fault.Exists {
			return nil, nil, err
		}
	}
	named, problem := openSealers(c)
	for _, spec := range specs {
		s, people, some, err := sealing.New(spec, named)
		if err != nil && slices.ContainsFunc(c.seals(), func(s Seal) bool { return s.partOf(spec) }) {
			return nil, nil, errors.Join(problem, err) // why a root that it names is not there comes first
		}
		if err != nil {
			return nil, nil, err
		}
		for i := range some {
			if i == some[0].Threshold {
				break
			}
			own, err := shamir.ParseShare(some[i].Text()) // the sealer destroys what it was given
			if err == nil {
				_, err = people.Add("", own)
			}
			if err != nil {
				return nil, nil, err
			}
		}
		sealers, shares = append(sealers, s), append(shares, some...)
	}
	return sealers, shares, nil
}

// sealNames lists the sealers for status.
func sealNames(sealers []seal.Sealer) string {
	var ids []string
	for _, s := range sealers {
		ids = append(ids, s.ID())
	}
	return strings.Join(ids, " ")
}
