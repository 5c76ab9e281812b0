package cli

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/rotorkms/rotor/internal/fault"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// vaultView is a session as the clients of HashiCorp Vault want it.
type vaultView struct {
	Address   string `json:"address"`
	CAFile    string `json:"ca_file,omitempty"`
	Token     string `json:"token"`
	Namespace string `json:"namespace,omitempty"`
}

// showVault prints the variables for a shell.
func (a *app) showVault(v vaultView) error {
	first, _, _ := strings.Cut(v.Address, ",")
	v.Address = "https://" + first
	if v.CAFile != "" {
		path, err := filepath.Abs(v.CAFile)
		if err != nil {
			return fmt.Errorf("name %s: %w", v.CAFile, err)
		}
		v.CAFile = path
	}
	if v.Namespace == "default" {
		v.Namespace = "" // which clients of Vault do not name
	}
	var t table
	for _, e := range [][2]string{{"VAULT_ADDR", v.Address}, {"VAULT_CACERT", v.CAFile}, {"VAULT_NAMESPACE", v.Namespace}, {"VAULT_TOKEN", v.Token}} {
		if e[1] != "" {
			t.add("export " + e[0] + "=" + quoted(e[1]))
		}
	}
	return a.show(v, t)
}

// quoted is a text as one word of a shell.
func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// loginIdentity exchanges the certificate of an identity for a session, and shows it to Vault's clients. They want the authority in a file, which is written
// beside the identity.
func (a *app) loginIdentity(ctx context.Context) error {
	dir, err := a.readIdentity()
	if err != nil {
		return err
	}
	address, err := a.serverAddress(dir)
	if err != nil {
		return err
	}
	s, err := a.connect()
	if err != nil {
		return err
	}
	defer s.close()
	m, err := message(s.auth.Login(ctx, request(&rotorv1.LoginRequest{})))
	if err != nil {
		return err
	}
	ca := filepath.Join(a.identityPath(), "ca.pem")
	if old, err := os.ReadFile(ca); err != nil || !bytes.Equal(old, dir.CAPEM()) { //nolint:gosec // the path is the user's own
		if err := os.WriteFile(ca, dir.CAPEM(), 0o600); err != nil {
			return fault.New(fault.Invalid, "write "+ca).WithHint("%v", err)
		}
	}
	return a.showVault(vaultView{address, ca, m.GetToken(), m.GetNamespace()})
}
