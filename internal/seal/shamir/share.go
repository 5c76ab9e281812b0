package shamir

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
)

// Bounds of a set of shares.
const (
	MinThreshold = 2 // one share that opens alone is a password with extra steps
	MaxShares    = 255
)

const (
	setSize      = 8
	seedSize     = 32 // of the shared secret, in bytes
	checksumSize = 4
	shareVersion = 1
	shareSize    = 4 + setSize + seedSize + checksumSize
	sharePrefix  = "rs1"
	groupSize    = 7 // letters of a printed group; 77 letters are 11 groups
)

// Share is one custodian's part: any Threshold of the Total shares of one set give the secret, fewer give nothing (Shamir 1979).
type Share struct {
	Set       string // of which it is, 16 hex digits
	Threshold int
	Total     int
	Index     int // from 1 to Total
	value     secret.Bytes
}

var letters = base32.StdEncoding.WithPadding(base32.NoPadding)

// Text is the share as it is printed and copied: letters and digits without 0, 1, 8 and 9, in groups. It is as secret as the share.
func (s Share) Text() secret.Bytes {
	b := s.head()
	b = append(b, s.value.Reveal()...)
	b = append(b, checksum(b)...)
	defer clear(b)
	code := strings.ToLower(letters.EncodeToString(b))
	text := []byte(sharePrefix)
	for i := 0; i < len(code); i += groupSize {
		text = append(append(text, '-'), code[i:min(i+groupSize, len(code))]...)
	}
	return secret.Take(text)
}

// Texts are the texts of shares, for whoever prints them once.
func Texts(shares []Share) []string {
	var out []string
	for _, s := range shares {
		out = append(out, string(s.Text().Reveal()))
	}
	return out
}

func (s Share) head() []byte {
	set, _ := hex.DecodeString(s.Set) // ParseShare and split made it
	return append([]byte{shareVersion, byte(s.Threshold), byte(s.Total), byte(s.Index)}, set...)
}

// checksum finds mistakes of copying, not malice: the commitments of the set do that.
func checksum(b []byte) []byte {
	sum := sha256.Sum256(append([]byte("rotor/share/1\x00"), b...))
	return sum[:checksumSize]
}

// ParseShare reads what Text wrote; case, blanks, line ends and dashes do not matter. fault.ShareWrong, which never quotes the text.
func ParseShare(text secret.Bytes) (Share, error) {
	bad := func(hint string) (Share, error) {
		return Share{}, fault.New(fault.ShareWrong, "share").WithHint("%s", hint)
	}
	if text.Len() > 4096 {
		return bad("it is too long to be a share")
	}
	plain := strings.NewReplacer(" ", "", "-", "", "\n", "", "\r", "", "\t", "").Replace(strings.ToLower(string(text.Reveal())))
	code, ok := strings.CutPrefix(plain, sharePrefix)
	if !ok {
		return bad("a share begins with " + sharePrefix + "-")
	}
	b, err := letters.DecodeString(strings.ToUpper(code))
	defer clear(b)
	if err != nil || len(b) != shareSize || !strings.EqualFold(letters.EncodeToString(b), code) {
		return bad("a letter is missing, too many or wrong: it has 11 groups of 7 after " + sharePrefix)
	}
	body, sum := b[:shareSize-checksumSize], b[shareSize-checksumSize:]
	if string(checksum(body)) != string(sum) {
		return bad("its checksum does not hold: a letter was copied wrong")
	}
	s := Share{
		Set: hex.EncodeToString(b[4 : 4+setSize]), Threshold: int(b[1]), Total: int(b[2]), Index: int(b[3]),
		value: secret.Copy(b[4+setSize : 4+setSize+seedSize]),
	}
	if b[0] != shareVersion || s.Threshold < MinThreshold || s.Threshold > s.Total || s.Index < 1 || s.Index > s.Total {
		return bad("it is of a version that this rotor does not know")
	}
	return s, nil
}

// Name says which share it is, without anything secret: "share 2 of 5, set 6f1c2a90…".
func (s Share) Name() string { return fmt.Sprintf("share %d of %d, set %s", s.Index, s.Total, s.Set) }

// Destroy overwrites the share.
func (s Share) Destroy() { s.value.Destroy() }

// CheckSizes says whether k of n can be made. fault.Invalid.
func CheckSizes(k, n int) error {
	if k < MinThreshold || n > MaxShares || k > n {
		return badSizes(fmt.Sprintf("%d/%d", k, n))
	}
	return nil
}

func badSizes(text string) error {
	return fault.New(fault.Invalid, fmt.Sprintf("shares %q", text)).
		WithHint("THRESHOLD/TOTAL, for example 3/5: at least %d must be needed, at most %d made", MinThreshold, MaxShares)
}

// split makes n shares of a secret, byte by byte, each under a fresh random polynomial of degree k-1.
func split(value secret.Bytes, k, n int, set string) []Share {
	ys := make([][]byte, n)
	for i := range ys {
		ys[i] = make([]byte, value.Len())
	}
	c := make([]byte, k)
	defer clear(c)
	for i, b := range value.Reveal() {
		rand.Read(c[1:])
		c[0] = b
		for j := range ys {
			ys[j][i] = at(c, byte(j+1))
		}
	}
	out := make([]Share, n)
	for i, y := range ys {
		out[i] = Share{Set: set, Threshold: k, Total: n, Index: i + 1, value: secret.Take(y)}
	}
	return out
}

// combine is the value at 0 of the polynomials through shares with distinct indexes.
func combine(shares []Share) secret.Bytes {
	xs := make([]byte, len(shares))
	for i, s := range shares {
		xs[i] = byte(s.Index)
	}
	out := make([]byte, seedSize)
	for i, w := range weights(xs) {
		for j, y := range shares[i].value.Reveal() {
			out[j] ^= mul(w, y)
		}
	}
	return secret.Take(out)
}
