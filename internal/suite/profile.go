package suite

import (
	"crypto/ecdh"
	"crypto/fips140"
	"crypto/hpke"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sys/cpu"

	"github.com/rotorkms/rotor/internal/fault"
)

// Policy narrows the table for one server. The zero value allows what the table does, but for AES without hardware.
type Policy struct {
	FIPSOnly    bool // algorithms alone that run in FIPS mode
	CNSA2       bool // algorithms alone of CNSA 2.0: AES-256, ML-KEM-1024, ML-DSA-87, and hashes of 384 bits and more
	SoftwareAES bool // AES also where the processor has no instructions for it, so that its time depends on the key
	noHardware  bool // for tests: as if the processor had none
}

// WithoutHardware is the policy as on a processor without AES instructions, for tests.
func (p Policy) WithoutHardware() Policy {
	p.noHardware = true
	return p
}

// HardwareAES says whether AES runs in constant time here: with the processor's instructions.
func HardwareAES() bool {
	switch runtime.GOARCH {
	case "amd64":
		return cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ && cpu.X86.HasSSE41 && cpu.X86.HasSSSE3
	case "arm64":
		return cpu.ARM64.HasAES && cpu.ARM64.HasPMULL
	case "s390x":
		return cpu.S390X.HasAES && cpu.S390X.HasAESGCM
	}
	return false
}

// Check says whether a server may start: its records are sealed with AES. fault.AlgorithmForbidden.
func (p Policy) Check() error {
	if p.SoftwareAES || HardwareAES() && !p.noHardware {
		return nil
	}
	return fault.New(fault.AlgorithmForbidden, "AES without hardware").WithHint("this processor has no AES instructions, so that time would tell of keys; suites.allow_software_aes: true takes the risk")
}

// Allows says whether new versions of a key with a purpose may use an algorithm. fault.AlgorithmForbidden.
func (p Policy) Allows(a Algorithm, purpose Purpose) error {
	s, err := ForPurpose(a, purpose)
	if err != nil {
		return err
	}
	switch {
	case p.FIPSOnly && !s.FIPS:
		return fault.New(fault.AlgorithmForbidden, "algorithm "+string(a)).WithHint("it does not run in FIPS mode; rotor key algorithms --fips lists those that do")
	case p.CNSA2 && !s.cnsa2():
		return fault.New(fault.AlgorithmForbidden, "algorithm "+string(a)).WithHint("it is not of CNSA 2.0")
	case s.hpke() && !HPKERuns():
		return noHPKE("algorithm " + string(a))
	case s.aes():
		return p.Check()
	}
	return nil
}

// HPKERuns says whether this process can use HPKE. Under GODEBUG=fips140=only the module v1.0.0 has no AES-GCM that HPKE could be made of; v1.26.0
// has. It is tried once.
var HPKERuns = sync.OnceValue(func() bool {
	kem := hpke.DHKEM(ecdh.P256())
	private, err := kem.GenerateKey()
	if err != nil {
		return false
	}
	_, err = hpke.Seal(private.PublicKey(), hpke.HKDFSHA256(), hpke.AES256GCM(), nil, nil)
	return err == nil
})

func noHPKE(what string) error {
	return fault.New(fault.AlgorithmForbidden, what).WithHint("the cryptographic module %s has no HPKE under fips140=only: use a newer module, or fips140=on", fips140.Version())
}

// AllowsDelivery says whether material can be sent to processes that hold it: that goes by HPKE. fault.AlgorithmForbidden.
func (p Policy) AllowsDelivery() error {
	if !HPKERuns() {
		return noHPKE("custody fleet")
	}
	return nil
}

// Default is the algorithm for a purpose when nobody names one; empty where the policy allows none.
func (p Policy) Default(purpose Purpose) Algorithm {
	if a := Default(purpose); a == "" || p.Allows(a, purpose) == nil {
		return a
	}
	for _, s := range table {
		if p.Allows(s.ID, purpose) == nil {
			return s.ID
		}
	}
	return Default(purpose) // refused by name
}

// DefaultInToken is Default of keys in a PKCS #11 token; empty where a token can do nothing for a purpose.
func (p Policy) DefaultInToken(purpose Purpose) Algorithm {
	for _, s := range table {
		if s.Token() && p.Allows(s.ID, purpose) == nil {
			return s.ID
		}
	}
	return ""
}

// Transport is the way in which keys come in and go out when nobody names one.
func (p Policy) Transport() Transport {
	for _, t := range Transports() {
		if p.AllowsTransport(t) == nil {
			return t
		}
	}
	return Transports()[0]
}

// AllowsTransport says whether keys may come in and go out in a way. fault.AlgorithmForbidden.
func (p Policy) AllowsTransport(t Transport) error {
	if !slices.Contains(Transports(), t) {
		return unknownTransport(t)
	}
	if p.FIPSOnly && !t.FIPS() {
		return fault.New(fault.AlgorithmForbidden, "transport "+string(t)).WithHint("it does not run in FIPS mode")
	}
	if t != TransportRSA && !HPKERuns() {
		return noHPKE("transport " + string(t))
	}
	return nil
}

// Token says whether a PKCS #11 token can carry it out as rotor uses it.
func (s Spec) Token() bool {
	return slices.Contains([]Algorithm{
		AES256GCM, AES128GCM, HMACSHA256, HMACSHA384, HMACSHA512, Ed25519, ES256, ES384, ES512,
		PS256, PS256_2k, PS256_4k, PS512_4k, RS256, RS256_2k, RS256_4k, RS512_4k,
	}, s.ID)
}

func (s Spec) hpke() bool {
	return slices.Contains([]Algorithm{HPKEX25519, HPKEP256, HPKEXWing, HPKEMLKEM768P256}, s.ID)
}

func (s Spec) aes() bool { return s.ID == XAES256GCM || s.ID == AES256GCM || s.ID == AES128GCM }

// cnsa2 is NSA's Commercial National Security Algorithm Suite 2.0 as far as rotor has it.
func (s Spec) cnsa2() bool {
	return slices.Contains([]Algorithm{XAES256GCM, AES256GCM, HMACSHA384, HMACSHA512, MLKEM1024, MLDSA87}, s.ID)
}
