package vault

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"net/http"
)

// response is the answer of a handler.
type response struct {
	status   int // 0: 200
	data     any
	auth     *auth
	wrap     *wrapInfo
	warnings []string
	top      map[string]any // also beside data, as some answers of sys/ have it
	other    http.Handler   // writes the whole answer instead, of a route that is raw
}

// auth is what a login gives.
type auth struct {
	ClientToken      string            `json:"client_token"`
	Accessor         string            `json:"accessor"`
	Policies         []string          `json:"policies"`
	TokenPolicies    []string          `json:"token_policies"`
	IdentityPolicies []string          `json:"identity_policies,omitempty"`
	Metadata         map[string]string `json:"metadata"`
	LeaseDuration    int64             `json:"lease_duration"` // seconds
	Renewable        bool              `json:"renewable"`
	EntityID         string            `json:"entity_id"`
	TokenType        string            `json:"token_type"`
	Orphan           bool              `json:"orphan"`
	MFARequirement   any               `json:"mfa_requirement"`
	NumUses          int               `json:"num_uses"`
}

// wrapInfo stands in place of an answer that was wrapped.
type wrapInfo struct {
	Token           string `json:"token"`
	Accessor        string `json:"accessor"`
	TTL             int64  `json:"ttl"` // seconds
	CreationTime    string `json:"creation_time"`
	CreationPath    string `json:"creation_path"`
	WrappedAccessor string `json:"wrapped_accessor,omitempty"`
}

// envelope is what every answer is in.
type envelope struct {
	RequestID     string    `json:"request_id"`
	LeaseID       string    `json:"lease_id"`
	Renewable     bool      `json:"renewable"`
	LeaseDuration int64     `json:"lease_duration"`
	Data          any       `json:"data"`
	WrapInfo      *wrapInfo `json:"wrap_info"`
	Warnings      []string  `json:"warnings"`
	Auth          *auth     `json:"auth"`
	MountType     string    `json:"mount_type"`
}

// newEnvelope puts an answer into one.
func newEnvelope(out *response, engine string) envelope {
	return envelope{
		RequestID: newID(), Data: out.data, WrapInfo: out.wrap, Warnings: out.warnings, Auth: out.auth, MountType: engine,
	}
}

// newID is a random UUID (RFC 9562, 5.4).
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // it cannot fail
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return uuidText(b)
}

// uuidText writes 16 bytes as a UUID (RFC 9562, 4).
func uuidText(b [16]byte) string {
	var out [36]byte
	for at, from := 0, 0; from < len(b); from++ {
		if at == 8 || at == 13 || at == 18 || at == 23 {
			out[at] = '-'
			at++
		}
		hex.Encode(out[at:], b[from:from+1])
		at += 2
	}
	return string(out[:])
}

// write sends an answer.
func write(w http.ResponseWriter, to *route, out *response) {
	status := out.status
	if status == 0 {
		status = http.StatusOK
	}
	body := out.data
	if !to.raw {
		e := newEnvelope(out, to.engine)
		body = e
		if out.top != nil {
			body = beside(e, out.top)
		}
	}
	j := jsonWriter{to: w, status: status}
	if err := json.NewEncoder(&j).Encode(body); err != nil && !j.begun { // a handler gave what has no JSON
		writeError(w, err)
	} // else the client is gone
}

// jsonWriter begins an answer with the first bytes of it. The encoder gives all of them at once, out of a buffer that is used again.
type jsonWriter struct {
	to     http.ResponseWriter
	status int
	begun  bool
}

// Write implements io.Writer.
func (j *jsonWriter) Write(b []byte) (int, error) {
	if !j.begun {
		j.begun = true
		h := j.to.Header()
		h.Set("Content-Type", "application/json")
		h.Set("Cache-Control", "no-store")
		j.to.WriteHeader(j.status)
	}
	return j.to.Write(b)
}

// beside is an envelope with more members; its own count.
func beside(e envelope, top map[string]any) map[string]any {
	out := make(map[string]any, len(top)+9)
	for name, value := range top {
		out[name] = value
	}
	for name, value := range map[string]any{
		"request_id": e.RequestID, "lease_id": e.LeaseID, "renewable": e.Renewable, "lease_duration": e.LeaseDuration, "data": e.Data, "wrap_info": e.WrapInfo,
		"warnings": e.Warnings, "auth": e.Auth, "mount_type": e.MountType,
	} {
		out[name] = value
	}
	return out
}

// keys is the answer to a list; nil, which is 404, when there are none.
func keys(names []string) *response {
	if len(names) == 0 {
		return nil
	}
	return &response{data: map[string]any{"keys": names}}
}
