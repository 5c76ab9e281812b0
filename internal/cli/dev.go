package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/server"
)

// devDir is where rotor dev keeps its server; commands in the same directory find the administrator there.
const devDir = "rotor-dev"

// devRules are safe for a server on one machine: instances use keys, administrators manage them.
const devRules = `# Who may do what, of a server for development. Nothing is allowed that no rule allows. Reload with SIGHUP.
version: 1
rules:
  - name: administrators
    callers: ["admin/*"]
    actions: ["*"]
    keys: {namespace: "**", names: ["**"]}
  - name: instances use keys and manage none
    callers: ["spiffe://*/instance/*"]
    actions: [key.show, deliver, encrypt, decrypt, wrap, unwrap, rewrap, sign, verify, mac, token.issue]
    keys: {namespace: default, names: ["*"]}
`

func newDev(a *app) *cobra.Command {
	f := server.Config{Profile: server.ProfileDev}
	c := &cobra.Command{
		Use:   "dev",
		Short: "Run a server for development, made at its first start",
		Long: `Run a server for development in ./` + devDir + `: the first start makes a cluster, with rules that let every instance that joins use every
key and manage none. It is a whole server with a durable store; only the rules are those of a workshop. Commands that are given in the
same directory find it by themselves; elsewhere use the two exports that it prints.`,
		Example: "  rotor dev\n  rotor key create records --purpose encrypt --custody fleet",
		Args:    cobra.NoArgs,
		RunE:    func(c *cobra.Command, _ []string) error { return a.dev(c.Context(), f) },
	}
	serverFlags(c, &f, devDir)
	runFlags(c, &f)
	return c
}

func (a *app) dev(ctx context.Context, f server.Config) error {
	dir, err := filepath.Abs(f.Dir)
	if err != nil {
		return fmt.Errorf("find %s: %w", f.Dir, err)
	}
	f.Dir = dir
	if f.Rules == "" {
		f.Rules = filepath.Join(dir, "rules.yaml")
	}
	if err := writeDevRules(f.Rules); err != nil {
		return err
	}
	init, err := server.Init(ctx, f)
	switch {
	case fault.CodeOf(err) == fault.Exists:
		init.AdminDir = filepath.Join(dir, "admin")
	case err != nil:
		return err
	default:
		fmt.Fprintf(a.err, "made a cluster in %s; its audit log is pinned by %s\n", dir, init.CheckpointKey)
	}
	return a.serve(ctx, f, func(address string) {
		a.listening(address)
		fmt.Fprintf(a.out, "export %s=%s\nexport %s=%s\n", envIdentity, shell(init.AdminDir), envAddress, address)
	})
}

// shell quotes a word for a POSIX shell if it needs quotes.
func shell(word string) string {
	if strings.ContainsFunc(word, func(r rune) bool {
		return !strings.ContainsRune("/._-+@:", r) && !unicode.IsLetter(r) && !unicode.IsDigit(r)
	}) {
		return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
	}
	return word
}

// writeDevRules leaves rules alone that are there already.
func writeDevRules(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("make directory of the server: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("write rules: %w", err)
	}
	_, err = f.WriteString(devRules)
	return errors.Join(err, f.Close())
}
