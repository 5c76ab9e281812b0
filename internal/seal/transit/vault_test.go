//go:build services

package transit_test

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/seal/sealtest"
	"github.com/rotorkms/rotor/internal/seal/transit"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/testenv"
)

// howto is where a user reads which rights the token needs.
const howto = "../../../docs/howto/transit.md"

// vaultToken writes a token with the policy of the howto, and no other right.
func vaultToken(t *testing.T, v *testenv.VaultServer) string {
	t.Helper()
	page, err := os.ReadFile(howto)
	if err != nil {
		t.Fatal(err)
	}
	_, policy, ok := bytes.Cut(page, []byte("```hcl\n"))
	policy, _, closed := bytes.Cut(policy, []byte("```"))
	if !ok || !closed {
		t.Fatal("the howto has no policy")
	}
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(v.Token(string(policy))), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestVault: a true Vault, with the rights of the howto alone, is a root of trust.
func TestVault(t *testing.T) {
	v := testenv.Vault(t)
	token := vaultToken(t, v)
	configs, n := map[seal.Sealer]transit.Config{}, 0
	sealtest.Run(t, sealtest.Root{
		New: func(t *testing.T) seal.Sealer {
			n++
			c := transit.Config{Address: v.Address, Mount: "transit", Key: fmt.Sprintf("rotor-%d", n), TokenFile: token, CAFile: v.CAFile}
			s := open(t, c)
			configs[s] = c
			return s
		},
		Again: func(t *testing.T, s seal.Sealer) seal.Sealer { return open(t, configs[s]) },
		Offline: func(t *testing.T, _ seal.Sealer) func() {
			v.Seal()
			return v.Unseal
		},
		Edits: 64,
	})
}

// TestVaultForgets: what Vault was told to forget is not in it under any name, and the token may do nothing else.
func TestVaultForgets(t *testing.T) {
	v := testenv.Vault(t)
	s := open(t, transit.Config{Address: v.Address, Mount: "transit", Key: "rotor", TokenFile: vaultToken(t, v), CAFile: v.CAFile})
	for g := range uint64(3) {
		if _, err := s.Wrap(t.Context(), secret.Random(32), g); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Forget(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	keys := v.Do(v.Root, http.MethodGet, "transit/keys?list=true", nil)["data"].(map[string]any)["keys"]
	if got := fmt.Sprint(keys); got != "[rotor-2]" {
		t.Errorf("keys %s", got)
	}
	other := open(t, transit.Config{Address: v.Address, Mount: "transit", Key: "another", TokenFile: vaultToken(t, v), CAFile: v.CAFile})
	if _, err := other.Wrap(t.Context(), secret.Random(32), 1); err == nil || strings.Contains(err.Error(), "hvs.") {
		t.Errorf("a key outside the policy: %v", err)
	}
}
