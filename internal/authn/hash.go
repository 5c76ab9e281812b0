package authn

import (
	"context"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/crypto/argon2"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
)

// cost are parameters of Argon2id (RFC 9106, 3.1). They stand in each hash, so that they can change for new ones.
type cost struct {
	memory  uint32 // in KiB
	passes  uint32
	threads uint8
}

// hashCost is that of new hashes: the first choice of OWASP for servers. The secrets are 256 random bits, which nobody tries out; the cost is
// for the day when somebody makes them in another way.
var hashCost = cost{memory: 19 << 10, passes: 2, threads: 1}

// Bounds of hashing.
const (
	maxMemory  = 256 << 10 // in KiB
	maxPasses  = 16
	maxThreads = 8
	saltSize   = 16
	hashSize   = 32

	maxHashing = 4   // at a time: at most 76 MiB
	maxWaiting = 256 // who wait for their turn
)

// Hasher makes and checks hashes, so many at a time that strangers cannot take the memory.
type Hasher struct {
	turns   chan struct{}
	waiting chan struct{}
}

// NewHasher makes one.
func NewHasher() Hasher {
	return Hasher{make(chan struct{}, maxHashing), make(chan struct{}, maxWaiting)}
}

// turn waits until it may hash. fault.Unavailable when too many wait, Canceled.
func (h Hasher) turn(ctx context.Context) (done func(), err error) {
	select {
	case h.waiting <- struct{}{}:
		defer func() { <-h.waiting }()
	default:
		return nil, fault.New(fault.Unavailable, "login").WithHint("too many log in at this moment; try again")
	}
	select {
	case h.turns <- struct{}{}:
		return func() { <-h.turns }, nil
	case <-ctx.Done():
		return nil, fault.Wrap(fault.Canceled, "login", ctx.Err())
	}
}

// Make hashes a secret in the PHC string format, as argon2 of the reference implementation prints it.
func (h Hasher) Make(ctx context.Context, text string) (string, error) {
	done, err := h.turn(ctx)
	if err != nil {
		return "", err
	}
	defer done()
	salt, c := secret.Random(saltSize).Reveal(), hashCost
	sum := argon2.IDKey([]byte(text), salt, c.passes, c.memory, c.threads, hashSize)
	return formatHash(c, salt, sum), nil
}

// Matches compares a secret with a hash in constant time; a hash that does not parse matches nothing, and costs the same.
func (h Hasher) Matches(ctx context.Context, text, hash string) (bool, error) {
	done, err := h.turn(ctx)
	if err != nil {
		return false, err
	}
	defer done()
	c, salt, want, ok := parseHash(hash)
	if !ok {
		c, salt, want = hashCost, make([]byte, saltSize), make([]byte, hashSize)
	}
	sum := argon2.IDKey([]byte(text), salt, c.passes, c.memory, c.threads, hashSize)
	return subtle.ConstantTimeCompare(sum, want) == 1 && ok, nil
}

func formatHash(c cost, salt, sum []byte) string {
	b := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, c.memory, c.passes, c.threads, b.EncodeToString(salt), b.EncodeToString(sum))
}

// parseHash reads what formatHash makes, within the bounds.
func parseHash(s string) (c cost, salt, sum []byte, ok bool) {
	f := strings.Split(s, "$")
	if len(s) > 256 || len(f) != 6 || f[0] != "" || f[1] != "argon2id" || f[2] != "v="+strconv.Itoa(argon2.Version) {
		return c, nil, nil, false
	}
	var m, t, p uint32
	if n, err := fmt.Sscanf(f[3], "m=%d,t=%d,p=%d", &m, &t, &p); n != 3 || err != nil || f[3] != fmt.Sprintf("m=%d,t=%d,p=%d", m, t, p) {
		return c, nil, nil, false
	}
	if p < 1 || p > maxThreads || m < 8*p || m > maxMemory || t < 1 || t > maxPasses {
		return c, nil, nil, false
	}
	b := base64.RawStdEncoding.Strict()
	salt, err := b.DecodeString(f[4])
	sum, err2 := b.DecodeString(f[5])
	if err != nil || err2 != nil || len(salt) != saltSize || len(sum) != hashSize {
		return c, nil, nil, false
	}
	return cost{m, t, uint8(p)}, salt, sum, true
}
