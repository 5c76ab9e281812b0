package server

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/policy"
)

// liveKeys are the keys of the configuration that can change while the server runs. Every other key that changed is refused by name, and
// then nothing changes at all.
func liveKeys() []string {
	return []string{"hosts", "rules", "log", "metrics", "drain", "seals", "auth", "limits"}
}

// settings are what a reload swaps as a whole: a request sees the old ones or the new ones.
type settings struct {
	config      Config
	certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
}

// Reload reads configuration, rules and certificate settings again, checks all of it, notes it in the audit log, and swaps it in. When
// anything is wrong everything stays as it was. fault.Invalid names the key that is wrong, or that cannot change while the server runs.
func (s *Server) Reload() error {
	if s.waits {
		return fault.New(fault.NotFound, s.config.storeName()).WithHint("the server waits for its init")
	}
	select {
	case <-s.opened:
	default:
		return s.seals.Why().Fault()
	}
	s.reloading.Lock()
	defer s.reloading.Unlock()
	if s.fleet == nil {
		return fault.New(fault.Recovery, "server")
	}
	err := s.reload(context.Background())
	s.metrics.Reload(err)
	return err
}

func (s *Server) reload(ctx context.Context) error {
	old := s.live.Load()
	next := old.config
	if next.Source != nil {
		fresh, err := next.Source()
		if err != nil {
			return err
		}
		fresh.Source, fresh.File, fresh.Log, fresh.LogLevel, fresh.Now = next.Source, next.File, next.Log, next.LogLevel, next.Now
		next = fresh.defaults()
		if err := next.validate(); err != nil {
			return err
		}
	}
	changed, err := changes(old.config, next)
	if err != nil {
		return err
	}
	rules, sum, err := hashedRules(next.Rules)
	if err != nil {
		return err
	}
	allow, err := next.access()
	if err != nil {
		return err
	}
	if err := allow.Validate(); err != nil {
		return err
	}
	fresh := &settings{config: next, certificate: old.certificate}
	if slices.Contains(changed, "hosts") {
		fresh.certificate = s.authority.Server(s.hosts(next)...).GetCertificate
		if _, err := fresh.certificate(&tls.ClientHelloInfo{}); err != nil {
			return fmt.Errorf("make certificate: %w", err)
		}
	}
	named, err := openSealers(next)
	if err != nil && slices.Contains(changed, "seals") {
		return err
	}
	if err := s.note(ctx, "config.reload", map[string]string{"rules_sha256": sum, "changed": strings.Join(changed, " ")}); err != nil {
		return err
	}
	s.live.Store(fresh)
	if slices.Contains(changed, "seals") {
		s.seals.SetNamed(named)
	}
	if err := s.authority.Configure(allow); err != nil {
		return err // which Validate has found before
	}
	s.guard.SetRules(s.authority.Decider(rules))
	s.http.Reconsider(ctx) // streams of those whose issuer or authority is gone, or whose certificate is revoked
	if slices.Contains(changed, "limits") {
		s.http.SetLimits(next.Limits.wire())
	}
	if next.LogLevel != nil {
		next.LogLevel.Set(next.Logging.level())
	}
	s.fleet.Reconsider(ctx)
	s.config.Log.Info("configuration and rules reloaded", "rules", next.Rules, "rules_sha256", sum, "changed", changed)
	return nil
}

// note writes an entry of the server itself into the audit log.
func (s *Server) note(ctx context.Context, action policy.Action, detail map[string]string) error {
	return s.guard.System("server", action, policy.Resource{}).Release(ctx, detail)
}

// changes names the keys of the configuration that differ. fault.Invalid for one that cannot change while the server runs.
func changes(old, next Config) (changed []string, err error) {
	a, b := reflect.ValueOf(old), reflect.ValueOf(next)
	for i := range a.NumField() {
		key := a.Type().Field(i).Tag.Get("yaml")
		if key == "-" || reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()) {
			continue
		}
		if !slices.Contains(liveKeys(), key) {
			return nil, fault.New(fault.Invalid, key).
				WithHint("it cannot change while the server runs (%s can): restart the server", strings.Join(liveKeys(), ", "))
		}
		changed = append(changed, key)
	}
	return changed, nil
}

// hashedRules reads the rules and the hash that the audit log names them by.
func hashedRules(path string) (*policy.Rules, string, error) {
	b, err := readRules(path)
	if err != nil {
		return nil, "", err
	}
	rules, err := policy.Parse(path, b)
	sum := sha256.Sum256(b)
	return rules, hex.EncodeToString(sum[:]), err
}

func readRules(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return nil, fault.New(fault.NotFound, "rules "+path).WithHint("name the rules file, or write one; rotor server init makes the first")
	}
	if err != nil {
		return nil, fmt.Errorf("read rules: %w", err)
	}
	return b, nil
}
