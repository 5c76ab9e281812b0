package server

import (
	"crypto/fips140"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/suite"
)

// The profiles of algorithms.
const (
	SuitesFIPS  = "fips"
	SuitesCNSA2 = "cnsa2"
)

// Suites narrows which algorithms new key versions may have.
type Suites struct {
	Profile  string `yaml:"profile"`            // empty: the whole table; fips; cnsa2
	Software bool   `yaml:"allow_software_aes"` // AES also on a processor without instructions for it, where its time tells of keys
}

// policy is the profile as kms takes it.
func (s Suites) policy() suite.Policy {
	return suite.Policy{FIPSOnly: s.Profile == SuitesFIPS, CNSA2: s.Profile == SuitesCNSA2, SoftwareAES: s.Software}
}

// validate checks the profile against the process. fault.Invalid, AlgorithmForbidden.
func (s Suites) validate() error {
	switch s.Profile {
	case "", SuitesCNSA2:
	case SuitesFIPS:
		if !fips140.Enabled() {
			return fault.New(fault.Invalid, "suites.profile").WithHint("fips needs a process in FIPS mode: start rotor with GODEBUG=fips140=on or only, built with GOFIPS140 for a validated module")
		}
	default:
		return fault.New(fault.Invalid, "suites.profile").WithHint("fips or cnsa2")
	}
	return s.policy().Check()
}
