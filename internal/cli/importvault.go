package cli

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/movein"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

const (
	maxVaultToken = 64 << 10        // bytes of a file with a token
	maxAuthority  = 1 << 20         // bytes of a file with authorities
	vaultPatience = 2 * time.Minute // for one answer of the source
)

func newImport(a *app) *cobra.Command {
	return newNoun("import", "Bring keys from another system", newImportVault(a))
}

// importVaultFlags are the flags of import vault. Each has the variable that Vault's own clients read.
type importVaultFlags struct {
	address, mount, toMount, tokenFile, caFile, namespace string
	keys                                                  []string
	plan                                                  bool
}

func newImportVault(a *app) *cobra.Command {
	var f importVaultFlags
	c := &cobra.Command{
		Use:   "vault --address URL [--mount MOUNT] [--key NAME]...",
		Short: "Copy the keys of a transit engine of Vault or OpenBao, with all versions, and prove each",
		Long: `Copy keys of a transit engine of Vault or OpenBao with all their versions and settings, so that clients and what they encrypted go on unchanged at rotor's own
/v1/MOUNT. Where the source allows plaintext backup a key is copied by that, else where it is exportable by its exports; then each end reads what the other made under the latest
version, rotor what the source encrypts under each, and both what each version makes with the material that was copied. Keys that are here already are proved, so that a run can be repeated. Of a key that the source never lets out the plan says how to re-encrypt, with both ends.

The token of the source comes from --token-file or $VAULT_TOKEN; it needs to read, list, back up or export, and use the keys. At rotor the caller needs key.import and to use them.`,
		Example: "  rotor import vault --address https://vault.example:8200 --mount transit --token-file token --plan\n" +
			"  rotor import vault --address https://vault.example:8200 --key orders --yes",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.importVault(c.Context(), f) },
	}
	fl := c.Flags()
	fl.StringVar(&f.address, "address", "", "URL of the source (default $VAULT_ADDR); rotor's own is $ROTOR_ADDRESS or what the identity knows")
	fl.StringVar(&f.mount, "mount", "transit", "mount of the engine at the source")
	fl.StringVar(&f.toMount, "to-mount", "", "mount of the engine here (default: the same)")
	fl.StringArrayVar(&f.keys, "key", nil, "name of a key; may be repeated (default: all)")
	fl.StringVar(&f.tokenFile, "token-file", "", "file with the token of the source (default $VAULT_TOKEN)")
	fl.StringVar(&f.caFile, "ca-file", "", "authorities of the source, PEM (default $VAULT_CACERT, else the system's)")
	fl.StringVar(&f.namespace, "vault-namespace", "", "namespace at the source (default $VAULT_NAMESPACE)")
	fl.BoolVar(&f.plan, "plan", false, "only print the plan; exit status 3 when there is something to do")
	return a.changes(c)
}

// movedView is what became of one key.
type movedView struct {
	Key      string   `json:"key"`
	Type     string   `json:"type"`
	Versions int      `json:"versions"`
	Way      string   `json:"way"`
	Proved   bool     `json:"proved"`
	Why      string   `json:"why,omitempty"`
	Steps    []string `json:"steps,omitempty"`
}

func viewMoved(i movein.Item) movedView {
	return movedView{Key: i.Key, Type: i.Type, Versions: i.Versions, Way: string(i.Way), Why: i.Why, Steps: i.Steps}
}

func (a *app) importVault(ctx context.Context, f importVaultFlags) error {
	from, err := f.source(a)
	if err != nil {
		return err
	}
	to, leave, err := a.moveTo(ctx, strings.Trim(cmp.Or(f.toMount, f.mount), "/"))
	if err != nil {
		return err
	}
	defer leave()
	m := movein.Move{From: from, To: to}
	plan, err := m.Plan(ctx, f.keys)
	if err != nil {
		return err
	}
	var views []movedView
	copies := 0
	for _, i := range plan {
		views = append(views, viewMoved(i))
		if i.Way == movein.Backup || i.Way == movein.Export {
			copies++
		}
	}
	if f.plan {
		if copies > 0 {
			a.exit = exitPlan
		}
		return a.showMoved(views)
	}
	if copies > 0 {
		if err := a.confirm(fmt.Sprintf("%s\ncopying to /v1/%s: who has been at %s may have the material; rotor cannot know", movein.Summary(plan), to.Mount, from.URL)); err != nil {
			return err
		}
	}
	return a.carry(ctx, m, plan, views)
}

