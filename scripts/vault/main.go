// Command vaultd is a HashiCorp Vault server in memory, with the transit engine, AppRole and userpass, initialised and unsealed, over TLS: what tests want as a true peer.
//
//	vaultd ADDRESS CERTIFICATE KEY
//	vaultd ADDRESS CERTIFICATE KEY DIRECTORY
//
// It prints its root token and its unseal key, a line each, when it listens. With a directory it keeps what it has there, unseals itself by another server's
// transit engine, of which Vault's own variables tell (VAULT_ADDR, VAULT_TOKEN, VAULT_CACERT, VAULT_TRANSIT_SEAL_KEY_NAME, VAULT_TRANSIT_SEAL_MOUNT_PATH), and
// prints its root token and a recovery key when it is first started, nothing later. Vault's own server would pull in every plugin.
package main

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"
	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	transitseal "github.com/hashicorp/go-kms-wrapping/wrappers/transit/v2"
	"github.com/hashicorp/vault/builtin/credential/approle"
	"github.com/hashicorp/vault/builtin/credential/userpass"
	"github.com/hashicorp/vault/builtin/logical/transit"
	vaulthttp "github.com/hashicorp/vault/http"
	"github.com/hashicorp/vault/internalshared/configutil"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/hashicorp/vault/sdk/physical"
	"github.com/hashicorp/vault/sdk/physical/file"
	"github.com/hashicorp/vault/sdk/physical/inmem"
	"github.com/hashicorp/vault/vault"
	vaultseal "github.com/hashicorp/vault/vault/seal"
)

func main() {
	log.SetFlags(0)
	if err := run(os.Args[1:]); err != nil {
		log.Fatal("vaultd: ", err)
	}
}

func run(args []string) error {
	if len(args) != 3 && len(args) != 4 {
		return fmt.Errorf("usage: vaultd ADDRESS CERTIFICATE KEY [DIRECTORY]")
	}
	certificate, err := tls.LoadX509KeyPair(args[1], args[2])
	if err != nil {
		return err
	}
	open := start
	if len(args) == 4 {
		open = func() (*vault.Core, []string, error) { return startSealed(args[3]) }
	}
	core, lines, err := open()
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	handler := vaulthttp.Handler.Handler(&vault.HandlerProperties{Core: core, ListenerConfig: &configutil.Listener{}})
	for _, line := range lines {
		fmt.Println(line)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute, TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12}}
	return server.ServeTLS(listener, "", "")
}

// newCore makes a server on a storage.
func newCore(storage physical.Backend, seal vault.Seal, logger hclog.Logger) (*vault.Core, error) {
	return vault.NewCore(&vault.CoreConfig{
		Physical:           storage,
		Seal:               seal,
		BuiltinRegistry:    builtin{},
		DisableMlock:       true,
		Logger:             logger,
		LogicalBackends:    map[string]logical.Factory{"transit": transit.Factory},
		CredentialBackends: map[string]logical.Factory{"approle": approle.Factory, "userpass": userpass.Factory},
	})
}

func newLogger() hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Level: hclog.Error, Output: os.Stderr})
}

// start makes a server with one unseal key and opens it.
func start() (*vault.Core, []string, error) {
	logger := newLogger()
	storage, err := inmem.NewInmem(nil, logger)
	if err != nil {
		return nil, nil, err
	}
	core, err := newCore(storage, nil, logger)
	if err != nil {
		return nil, nil, err
	}
	made, err := core.Initialize(context.Background(), &vault.InitParams{BarrierConfig: &vault.SealConfig{SecretShares: 1, SecretThreshold: 1}, RecoveryConfig: &vault.SealConfig{}})
	if err != nil {
		return nil, nil, err
	}
	if _, err := core.Unseal(made.SecretShares[0]); err != nil {
		return nil, nil, err
	}
	return core, []string{made.RootToken, hex.EncodeToString(made.SecretShares[0])}, nil
}

// startSealed opens what is kept in a directory by another server's transit engine, and makes it where there is nothing.
func startSealed(dir string) (*vault.Core, []string, error) {
	ctx, logger := context.Background(), newLogger()
	storage, err := file.NewFileBackend(map[string]string{"path": dir}, logger)
	if err != nil {
		return nil, nil, err
	}
	wrapper := transitseal.NewWrapper()
	if _, err := wrapper.SetConfig(ctx, wrapping.WithConfigMap(nil)); err != nil { // which the environment has
		return nil, nil, fmt.Errorf("open the transit engine of the other server: %w", err)
	}
	seal, err := vault.NewAutoSeal(vaultseal.NewAccess(wrapper))
	if err != nil {
		return nil, nil, err
	}
	core, err := newCore(storage, seal, logger)
	if err != nil {
		return nil, nil, err
	}
	there, err := core.Initialized(ctx)
	if err != nil {
		return nil, nil, err
	}
	var lines []string
	if !there {
		one := vault.SealConfig{SecretShares: 1, SecretThreshold: 1, StoredShares: 1}
		made, err := core.Initialize(ctx, &vault.InitParams{BarrierConfig: one.Clone(), RecoveryConfig: &vault.SealConfig{SecretShares: 1, SecretThreshold: 1}})
		if err != nil {
			return nil, nil, err
		}
		lines = []string{made.RootToken, hex.EncodeToString(made.RecoveryShares[0])}
	}
	return core, lines, core.UnsealWithStoredKeys(ctx)
}

// builtin is what Vault's catalogue of plugins knows: what is compiled in here.
type builtin struct{}

func (b builtin) Contains(name string, kind consts.PluginType) bool {
	return slices.Contains(b.Keys(kind), name)
}

func (b builtin) Get(name string, kind consts.PluginType) (func() (any, error), bool) {
	return nil, b.Contains(name, kind) // which are made by the factories of the configuration
}

func (builtin) Keys(kind consts.PluginType) []string {
	switch kind {
	case consts.PluginTypeSecrets:
		return []string{"transit"}
	case consts.PluginTypeCredential:
		return []string{"approle", "userpass"}
	}
	return nil
}

func (b builtin) DeprecationStatus(name string, kind consts.PluginType) (consts.DeprecationStatus, bool) {
	return consts.Supported, b.Contains(name, kind)
}

func (builtin) IsBuiltinEntPlugin(string, consts.PluginType) bool { return false }
