//go:build services

package testenv

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// VaultServer is a HashiCorp Vault of the test's own, in memory, unsealed (scripts/vault).
type VaultServer struct {
	Address string // https://127.0.0.1:port
	CAFile  string
	Root    string // its root token

	t         testing.TB
	http      *http.Client
	unsealKey string
}

// Vault starts a server with the engine transit at the path of that name. It is ended with the test.
func Vault(t testing.TB) *VaultServer {
	t.Helper()
	dir := t.TempDir()
	s := &VaultServer{t: t, Address: fmt.Sprintf("https://127.0.0.1:%d", FreePort(t)), CAFile: filepath.Join(dir, "ca.pem")}
	pool := Certificate(t, s.CAFile, filepath.Join(dir, "key.pem"))
	s.http = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	proc := start(t, 0, inTree(t, ".cache/bin/vaultd"), s.Address[len("https://"):], s.CAFile, filepath.Join(dir, "key.pem"))
	t.Cleanup(proc.kill)
	proc.await(t, func(ctx context.Context) bool {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Address+"/v1/sys/health", nil)
		if err != nil {
			return false
		}
		resp, err := s.http.Do(r)
		return err == nil && resp.Body.Close() == nil && resp.StatusCode == http.StatusOK // active, and not only unsealed
	})
	s.Root, s.unsealKey, _ = strings.Cut(strings.TrimSpace(proc.out.String()), "\n")
	s.Do(s.Root, http.MethodPost, "sys/mounts/transit", map[string]any{"type": "transit"})
	return s
}

// Do asks the server and fails the test unless it agrees. It returns what it answered.
func (s *VaultServer) Do(token, method, path string, body any) map[string]any {
	s.t.Helper()
	in, err := json.Marshal(body)
	if err != nil {
		s.t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(s.t.Context(), method, s.Address+"/v1/"+path, bytes.NewReader(in))
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("X-Vault-Token", token)
	resp, err := s.http.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode/100 != 2 {
		s.t.Fatalf("%s %s: %s %s (%v)", method, path, resp.Status, out, err)
	}
	answer := map[string]any{}
	if len(out) > 0 && json.Unmarshal(out, &answer) != nil {
		s.t.Fatalf("%s %s: %s", method, path, out)
	}
	return answer
}

// Token makes a token that may do what a policy in Vault's language says.
func (s *VaultServer) Token(policy string) string {
	s.t.Helper()
	s.Do(s.Root, http.MethodPost, "sys/policies/acl/rotor", map[string]any{"policy": policy})
	auth := s.Do(s.Root, http.MethodPost, "auth/token/create", map[string]any{"policies": []string{"rotor"}, "no_default_policy": true})["auth"]
	return auth.(map[string]any)["client_token"].(string)
}

// Seal seals the server: from then on it answers that it is sealed.
func (s *VaultServer) Seal() {
	s.t.Helper()
	s.Do(s.Root, http.MethodPost, "sys/seal", nil)
}

// Unseal undoes Seal.
func (s *VaultServer) Unseal() {
	s.t.Helper()
	s.Do("", http.MethodPost, "sys/unseal", map[string]any{"key": s.unsealKey})
}
