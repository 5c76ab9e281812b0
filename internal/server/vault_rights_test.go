package server_test

import (
	"cmp"
	"regexp"
	"strings"
	"testing"

	"github.com/rotorkms/rotor/internal/wire/vault"
)

// variables are what paths leave to the caller.
var variables = regexp.MustCompile(`[:*][a-z_]+`)

// paths are those that a route answers at, below a mount of its engine.
func paths(l vault.Line) (out []string) {
	known := map[string]string{":urlalgorithm": "sha2-256", ":plaintext": "wrapped", ":type": "public-key", ":version": "1"}
	path := variables.ReplaceAllStringFunc(l.Pattern, func(name string) string { return cmp.Or(known[name], "x") })
	if l.Engine == "transit" {
		path = "transit/" + path
	} else if l.Engine != "" {
		path = "auth/" + l.Engine + "/" + path
	}
	for {
		at := strings.LastIndex(path, "(")
		if at < 0 {
			return append(out, path)
		}
		out = append(out, strings.NewReplacer("(", "", ")", "").Replace(path))
		path = path[:at]
	}
}

// TestVaultRightsOfNobody asks every path of the surface, by each method, as a caller whom no rule and no policy gives a right, and without a token: all refuse,
// but for those that answer strangers and those by which a token looks after itself.
func TestVaultRightsOfNobody(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op := w.operator()
	for _, engine := range []string{"approle", "userpass", "jwt", "kubernetes", "cert"} {
		op.must("POST", "sys/auth/"+engine, m{"type": engine})
	}
	_, path := w.credential("nobody")
	nobody, stranger := w.vault(w.session(path).Token()), w.vault("")
	asked := 0
	for _, l := range vault.Surface() {
		if l.Stranger {
			continue
		}
		for _, path := range paths(l) {
			for _, method := range l.Methods {
				asked++
				stranger.refuses(403, "permission denied", method, path, nil)
				if a := nobody.do(method, path, asks(l)); a.status != 403 && !ofOneself(path) {
					t.Errorf("%s %s: %d %.200s", method, path, a.status, a.text)
				}
			}
		}
	}
	if asked < 60 {
		t.Errorf("only %d were asked", asked)
	}
}

// asks is a body in which every parameter of a route is there, so that nothing but the right is missing.
func asks(l vault.Line) m {
	out := m{"plaintext": "eA==", "ciphertext": "vault:v1:AAAA", "input": "", "signature": "vault:v1:AAAA", "backup": "x", "type": "aes256-gcm96", "from": "transit", "to": "y", "token": "x", "accessor": "x", "path": "x", "peer_public_key": "x", "public_key": "x"}
	for _, f := range l.Fields {
		if _, ok := out[f.Name]; ok {
			continue
		}
		switch f.Kind {
		case "bool":
			out[f.Name] = true
		case "int", "duration":
			out[f.Name] = 1
		case "string", "list":
			out[f.Name] = "x"
		}
	}
	return out
}

// ofOneself says whether a path is one that every token may ask about itself.
func ofOneself(path string) bool {
	return strings.HasSuffix(path, "-self") || path == "auth/token/lookup" || // without a token it is one's own
		strings.HasPrefix(path, "sys/wrapping/") || strings.HasPrefix(path, "sys/internal/ui/") || strings.HasPrefix(path, "sys/audit/") // which refuses everybody
}
