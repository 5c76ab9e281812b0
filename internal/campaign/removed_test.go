package campaign_test

import (
	"crypto/tls"
	"errors"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/rotorkms/rotor/internal/campaign"
	"github.com/rotorkms/rotor/internal/fault"
)

// TestRemovedDataSetIsNotBelieved: a connection that was made before the instance was removed gives no evidence after.
func TestRemovedDataSetIsNotBelieved(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"shards":["0"],"counts":{}}`)) }))
	defer s.Close()
	var removed atomic.Bool
	a := campaign.HTTP(s.URL, &tls.Config{InsecureSkipVerify: true, VerifyConnection: func(tls.ConnectionState) error {
		if removed.Load() {
			return errors.New("removed")
		}
		return nil
	}})
	if _, err := a.Info(t.Context()); err != nil {
		t.Fatal(err)
	}
	removed.Store(true)
	if n, _, err := a.Census(t.Context(), "0"); fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("a removed instance's census is taken: %v %v", n, err)
	}
}
