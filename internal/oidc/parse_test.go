package oidc

import (
	"testing"
)

// FuzzParseSet: whatever an issuer sends, only keys come out that can verify something.
func FuzzParseSet(f *testing.F) {
	f.Add([]byte(`{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"a","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`))
	f.Add([]byte(`{"keys":[{"kty":"EC","crv":"P-256","x":"","y":""},{"kty":"oct","k":"AAAA"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		keys, err := parseSet(b)
		if err != nil && keys != nil {
			t.Error("refused with keys")
		}
		for kid, k := range keys {
			if kid != k.KeyID || len(algorithms(k.Key)) == 0 || !k.IsPublic() {
				t.Errorf("%q: %T", kid, k.Key)
			}
		}
	})
}

// FuzzParseDiscovery: a key set is fetched by https alone, and of the issuer that was asked.
func FuzzParseDiscovery(f *testing.F) {
	f.Add([]byte(`{"issuer":"https://a","jwks_uri":"https://a/keys"}`))
	f.Add([]byte(`{"issuer":"https://a","jwks_uri":"file:///etc/passwd"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if at, err := parseDiscovery(b, "https://a"); err == nil && !secure(at) {
			t.Errorf("%q", at)
		}
	})
}
