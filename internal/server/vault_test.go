package server_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"testing"

	"github.com/rotorkms/rotor/internal/wire/vault"
)

// vaultClient asks a server as clients of Vault do.
type vaultClient struct {
	t       testing.TB
	address string
	token   string
	header  http.Header // more of it
	http    *http.Client
}

// vault is a client with a token; "": without.
func (w *world) vault(token string) *vaultClient {
	w.t.Helper()
	return &vaultClient{w.t, "https://" + w.Address() + "/v1/", token, http.Header{}, as(w.t, "")}
}

// operatorRules let the caller operator do everything.
const operatorRules = `  - name: vault
    callers: ["credential/operator"]
    actions: ["*"]
    keys: {namespace: "**", names: ["**"]}
`

// operator is a client with the session of a caller who may do everything by rotor's own rules.
func (w *world) operator() *vaultClient {
	w.t.Helper()
	w.rules(adminOnly + operatorRules)
	_, path := w.credential("operator")
	return w.vault(w.session(path).Token())
}

// answer is what came back.
type answer struct {
	status int
	text   string
	body   map[string]any
}

// errors are those of an answer, with nothing between them.
func (a answer) errors() (out string) {
	all, _ := a.body["errors"].([]any)
	for _, e := range all {
		out += e.(string)
	}
	return out
}

// do sends a request. The body is JSON, unless it is bytes; nil: none.
func (c *vaultClient) do(method, path string, body any) answer {
	c.t.Helper()
	var b []byte
	switch body := body.(type) {
	case nil:
	case []byte:
		b = body
	default:
		var err error
		if b, err = json.Marshal(body); err != nil {
			c.t.Fatal(err)
		}
	}
	r, err := http.NewRequestWithContext(c.t.Context(), method, c.address+path, bytes.NewReader(b))
	if err != nil {
		c.t.Fatal(err)
	}
	r.Header = c.header.Clone()
	r.Header.Set("X-Vault-Request", "true")
	if c.token != "" {
		r.Header.Set("X-Vault-Token", c.token)
	}
	resp, err := c.http.Do(r)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	out := answer{status: resp.StatusCode}
	if b, err = io.ReadAll(resp.Body); err != nil {
		c.t.Fatal(err)
	}
	out.text = string(b)
	if kind := resp.Header.Get("Content-Type"); resp.StatusCode == http.StatusNoContent && kind != "application/json" { // clients take it for Vault's by that
		c.t.Errorf("%s %s: nothing of type %q", method, path, kind)
	}
	isJSON := resp.Header.Get("Content-Type") == "application/json" || resp.StatusCode != http.StatusOK && resp.StatusCode/100 != 3 // metrics are text
	if len(b) > 0 && isJSON && json.Unmarshal(b, &out.body) != nil {
		c.t.Errorf("%s %s: no JSON: %.200s", method, path, b)
	}
	return out
}

// TestVaultDoor: who comes in at /v1/, and what the others are told.
func TestVaultDoor(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op := w.operator()
	for what, c := range map[string]struct {
		client *vaultClient
		header map[string]string
		method string
		path   string
		status int
		text   string
	}{
		"no token":              {w.vault(""), nil, "GET", "transit/keys/a", 403, "permission denied"},
		"a wrong token":         {w.vault("s.abc"), nil, "GET", "transit/keys/a", 403, "permission denied"},
		"a session":             {op, nil, "GET", "nowhere/x", 404, `no handler for route "nowhere/x". route entry not found.`},
		"a bearer":              {w.vault(""), map[string]string{"Authorization": "Bearer " + op.token}, "GET", "nowhere/x", 404, `no handler for route "nowhere/x". route entry not found.`},
		"another scheme":        {w.vault(""), map[string]string{"Authorization": "Basic " + op.token}, "GET", "nowhere/x", 403, "permission denied"},
		"a wrong one beside it": {w.vault("x"), map[string]string{"Authorization": "Bearer " + op.token}, "GET", "nowhere/x", 403, "permission denied"},
		"a bad namespace":       {op, map[string]string{"X-Vault-Namespace": "A b"}, "GET", "transit/keys", 404, "no handler for route: there is no such namespace"},
	} {
		c.client.header = http.Header{}
		for name, value := range c.header {
			c.client.header.Set(name, value)
		}
		if a := c.client.do(c.method, c.path, nil); a.status != c.status || a.errors() != c.text {
			t.Errorf("%s: %d %s", what, a.status, a.text)
		}
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, op.address+"transit/keys/a", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := as(t, w.admin).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("a certificate, which a browser shows by itself: %d", resp.StatusCode)
	}
	op.header = http.Header{}
	if a := op.do("POST", "transit/keys/a", make([]byte, vault.MaxBody+1)); a.status != http.StatusRequestEntityTooLarge {
		t.Errorf("a large body: %d %s", a.status, a.text)
	}
}
