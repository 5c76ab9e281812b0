package server_test

import (
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/identity"
	"github.com/rotorkms/rotor/internal/rpc"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// ca writes the cluster's authority to a file.
func (w *world) ca() string {
	w.t.Helper()
	d, err := identity.Read(w.admin)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.file("ca.pem", string(d.CAPEM()))
}

func (w *world) file(name, text string) string {
	w.t.Helper()
	path := filepath.Join(w.t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return path
}

func (w *world) credential(name string) (id, path string) {
	w.t.Helper()
	r, err := w.client().Admin().Auth.CreateCredential(w.t.Context(), connect.NewRequest(&rotorv1.CreateCredentialRequest{Name: name}))
	if err != nil {
		w.t.Fatal(err)
	}
	return r.Msg.GetCredential().GetId(), w.file("credential", r.Msg.GetText()+"\n")
}

func (w *world) session(path string) *rotor.Session {
	w.t.Helper()
	s, err := rotor.NewSession(w.t.Context(), rotor.Login{Address: w.Address(), CAFile: w.ca(), CredentialFile: path})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = s.Close(context.Background()) })
	return s
}

// withBearer shows a session in raw requests.
type withBearer struct {
	token string
	next  http.RoundTripper
}

func (b withBearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r.Header.Set("Authorization", "Bearer "+b.token)
	return b.next.RoundTrip(r)
}

func code(err error) fault.Code { return fault.CodeOf(rpc.Decode(err)) }

