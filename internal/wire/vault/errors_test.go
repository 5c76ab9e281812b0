package vault_test

import (
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/rotorkms/rotor/internal/acl"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/wire/vault"
)

// TestNoRoom: where there is no room for a token the answer is that of Vault's quotas of leases, which its clients try again later; where there is none for a key
// it is another.
func TestNoRoom(t *testing.T) {
	for resource, want := range map[string]struct {
		status int
		text   string
	}{acl.LeaseCount: {429, "lease count quota exceeded: wait"}, "keys": {507, "quota_reached (keys)"}} {
		w := httptest.NewRecorder()
		vault.WriteError(w, fault.New(fault.QuotaReached, resource).WithHint("wait"))
		if w.Code != want.status || !strings.Contains(w.Body.String(), want.text) {
			t.Errorf("%s: %d %s", resource, w.Code, w.Body)
		}
	}
}
