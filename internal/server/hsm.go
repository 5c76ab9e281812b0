package server

import (
	"path/filepath"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/hsm"
)

// HSM is the PKCS #11 token in which keys of custody hsm are made and used.
type HSM struct {
	Module  string `yaml:"module"`   // path of the token's library
	Token   string `yaml:"token"`    // label of the token
	PINFile string `yaml:"pin_file"` // file with the PIN of the token's user, read at every login
}

func (h HSM) validate() error {
	if h == (HSM{}) {
		return nil
	}
	for field, value := range map[string]string{"module": h.Module, "token": h.Token, "pin_file": h.PINFile} {
		if value == "" {
			return fault.New(fault.Invalid, "hsm."+field).WithHint("module, token and pin_file go together")
		}
	}
	return nil
}

// config has a path of the module that no search path of the loader changes.
func (h HSM) config() hsm.Config {
	c := hsm.Config{Module: h.Module, Token: h.Token, PINFile: h.PINFile}
	if abs, err := filepath.Abs(h.Module); err == nil && h.Module != "" {
		c.Module = abs
	}
	return c
}