// TestSessionComesBack: the SDK logs in again when its session is revoked, or ends, and gives up when its credential is revoked.
func TestSessionComesBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.rules(adminOnly + "  - {name: ci, callers: [credential/ci], actions: [status]}\n")
	id, path := w.credential("ci")
	s := w.session(path)
	status := func() error {
		_, err := s.Admin().Server.Status(t.Context(), connect.NewRequest(&rotorv1.StatusRequest{}))
		return err
	}
	if err := status(); err != nil || s.Caller() != "credential/ci" {
		t.Fatal(s.Caller(), err)
	}
	first := s.Token()
	if _, err := w.client().Admin().Auth.RevokeSessions(t.Context(), connect.NewRequest(&rotorv1.RevokeSessionsRequest{Caller: "credential/ci"})); err != nil {
		t.Fatal(err)
	}
	if err := status(); err != nil || s.Token() == first {
		t.Fatalf("revoked: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w.config.Listen = w.Address()
	w.start()
	if err := status(); err != nil {
		t.Fatalf("after the server's restart: %v", err)
	}
	w.offset.Store(int64(2 * time.Hour))
	if err := status(); err != nil {
		t.Fatalf("after its idle limit: %v", err)
	}
	if _, err := w.client().Admin().Auth.ChangeCredential(t.Context(), connect.NewRequest(&rotorv1.ChangeCredentialRequest{Id: id, Event: "revoke"})); err != nil {
		t.Fatal(err)
	}
	if err := status(); code(err) != fault.Unauthenticated {
		t.Errorf("its credential is revoked: %v", err)
	}
}

// TestServersAreChecked: a session is not asked for from anybody else.
func TestServersAreChecked(t *testing.T) {
	t.Parallel()
	w, other := newWorld(t), newWorld(t)
	_, path := w.credential("ci")
	for what, ca := range map[string]string{"another cluster's authority": other.ca(), "the system's": ""} {
		_, err := rotor.NewSession(t.Context(), rotor.Login{Address: w.Address(), CAFile: ca, CredentialFile: path})
		if err == nil {
			t.Errorf("%s: logged in", what)
		}
	}
	for what, l := range map[string]rotor.Login{
		"no address": {CredentialFile: path}, "no such file": {Address: w.Address(), CAFile: w.ca(), CredentialFile: "/nowhere"},
		"no authority": {Address: w.Address(), CAFile: path, CredentialFile: path}, "nothing": {Address: w.Address(), CAFile: w.ca()},
	} {
		if _, err := rotor.NewSession(t.Context(), l); err == nil {
			t.Errorf("%s: logged in", what)
		}
	}
}

// TestStreamsEndWithTheirSession: a tail of a session that is revoked ends, and others go on.
func TestStreamsEndWithTheirSession(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.rules(adminOnly + "  - {name: ci, callers: [credential/*], actions: [audit.read]}\n")
	open := func(name string) (*connect.ServerStreamForClient[rotorv1.TailEntry], *rotor.Session) {
		_, path := w.credential(name)
		s := w.session(path)
		tail, err := s.Admin().Audit.Tail(t.Context(), connect.NewRequest(&rotorv1.TailRequest{Follow: true}))
		if err != nil {
			t.Fatal(err)
		}
		if !tail.Receive() {
			t.Fatal(tail.Err())
		}
		return tail, s
	}
	revoked, _ := open("a")
	stays, s := open("b")
	if _, err := w.client().Admin().Auth.RevokeSessions(t.Context(), connect.NewRequest(&rotorv1.RevokeSessionsRequest{Caller: "credential/a"})); err != nil {
		t.Fatal(err)
	}
	end := time.AfterFunc(20*time.Second, func() { _ = revoked.Close() })
	for revoked.Receive() {
	}
	if !end.Stop() {
		t.Error("the tail of a revoked session goes on")
	}
	w.made(&rotorv1.Key{Name: "later", Purpose: "encrypt"})
	for stays.Receive() {
		if strings.Contains(string(stays.Msg().GetEntry()), `"key":"later"`) {
			return
		}
	}
	t.Errorf("another session's tail ended: %v (%s)", stays.Err(), s.Caller())
}

// TestGrants: a grant lends for the associated data that it names, what the rules let the grantor do, as long as they do.
func TestGrants(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const owner = `  - name: owner
    callers: ["credential/owner"]
    actions: [grant, encrypt, decrypt, wrap, unwrap]
    keys: {namespace: default, names: [records, files]}
`
	w.rules(adminOnly + owner)
	w.made(&rotorv1.Key{Name: "records", Purpose: "encrypt"})
	w.made(&rotorv1.Key{Name: "other", Purpose: "encrypt"})
	_, path := w.credential("owner")
	owned := w.session(path).Admin()
	_, path = w.credential("guest")
	guest := w.session(path).Admin()
	ctx, key := t.Context(), &rotorv1.KeyRef{Name: "records"}
	parts := func(job string) []*rotorv1.Part {
		return []*rotorv1.Part{{Label: "job", Value: []byte(job)}, {Label: "x"}}
	}
	seal := func(job string) []byte {
		r, err := owned.Keys.Encrypt(ctx, connect.NewRequest(&rotorv1.EncryptRequest{Key: key, Plaintext: []byte("p"), Parts: parts(job)}))
		if err != nil {
			t.Fatal(err)
		}
		return r.Msg.GetCiphertext()
	}
	decrypt := func(p []*rotorv1.Part, c []byte) fault.Code {
		_, err := guest.Keys.Decrypt(ctx, connect.NewRequest(&rotorv1.DecryptRequest{Key: key, Ciphertext: c, Parts: p}))
		return code(err)
	}
	grant := func(a *rotor.Admin, m *rotorv1.CreateGrantRequest) (*rotorv1.Grant, fault.Code) {
		r, err := a.Auth.CreateGrant(ctx, connect.NewRequest(m))
		if err != nil {
			return nil, code(err)
		}
		return r.Msg, ""
	}
	one, two := seal("1"), seal("2")
	if c := decrypt(parts("1"), one); c != fault.Denied {
		t.Fatalf("without a grant: %s", c)
	}
	g, c := grant(owned, &rotorv1.CreateGrantRequest{Grantee: "credential/guest", Actions: []string{"decrypt"}, Key: key, Context: map[string]string{"job": "1"}})
	if c != "" {
		t.Fatal(c)
	}
	for what, e := range map[string]struct {
		got, want fault.Code
	}{
		"what it is for":     {decrypt(parts("1"), one), ""},
		"another job":        {decrypt(parts("2"), two), fault.Denied},
		"another job's data": {decrypt(parts("1"), two), fault.DecryptFailed},
		"no job":             {decrypt(nil, one), fault.Denied},
		"job twice":          {decrypt(append(parts("2"), parts("1")...), two), fault.Denied},
		"job twice, turned":  {decrypt(append(parts("1"), parts("2")...), one), fault.Denied},
	} {
		if e.got != e.want {
			t.Errorf("%s: %q, want %q", what, e.got, e.want)
		}
	}
	if _, err := guest.Keys.Encrypt(ctx, connect.NewRequest(&rotorv1.EncryptRequest{Key: key, Parts: parts("1")})); code(err) != fault.Denied {
		t.Errorf("another action: %v", err)
	}
	for what, m := range map[string]*rotorv1.CreateGrantRequest{
		"a key that is not its own":    {Grantee: "credential/guest", Actions: []string{"decrypt"}, Key: &rotorv1.KeyRef{Name: "other"}},
		"a key that is not":            {Grantee: "credential/guest", Actions: []string{"decrypt"}, Key: &rotorv1.KeyRef{Name: "nothing"}},
		"an action that it may not do": {Grantee: "credential/guest", Actions: []string{"key.show"}, Key: key},
	} {
		if _, c := grant(owned, m); c != fault.Denied {
			t.Errorf("%s: %q", what, c)
		}
	}
	if _, c := grant(guest, &rotorv1.CreateGrantRequest{Grantee: "credential/x", Actions: []string{"decrypt"}, Key: key}); c != fault.Denied {
		t.Errorf("a grant of a grant: %q", c)
	}
	admin := w.client().Admin()
	for what, m := range map[string]*rotorv1.CreateGrantRequest{
		"delivery": {Grantee: "credential/guest", Actions: []string{"deliver"}, Key: key}, "destruction": {Grantee: "credential/guest", Actions: []string{"destroy"}, Key: key},
		"everything": {Grantee: "credential/guest", Actions: []string{"*"}, Key: key}, "nothing": {Grantee: "credential/guest", Key: key},
		"a pattern": {Grantee: "credential/*", Actions: []string{"decrypt"}, Key: key}, "nobody": {Actions: []string{"decrypt"}, Key: key},
		"oneself": {Grantee: "admin/admin", Actions: []string{"decrypt"}, Key: key}, "twice": {Grantee: "credential/guest", Actions: []string{"decrypt", "decrypt"}, Key: key},
		"for ever": {Grantee: "credential/guest", Actions: []string{"decrypt"}, Key: key, TtlNs: int64(91 * 24 * time.Hour)},
	} {
		if _, c := grant(admin, m); c != fault.Invalid {
			t.Errorf("%s: %q", what, c)
		}
	}
	w.rules(adminOnly + strings.Replace(owner, "decrypt, ", "", 1))
	if c := decrypt(parts("1"), one); c != fault.Denied {
		t.Errorf("the grantor may not do it any more: %q", c)
	}
	w.rules(adminOnly + strings.Replace(owner, "grant, ", "", 1))
	if c := decrypt(parts("1"), one); c != fault.Denied {
		t.Errorf("the grantor may not grant any more: %q", c)
	}
	w.rules(adminOnly + owner)
	if c := decrypt(parts("1"), one); c != "" {
		t.Errorf("the grantor may again: %q", c)
	}
	w.grantsEnd(guest, g, func() fault.Code { return decrypt(parts("1"), one) })
}

// grantsEnd revokes and outlives grants.
func (w *world) grantsEnd(guest *rotor.Admin, g *rotorv1.Grant, try func() fault.Code) {
	t, ctx := w.t, w.t.Context()
	t.Helper()
	if _, err := guest.Auth.RevokeGrant(ctx, connect.NewRequest(&rotorv1.RevokeGrantRequest{Id: g.GetId()})); code(err) != fault.NotFound {
		t.Errorf("the grantee revokes: %v", err)
	}
	r, err := guest.Auth.Grants(ctx, connect.NewRequest(&rotorv1.GrantsRequest{}))
	if err != nil || len(r.Msg.GetGrants()) != 1 {
		t.Errorf("its grants: %v, %v", r, err)
	}
	admin := w.client().Admin()
	if _, err := admin.Auth.RevokeGrant(ctx, connect.NewRequest(&rotorv1.RevokeGrantRequest{Id: g.GetId()})); err != nil {
		t.Errorf("who may grant on the key revokes: %v", err)
	}
	if c := try(); c != fault.Denied {
		t.Errorf("revoked: %q", c)
	}
	for what, m := range map[string]*rotorv1.CreateGrantRequest{"time": {TtlNs: int64(time.Minute)}, "uses": {Uses: 2}} {
		m.Grantee, m.Actions, m.Key = "credential/guest", []string{"decrypt"}, &rotorv1.KeyRef{Name: "records"}
		if _, err := admin.Auth.CreateGrant(ctx, connect.NewRequest(m)); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if c := try(); c != "" {
				t.Errorf("%s: %q", what, c)
			}
		}
		if what == "time" {
			w.offset.Add(int64(time.Minute))
		}
		if c := try(); c != fault.Denied {
			t.Errorf("beyond its %s: %q", what, c)
		}
	}
	if _, err := admin.Auth.CreateGrant(ctx, connect.NewRequest(&rotorv1.CreateGrantRequest{
		Grantee: "credential/guest", Actions: []string{"decrypt"}, Key: &rotorv1.KeyRef{Name: "records"},
	})); err != nil {
		t.Fatal(err)
	}
	if c := try(); c != "" {
		t.Errorf("another grant: %q", c)
	}
	token, err := admin.Auth.InviteAdmin(ctx, connect.NewRequest(&rotorv1.InviteAdminRequest{Name: "second"}))
	if err != nil {
		t.Fatal(err)
	}
	c, err := rotor.Dial(ctx, rotor.Config{Identity: filepath.Join(t.TempDir(), "second"), JoinToken: token.Msg.GetToken(), Address: w.Address()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Admin().Auth.RemoveAdmin(ctx, connect.NewRequest(&rotorv1.RemoveAdminRequest{Name: "admin"})); err != nil {
		t.Fatal(err)
	}
	if c := try(); c != fault.Denied {
		t.Errorf("its grantor was removed: %q", c)
	}
}

// open are the procedures that somebody without any right is answered by: about itself alone.
var open = map[string]bool{
	"/rotor.v1.AuthService/Login": true, "/rotor.v1.AuthService/Logout": true, "/rotor.v1.AuthService/Whoami": true, "/rotor.v1.AuthService/Sessions": true,
	"/rotor.v1.AuthService/Grants": true, "/rotor.v1.JoinService/Join": true, "/rotor.v1.JoinService/Renew": true, "/rotor.v1.KeyService/List": true,
	// Whether the server is sealed, and shares, which are their own credential.
	"/rotor.v1.SealService/Status": true, "/rotor.v1.SealService/Unseal": true, "/rotor.v1.SealService/Reset": true,
}

// TestWithoutRights tries every procedure as a caller whom no rule names, by session and by certificate, about a key that is there and one that
// is not: the answers are a refusal, and the same.
func TestWithoutRights(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.made(&rotorv1.Key{Name: "payroll", Purpose: "wrap", Labels: map[string]string{"team": "secret"}})
	w.made(&rotorv1.Key{Name: "signer", Purpose: "sign"})
	_, path := w.credential("nobody")
	instance := w.join("bare")
	w.rules(adminOnly)
	session := as(t, "")
	session.Transport = withBearer{w.session(path).Token(), session.Transport}
	all := 0
	services := rotorv1.File_rotor_v1_rotor_proto.Services()
	for i := range services.Len() {
		for j := range services.Get(i).Methods().Len() {
			m := services.Get(i).Methods().Get(j)
			procedure := "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
			all++
			if open[procedure] {
				continue
			}
			for who, h := range map[string]*http.Client{"session": session, "certificate": as(t, instance)} {
				var answers []string
				for _, name := range []string{"payroll", "missing"} {
					answers = append(answers, strings.ReplaceAll(w.refused(h, who+" "+procedure, procedure, m, name), name, "KEY"))
				}
				if answers[0] != answers[1] {
					t.Errorf("%s %s tells what is there: %q", who, procedure, answers)
				}
			}
		}
	}
	if all < 45 {
		t.Errorf("only %d procedures", all)
	}
	r, err := rotorv1.NewKeyServiceClient(session, "https://"+w.Address()).List(t.Context(), connect.NewRequest(&rotorv1.ListRequest{}))
	if err != nil || len(r.Msg.GetKeys()) != 0 {
		t.Errorf("keys: %v, %v", r, err)
	}
}

// refused sends a request whose fields name a key, and expects a refusal that holds nothing.
func (w *world) refused(h *http.Client, what, procedure string, m protoreflect.MethodDescriptor, name string) string {
	w.t.Helper()
	in := dynamicpb.NewMessage(m.Input())
	fill(in, name, 3)
	body, err := proto.Marshal(in)
	if err != nil {
		w.t.Fatal(err)
	}
	kind := "application/proto"
	if m.IsStreamingServer() || m.IsStreamingClient() {
		kind = "application/connect+proto"
		body = append([]byte{0, byte(len(body) >> 24), byte(len(body) >> 16), byte(len(body) >> 8), byte(len(body))}, body...)
	}
	r, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost, "https://"+w.Address()+procedure, strings.NewReader(string(body)))
	if err != nil {
		w.t.Fatal(err)
	}
	r.Header.Set("Content-Type", kind)
	resp, err := h.Do(r)
	if err != nil {
		w.t.Fatalf("%s: %v", what, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatalf("%s: %v", what, err)
	}
	text := string(b)
	refusal := strings.Contains(text, `"permission_denied"`) || strings.Contains(text, `"unauthenticated"`) || strings.Contains(text, `"not_found"`) && strings.HasSuffix(procedure, "/RevokeGrant") ||
		strings.Contains(text, `"invalid_argument"`) && (strings.HasSuffix(procedure, "/Hold") || strings.HasSuffix(procedure, "/RevokeSessions")) ||
		resp.StatusCode == http.StatusNotFound && strings.HasPrefix(procedure, "/rotor.v1.SealService/") // which serves elsewhere
	if !refusal || resp.StatusCode == http.StatusOK && !strings.HasPrefix(kind, "application/connect+") {
		w.t.Errorf("%s about %s: %d %q", what, name, resp.StatusCode, text)
	}
	for _, secret := range []string{"secret", "signer", "purpose"} {
		if strings.Contains(text, secret) {
			w.t.Errorf("%s about %s tells %q: %s", what, name, secret, text)
		}
	}
	return protobuf.ReplaceAllString(text, "")
}

// protobuf is the binary form of what stands beside it in JSON.
var protobuf = regexp.MustCompile(`"value":"[^"]*",`)

// fill sets every text to a name, numbers to 1, and inner messages the same way.
func fill(m protoreflect.Message, name string, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case f.IsMap() || f.IsList():
		case f.Kind() == protoreflect.StringKind && f.Name() != "namespace":
			m.Set(f, protoreflect.ValueOfString(name))
		case f.Kind() == protoreflect.MessageKind && depth > 0:
			fill(m.Mutable(f).Message(), name, depth-1)
		case f.Kind() == protoreflect.Uint32Kind:
			m.Set(f, protoreflect.ValueOfUint32(1))
		}
	}
}
