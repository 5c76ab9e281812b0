package server

import (
	"crypto/x509"
	"os"
	"time"

	"github.com/rotorkms/rotor/internal/authn"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/oidc"
)

// Auth says who may come in besides instances and administrators. All of it is read again at SIGHUP.
type Auth struct {
	SessionLife  time.Duration `yaml:"session_life"` // absolute limit of a session; default 12 h
	SessionIdle  time.Duration `yaml:"session_idle"` // how long a session lives without use; default 1 h
	Failures     int           `yaml:"failures"`     // in a row, after which a credential is locked; default 20, at most 100
	Issuers      []IssuerAuth  `yaml:"issuers"`
	Certificates []CAAuth      `yaml:"certificates"`
}

// IssuerAuth takes JSON Web Tokens of an OpenID Connect issuer.
type IssuerAuth struct {
	Name       string            `yaml:"name"`       // in callers' names: token/NAME/SUBJECT
	URL        string            `yaml:"url"`        // what the tokens' iss says
	Audiences  []string          `yaml:"audiences"`  // one of them stands in aud
	Kind       string            `yaml:"kind"`       // kubernetes, github, gitlab, or empty: which attributes there are beside those below
	Subjects   []string          `yaml:"subjects"`   // patterns of sub; default any
	Attributes map[string]string `yaml:"attributes"` // attribute -> claim, by name or JSON Pointer
	Require    map[string]string `yaml:"require"`    // attribute -> pattern that it has to fit
	Keys       string            `yaml:"keys"`       // URL of the key set; default: by discovery at url
	CAFile     string            `yaml:"ca_file"`    // PEM; default: the system's authorities
	BearerFile string            `yaml:"bearer_file"`
	Skew       time.Duration     `yaml:"skew"`     // between the clocks; default 1 m, at most 2 m
	MaxLife    time.Duration     `yaml:"max_life"` // of a token; default 24 h
	Session    time.Duration     `yaml:"session"`  // life of its sessions; default 1 h
}

// CAAuth takes client certificates of an authority.
type CAAuth struct {
	Name     string   `yaml:"name"`     // in callers' names: certificate/NAME/IDENTITY
	CAFile   string   `yaml:"ca_file"`  // PEM
	CRLFile  string   `yaml:"crl_file"` // PEM or DER; default: no list is asked
	Match    []string `yaml:"match"`    // patterns of the identity; default any
	Identity string   `yaml:"identity"` // spiffe (default) or subject
}

// paths are the files that a configuration file may name relative to itself, and that a server which has shut itself in may still read.
func (c *Config) paths() []*string {
	out := []*string{&c.Dir, &c.Rules, &c.SealKey, &c.Anchor, &c.Public.Certificate, &c.Public.Key, &c.HSM.Module, &c.HSM.PINFile, &c.Socket}
	for i := range c.Seals {
		out = append(out, c.Seals[i].files()...)
	}
	for i := range c.Auth.Issuers {
		out = append(out, &c.Auth.Issuers[i].CAFile, &c.Auth.Issuers[i].BearerFile)
	}
	for i := range c.Auth.Certificates {
		out = append(out, &c.Auth.Certificates[i].CAFile, &c.Auth.Certificates[i].CRLFile)
	}
	return out
}

// access builds what Auth says. fault.Invalid, NotFound.
func (c Config) access() (authn.Access, error) {
	out := authn.Access{SessionLife: c.Auth.SessionLife, SessionIdle: c.Auth.SessionIdle, Failures: c.Auth.Failures}
	for _, i := range c.Auth.Issuers {
		built, err := i.build()
		if err != nil {
			return out, err
		}
		out.Issuers = append(out.Issuers, built)
	}
	for _, e := range c.Auth.Certificates {
		built, err := authn.NewClientCA(authn.CAConfig{Name: e.Name, CAFile: e.CAFile, CRLFile: e.CRLFile, Match: e.Match, Identity: e.Identity})
		if err != nil {
			return out, err
		}
		out.Certificates = append(out.Certificates, built)
	}
	return out, nil
}

// Check says what is wrong with an issuer's configuration. fault.Invalid, NotFound.
func (i IssuerAuth) Check() error {
	_, err := i.build()
	return err
}

func (i IssuerAuth) build() (*oidc.Issuer, error) {
	var cas *x509.CertPool
	if i.CAFile != "" {
		b, err := os.ReadFile(i.CAFile)
		if err != nil {
			return nil, fault.Wrap(fault.NotFound, i.CAFile, err)
		}
		if cas = x509.NewCertPool(); !cas.AppendCertsFromPEM(b) {
			return nil, fault.New(fault.Invalid, i.CAFile).WithHint("it holds no certificate in PEM")
		}
	}
	return oidc.New(oidc.Config{
		Name: i.Name, URL: i.URL, Audiences: i.Audiences, Kind: i.Kind, Subjects: i.Subjects, Attributes: i.Attributes, Require: i.Require, Keys: i.Keys,
		CAs: cas, BearerFile: i.BearerFile, Skew: i.Skew, MaxLife: i.MaxLife, Session: i.Session,
	})
}