// carry copies and proves one key after the other. One that fails does not keep the others from moving.
func (a *app) carry(ctx context.Context, m movein.Move, plan []movein.Item, views []movedView) error {
	var failed error
	for n, i := range plan {
		if i.Way == movein.Reencrypt || i.Way == movein.Left {
			continue
		}
		err := m.Copy(ctx, i, time.Now())
		if ctx.Err() != nil {
			return fault.Wrap(fault.Canceled, "import", ctx.Err())
		}
		if err != nil {
			failed = cmp.Or(failed, err)
			views[n].Why = err.Error()
			var f *fault.Error
			if errors.As(err, &f) && f.Hint != "" {
				views[n].Why += ": " + f.Hint
			}
			continue
		}
		views[n].Proved = true
	}
	if err := a.showMoved(views); err != nil {
		return err
	}
	return failed
}

func (a *app) showMoved(views []movedView) error {
	t := table{header: []string{"key", "type", "versions", "way", "proved", "why"}}
	for _, v := range views {
		t.add(v.Key, v.Type, number(v.Versions), v.Way, yesNo(v.Proved), or(v.Why, "-"))
	}
	tables := []table{t}
	steps := table{header: []string{"re-encrypt", "step", "what"}}
	for _, v := range views {
		for n, s := range v.Steps {
			steps.add(v.Key, number(n+1), s)
		}
	}
	if len(steps.rows) > 0 {
		tables = append(tables, steps)
	}
	return a.show(views, tables...)
}

// source is the engine that keys come from.
func (f importVaultFlags) source(a *app) (*movein.Server, error) {
	address := strings.TrimRight(cmp.Or(f.address, os.Getenv("VAULT_ADDR")), "/")
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
		return nil, usage("--address", "the source's URL: https://host:port")
	}
	token := os.Getenv("VAULT_TOKEN")
	if f.tokenFile != "" {
		if token, err = a.secretText(f.tokenFile, "token"); err != nil {
			return nil, err
		}
	}
	if token = strings.TrimSpace(token); token == "" || len(token) > maxVaultToken {
		return nil, usage("--token-file", "name a file with a token of the source, or set VAULT_TOKEN")
	}
	pool, err := f.authorities()
	if err != nil {
		return nil, err
	}
	return &movein.Server{
		HTTP: &http.Client{Timeout: vaultPatience, Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}},
		URL:  address, Mount: strings.Trim(f.mount, "/"), Namespace: cmp.Or(f.namespace, os.Getenv("VAULT_NAMESPACE")), What: "source",
		Token: func() (string, error) { return token, nil },
	}, nil
}

// authorities are whom the source's certificate is from; nil: the system's.
func (f importVaultFlags) authorities() (*x509.CertPool, error) {
	path := cmp.Or(f.caFile, os.Getenv("VAULT_CACERT"))
	if path == "" {
		return nil, nil
	}
	file, err := os.Open(path) // #nosec G703 -- the caller names the file
	if err != nil {
		return nil, fmt.Errorf("read authorities: %w", err)
	}
	defer func() { _ = file.Close() }() // only read
	b, err := readAll(file, maxAuthority, "authorities")
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, usage("--ca-file", "%s has no certificate in PEM", path)
	}
	return pool, nil
}

// moveTo is the engine here. Its protocol knows callers by tokens alone, so an identity logs in for the time of the move.
func (a *app) moveTo(ctx context.Context, mount string) (*movein.Server, func(), error) {
	s, err := a.connect()
	if err != nil {
		return nil, nil, err
	}
	to := &movein.Server{HTTP: s.http, URL: "https://" + s.address, Mount: mount, Namespace: a.namespace, What: "target"}
	if path := a.sessionPath(); path != "" {
		session, err := readSession(path)
		if err != nil {
			s.close()
			return nil, nil, err
		}
		to.Token = func() (string, error) { return session.Token, nil }
		return to, s.close, nil
	}
	l, err := message(s.auth.Login(ctx, request(&rotorv1.LoginRequest{})))
	if err != nil {
		s.close()
		return nil, nil, err
	}
	token := l.GetToken()
	to.Token = func() (string, error) { return token, nil }
	return to, func() {
		r := request(&rotorv1.LogoutRequest{})
		r.Header().Set("Authorization", "Bearer "+token)
		_, _ = s.auth.Logout(context.WithoutCancel(ctx), r) // it ends by itself, too
		s.close()
	}, nil
}
