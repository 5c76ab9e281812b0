package vault

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha3"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"hash"
	"strconv"

	"github.com/rotorkms/rotor/internal/policy"
)

// maxRandom bounds what is asked for at once, in bytes, as Vault does.
const maxRandom = 128 << 10

// toolRoutes are sys/tools.
func toolRoutes(c Config) []route {
	return []route{
		{
			pattern: "sys/tools/random(/:source(/:urlbytes))", ops: map[operation]handler{opUpdate: c.random}, needs: every(right(policy.ActTools)), doc: "Gives random bytes.", fields: randomFields,
			differs: "the source is always crypto/rand of this server's operating system",
		},
		{pattern: "sys/tools/hash(/:urlalgorithm)", ops: map[operation]handler{opUpdate: c.hash}, needs: every(right(policy.ActTools)), doc: "Gives the hash of an input.", fields: hashFields},
	}
}

// Fields of the tools, which transit has as well.
var (
	randomFields = []field{
		{"bytes", "int", "how many, 32 unless said; at most 131072", false}, {"format", "string", "base64 or hex", false}, {"source", "string", "platform, seal or all", false},
		{"urlbytes", "int", "bytes, in the path", false},
	}
	hashFields = []field{
		{"input", "base64", "what is hashed", true}, {"algorithm", "string", "sha2-224, -256, -384, -512 or sha3-224, -256, -384, -512; sha2-256 unless said", false},
		{"format", "string", "hex or base64", false}, {"urlalgorithm", "string", "algorithm, in the path", false},
	}
)

// random gives random bytes, of sys/tools and of a mount.
func (c Config) random(ctx context.Context, r *request) (*response, error) {
	if err := c.tools(ctx, r); err != nil {
		return nil, err
	}
	n, err := r.whole("bytes", 32)
	if err != nil {
		return nil, err
	}
	source, number := r.str("source"), r.vars["urlbytes"]
	if at := r.vars["source"]; number == "" && at != "" && !isSource(at) { // random/64
		source, number = "", at
	}
	if number != "" {
		if n, err = atoi(number); err != nil {
			return nil, bad("error parsing url-set byte count: %s", err)
		}
	}
	switch {
	case n < 1:
		return nil, bad(`"bytes" cannot be less than 1`)
	case n > maxRandom:
		return nil, bad(`"bytes" should be less than %d`, maxRandom)
	case source != "" && !isSource(source):
		return nil, bad(`unsupported entropy source %q; must be "platform" or "seal", or "all"`, source)
	}
	b := make([]byte, n)
	rand.Read(b) //nolint:errcheck // it never fails (crypto/rand)
	text, ok := encoded(b, r.str("format"), "base64")
	if !ok {
		return nil, bad(`unsupported encoding format %q; must be "hex" or "base64"`, r.str("format"))
	}
	out := &response{data: map[string]any{"random_bytes": text}}
	if source == "seal" {
		out.warnings = []string{"no seal/entropy augmentation available, using platform entropy source"}
	}
	return out, nil
}

// atoi is strconv.Atoi, whose errors clients see.
func atoi(s string) (int64, error) {
	n, err := strconv.Atoi(s)
	return int64(n), err
}

func isSource(s string) bool { return s == "platform" || s == "seal" || s == "all" }

// encoded is bytes in a format, hex or base64; otherwise is the one that is meant by none. false: it is another one.
func encoded(b []byte, format, otherwise string) (string, bool) {
	switch cmp.Or(format, otherwise) {
	case "hex":
		return hex.EncodeToString(b), true
	case "base64":
		return base64.StdEncoding.EncodeToString(b), true
	}
	return "", false
}

// hash hashes an input, of sys/tools and of a mount.
func (c Config) hash(ctx context.Context, r *request) (*response, error) {
	if err := c.tools(ctx, r); err != nil {
		return nil, err
	}
	if !r.has("input") {
		return nil, bad("input missing")
	}
	input, err := base64.StdEncoding.DecodeString(r.str("input"))
	if err != nil {
		return nil, bad("unable to decode input as base64: %s", err)
	}
	algorithm := r.vars["urlalgorithm"]
	if algorithm == "" {
		algorithm = r.str("algorithm")
	}
	h := hashOf(algorithm)
	if h == nil {
		return nil, bad("unsupported algorithm %s", algorithm)
	}
	h.Write(input) //nolint:errcheck // a hash takes everything
	text, ok := encoded(h.Sum(nil), r.str("format"), "hex")
	if !ok {
		return nil, bad(`unsupported encoding format %s; must be "hex" or "base64"`, r.str("format"))
	}
	return &response{data: map[string]any{"sum": text}}, nil
}

// hashOf is a hash by its name (FIPS 180-4, FIPS 202); nil: there is none of it.
func hashOf(algorithm string) hash.Hash {
	switch algorithm {
	case "sha2-224":
		return sha256.New224()
	case "sha2-256", "":
		return sha256.New()
	case "sha2-384":
		return sha512.New384()
	case "sha2-512":
		return sha512.New()
	case "sha3-224":
		return sha3.New224()
	case "sha3-256":
		return sha3.New256()
	case "sha3-384":
		return sha3.New384()
	case "sha3-512":
		return sha3.New512()
	}
	return nil
}
