package etcd

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Scheme begins the URL of a store in etcd.
const Scheme = "etcd://"

// Bounds of what a URL may say.
const (
	maxEndpoints   = 16
	maxPrefixBytes = 128 // before each key of a commit, whose request has 1.5 MiB at etcd
	maxHistory     = 1 << 40
)

// Config says which etcd to use, and where in it.
type Config struct {
	Endpoints    []string      // host:port of the members, at least one
	Prefix       string        // of every key, without slashes at its ends; default "rotor". One cluster of rotor has one prefix of its own
	Plaintext    bool          // no TLS although an endpoint is not on this machine
	CAFile       string        // PEM, of those who sign the members' certificates; default: the system's
	CertFile     string        // PEM, our certificate; read again at each connection
	KeyFile      string        // PEM, its key
	User         string        // of etcd's own authentication; default: the certificate's common name, or nobody
	PasswordFile string        // its first line is the password
	Timeout      time.Duration // of one read or commit, whatever happens; default 5 s
	History      int           // how many revisions of the cluster are kept for watches; default 100,000; negative: etcd compacts itself
	CompactEvery time.Duration // how often each server looks whether there is too much history; default 5 min
	Log          *slog.Logger  // default: slog.Default
}

func (c Config) defaults() Config {
	if c.Prefix == "" {
		c.Prefix = "rotor"
	}
	if c.Timeout == 0 {
		c.Timeout = 5 * time.Second
	}
	if c.History == 0 {
		c.History = 100_000
	}
	return c
}

func (c Config) validate() error {
	switch {
	case len(c.Endpoints) == 0 || len(c.Endpoints) > maxEndpoints:
		return fmt.Errorf("name 1 to %d endpoints host:port", maxEndpoints)
	case slices.ContainsFunc(c.Endpoints, func(e string) bool { return !endpoint(e) }):
		return errors.New("each endpoint is host:port")
	case c.Prefix == "" || len(c.Prefix) > maxPrefixBytes || strings.Trim(c.Prefix, "/") != c.Prefix:
		return fmt.Errorf("the prefix has 1 to %d bytes and no slash at an end", maxPrefixBytes)
	case (c.CertFile == "") != (c.KeyFile == ""):
		return errors.New("cert_file and key_file go together")
	case (c.User == "") != (c.PasswordFile == ""):
		return errors.New("user and password_file go together")
	case c.Timeout < 100*time.Millisecond || c.Timeout > time.Minute:
		return errors.New("timeout is 100 ms to 1 min")
	case c.History > maxHistory:
		return errors.New("history is too large")
	case c.Plaintext && (c.CAFile != "" || c.CertFile != ""):
		return errors.New("tls=off and certificates exclude each other")
	}
	return nil
}

func endpoint(e string) bool {
	host, port, err := net.SplitHostPort(e)
	n, errPort := strconv.ParseUint(port, 10, 16)
	return err == nil && errPort == nil && n > 0 && host != "" && !strings.ContainsAny(host, "/?#@%, \t\r\n")
}

// ParseURL reads etcd://host:port,host:port/prefix?parameter=value&… with the parameters tls (off), ca_file, cert_file, key_file, user,
// password_file, timeout (5s) and history (revisions, or off). Each may appear once.
func ParseURL(text string) (Config, error) {
	rest, ok := strings.CutPrefix(text, Scheme)
	if !ok {
		return Config{}, errors.New("not an etcd URL")
	}
	rest, query, _ := strings.Cut(rest, "?")
	hosts, path, _ := strings.Cut(rest, "/")
	var c Config
	if strings.Contains(hosts, "@") {
		return c, errors.New("a password does not belong into the URL: user=NAME&password_file=FILE")
	}
	c.Endpoints = strings.Split(hosts, ",")
	var err error
	if c.Prefix, err = url.PathUnescape(path); err != nil {
		return c, fmt.Errorf("prefix: %w", err)
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return c, fmt.Errorf("parameters: %w", err)
	}
	for name, all := range values {
		if len(all) != 1 {
			return c, fmt.Errorf("parameter %s appears twice", name)
		}
		if err := c.set(name, all[0]); err != nil {
			return c, fmt.Errorf("parameter %s: %w", name, err)
		}
	}
	c = c.defaults()
	return c, c.validate()
}

func (c *Config) set(name, value string) (err error) {
	if value == "" {
		return errors.New("is empty")
	}
	switch name {
	case "tls":
		if value != "on" && value != "off" {
			return errors.New("on or off")
		}
		c.Plaintext = value == "off"
	case "ca_file":
		c.CAFile = value
	case "cert_file":
		c.CertFile = value
	case "key_file":
		c.KeyFile = value
	case "user":
		c.User = value
	case "password_file":
		c.PasswordFile = value
	case "timeout":
		if c.Timeout, err = time.ParseDuration(value); err == nil && c.Timeout <= 0 {
			err = errors.New("not positive")
		}
	case "history":
		if value == "off" {
			c.History = -1
			return nil
		}
		if c.History, err = strconv.Atoi(value); err == nil && c.History <= 0 {
			err = errors.New("a number of revisions, or off")
		}
	default:
		return errors.New("is not known")
	}
	return err
}

// local says whether all endpoints are on this machine, so that no network is to be trusted.
func (c Config) local() bool {
	return !slices.ContainsFunc(c.Endpoints, func(e string) bool {
		host, _, _ := net.SplitHostPort(e)
		ip := net.ParseIP(host)
		return host != "localhost" && (ip == nil || !ip.IsLoopback())
	})
}

// tls is nil when nothing is encrypted: on this machine without certificates, or where the configuration says so.
func (c Config) tls(ca []byte) (*tls.Config, error) {
	if c.Plaintext || c.local() && c.CAFile == "" && c.CertFile == "" {
		return nil, nil //nolint:nilnil // no TLS is what the client takes nil for
	}
	out := &tls.Config{MinVersion: tls.VersionTLS13}
	if c.CAFile != "" {
		out.RootCAs = x509.NewCertPool()
		if !out.RootCAs.AppendCertsFromPEM(ca) {
			return nil, fmt.Errorf("CA file %s holds no certificate", c.CAFile)
		}
	}
	if c.CertFile != "" {
		load := func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
			return &pair, err
		}
		if _, err := load(nil); err != nil {
			return nil, fmt.Errorf("read our certificate: %w", err)
		}
		out.GetClientCertificate = load
	}
	return out, nil
}

// password is the first line of the file; "" without a user.
func (c Config) password() (string, error) {
	if c.PasswordFile == "" {
		return "", nil
	}
	b, err := os.ReadFile(c.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("read password file: %w", err)
	}
	line, _, _ := strings.Cut(string(b), "\n")
	if line = strings.TrimSuffix(line, "\r"); line == "" {
		return "", fmt.Errorf("password file %s is empty", c.PasswordFile)
	}
	return line, nil
}

// Files are the files that are read again while the store is open.
func (c Config) Files() []string {
	var all []string
	for _, f := range []string{c.CAFile, c.CertFile, c.KeyFile, c.PasswordFile} {
		if f != "" {
			all = append(all, f)
		}
	}
	return all
}
