package server_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/identity"
	"github.com/rotorkms/rotor/internal/rpc"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/server"
	"github.com/rotorkms/rotor/internal/store/mem"
	"github.com/rotorkms/rotor/internal/suite"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// What is planted: nobody without a right may see any of it. Both lengths make whole groups of base64.
const (
	plantedText = "the-text-behind-payroll-"
	plantedKey  = "planted-key-material-of-32-bytes"
)

// prober is a server with something in it, and everybody who sends it anything at all.
type prober struct {
	*world
	store    unclosed
	callers  []sender
	instance string            // directory of the identity
	kept     []byte            // a ciphertext under a key that no request names
	genuine  []genuine         // requests that mean something
	blobs    [][]byte          // what a request may hold that the server made
	texts    map[string]string // the planted ones, by their form
}

type sender struct {
	who  string
	http *http.Client
	sees bool // what is planted
}

type genuine struct {
	procedure string
	request   proto.Message
}

const probed = adminOnly + `  - name: its own key
    callers: ["spiffe://rotor.local/instance/a"]
    actions: ["*"]
    keys: {namespace: "default", names: ["mine"]}
`

// newProber starts a server whose log holds errors alone.
func newProber(t testing.TB) *prober {
	t.Helper()
	dir := t.TempDir()
	p := &prober{world: &world{t: t, log: &logged{}}, store: unclosed{mem.New()}}
	p.config = server.Config{
		Dir: dir, Listen: "127.0.0.1:0", Rules: filepath.Join(dir, "rules.yaml"), Limits: server.Limits{LoginRate: 1e6, LoginBurst: 1e6},
		Log: slog.New(slog.NewTextHandler(p.log, &slog.HandlerOptions{Level: slog.LevelError})),
	}.Defaults()
	if err := os.WriteFile(p.config.Rules, []byte(probed), 0o600); err != nil {
		t.Fatal(err)
	}
	made, err := server.InitOn(t.Context(), p.config, p.store)
	if err != nil {
		t.Fatal(err)
	}
	p.admin = made.AdminDir
	p.again()
	for _, name := range []string{"victim", "other"} {
		p.join(name)
	}
	p.instance = p.join("a")
	p.callers = []sender{{"administrator", as(t, p.admin), true}, {"instance", as(t, p.instance), false}, {"stranger", as(t, ""), false}}
	p.texts = map[string]string{}
	for _, text := range []string{plantedText, plantedKey} {
		p.texts[text], p.texts[text+" in hex"] = text, hex.EncodeToString([]byte(text))
		p.texts[text+" in base64"] = base64.StdEncoding.EncodeToString([]byte(text[:len(text)/3*3]))
	}
	p.plant()
	return p
}

// again starts a server on the store, which verifies all of it.
func (p *prober) again() {
	p.t.Helper()
	sealers, err := server.Sealers(p.config)
	if err != nil {
		p.t.Fatal(err)
	}
	if p.Server, err = server.StartOn(p.t.Context(), p.config, p.store, sealers); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = p.Close() })
}

// plant makes keys and what is under them.
func (p *prober) plant() {
	t, ctx, keys := p.t, p.t.Context(), p.client().Admin().Keys
	t.Helper()
	for _, k := range []*rotorv1.Key{
		{Name: "mine", Purpose: "encrypt"}, {Name: "payroll", Purpose: "encrypt"}, {Name: "files", Purpose: "wrap"}, {Name: "signer", Purpose: "sign"},
		{Name: "fleet", Purpose: "encrypt", Custody: "fleet"}, {Name: "kept", Purpose: "encrypt"},
	} {
		p.made(k)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	header := append([]byte{1}, make([]byte, 16+4+4)...) // of a file without content type and context (spec/file.md)
	payroll, files := &rotorv1.KeyRef{Name: "payroll"}, &rotorv1.KeyRef{Name: "files"}
	kept, err := keys.Encrypt(ctx, connect.NewRequest(&rotorv1.EncryptRequest{Key: &rotorv1.KeyRef{Name: "kept"}, Plaintext: []byte("kept")}))
	must(err)
	c, err := keys.Encrypt(ctx, connect.NewRequest(&rotorv1.EncryptRequest{Key: payroll, Plaintext: []byte(plantedText)}))
	must(err)
	wrap, err := keys.Wrap(ctx, connect.NewRequest(&rotorv1.WrapRequest{Key: files, Dek: []byte(plantedKey), Immutable: header}))
	must(err)
	to, err := keys.PrepareImport(ctx, connect.NewRequest(&rotorv1.PrepareImportRequest{Key: &rotorv1.KeyRef{Name: "brought"}}))
	must(err)
	sealed, err := suite.SealKey(suite.Transport(to.Msg.GetTransport()), to.Msg.GetPublic(), to.Msg.GetId(), secret.Copy([]byte(plantedKey)))
	must(err)
	_, err = keys.Import(ctx, connect.NewRequest(&rotorv1.ImportRequest{
		Key: &rotorv1.Key{Name: "brought", Purpose: "encrypt", Custody: "fleet", Exportable: true}, WrappingKey: to.Msg.GetId(), Sealed: sealed,
	}))
	must(err)
	p.kept, p.blobs = kept.Msg.GetCiphertext(), [][]byte{c.Msg.GetCiphertext(), wrap.Msg.GetWrap().GetBlob(), header, to.Msg.GetPublic(), sealed}
	const service = "/rotor.v1.KeyService/"
	p.genuine = []genuine{
		{service + "Decrypt", &rotorv1.DecryptRequest{Key: payroll, Ciphertext: c.Msg.GetCiphertext()}},
		{service + "Unwrap", &rotorv1.UnwrapRequest{Wrap: wrap.Msg.GetWrap(), Immutable: header}},
		{service + "Rewrap", &rotorv1.RewrapRequest{Wrap: wrap.Msg.GetWrap(), Immutable: header}},
		{service + "Export", &rotorv1.ExportKeyRequest{Key: &rotorv1.KeyRef{Name: "brought"}, Version: 1, Recipient: to.Msg.GetPublic()}},
		{service + "Get", &rotorv1.KeyRef{Name: "brought"}},
	}
}

// endpoints are the methods of every service.
func endpoints() (all []protoreflect.MethodDescriptor) {
	services := rotorv1.File_rotor_v1_rotor_proto.Services()
	for i := range services.Len() {
		for j := range services.Get(i).Methods().Len() {
			all = append(all, services.Get(i).Methods().Get(j))
		}
	}
	return all
}

func procedureOf(m protoreflect.MethodDescriptor) string {
	return "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
}

func streams(m protoreflect.MethodDescriptor) bool {
	return m.IsStreamingServer() || m.IsStreamingClient()
}

// known are texts that some field takes. The administrator who sends and the instance that sends are not among those whom requests name, so that
// they are still known at the end.
var known = map[string][]string{
	"name": {"mine", "payroll", "files", "signer", "fleet", "brought", "new", "victim", "other", "missing"}, "namespace": {"", "", "", "default", "elsewhere"},
	"purpose": {"encrypt", "wrap", "sign", "mac", "token", "decrypt", "encapsulate"}, "custody": {"", "", "server", "fleet", "hsm"},
	"algorithm": {"", "", "", "AES-256-GCM", "XAES-256-GCM", "Ed25519", "none"}, "event": {"suspend", "resume", "compromise", "revoke", "unlock"},
	"url": {"https://127.0.0.1:1", "http://x", "https://[", "file:///etc/passwd"}, "silence": {"", "fence", "wait", "withdraw"},
	"caller": {"", "admin/admin", "instance/victim", "credential/new"}, "grantee": {"credential/new", "spiffe://rotor.local/instance/victim", "*"},
	"actions": {"decrypt", "encrypt", "*", "grant", "deliver"}, "cidrs": {"127.0.0.0/8", "::/0", "300.0.0.0/8"}, "change": {"add", "remove", "rotate"},
	"shares": {"2/3", "0/0", "255/255", "9999999999/1"}, "token": {"rotor_join_x", "rotor_session_x"}, "credential": {"rotor_credential_x_y"}, "jwt": {"e30.e30.x"},
}

// anything sets a field of every kind to something, most of the time.
func (p *prober) anything(r *rand.Rand, m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if r.IntN(5) == 0 {
			continue
		}
		switch {
		case f.IsMap():
			for range r.IntN(3) {
				key := protoreflect.ValueOfString(text(r, f.Name())).MapKey()
				m.Mutable(f).Map().Set(key, protoreflect.ValueOfString(text(r, f.Name())))
			}
		case f.IsList() && f.Message() == nil:
			for range r.IntN(4) {
				m.Mutable(f).List().Append(p.value(r, f))
			}
		case f.IsList():
			for range r.IntN(4) {
				p.anything(r, m.Mutable(f).List().AppendMutable().Message(), depth-1)
			}
		case f.Message() != nil && depth > 0:
			p.anything(r, m.Mutable(f).Message(), depth-1)
		case f.Message() == nil:
			m.Set(f, p.value(r, f))
		}
	}
}

func text(r *rand.Rand, field protoreflect.Name) string {
	if all := known[string(field)]; len(all) > 0 && r.IntN(4) > 0 {
		return all[r.IntN(len(all))]
	}
	all := []string{"", "x", "../../x", "a\x00b", "\u202e\ufffd", "**", "admin/../x", strings.Repeat("a", 65), strings.Repeat("é", 1<<15), "{{.}}", "'; --"}
	return all[r.IntN(len(all))]
}

func (p *prober) value(r *rand.Rand, f protoreflect.FieldDescriptor) protoreflect.Value {
	number := []uint64{0, 1, 2, 1 << 31, math.MaxUint32, math.MaxInt64, math.MaxUint64, r.Uint64(), uint64(time.Hour)}[r.IntN(9)]
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(r.IntN(2) == 0)
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(text(r, f.Name()))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes(p.blob(r))
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(number))
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(number))
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(number)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(int64(number))
	}
	panic("a kind of field that the fuzzing does not know: " + f.Kind().String())
}

// blob is nothing, noise, or what the server made, whole or damaged.
func (p *prober) blob(r *rand.Rand) []byte {
	switch r.IntN(5) {
	case 0:
		return nil
	case 1:
		return make([]byte, 1<<16)
	case 2:
		b := make([]byte, r.IntN(100))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	b := bytes.Clone(p.blobs[r.IntN(len(p.blobs))])
	if r.IntN(3) == 0 {
		b[r.IntN(len(b))] ^= 1 << r.IntN(8)
	}
	return b[:len(b)-r.IntN(2)]
}

func framed(flags byte, b []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{flags}, uint32(len(b))), b...)
}

// body is one request: bytes, and what they are said to be.
type body struct {
	kind, encoding string
	bytes          []byte
}

// bodies are the forms of one message, and broken ones of it.
func bodies(r *rand.Rand, m protoreflect.MethodDescriptor, in proto.Message) []body {
	b, err := proto.Marshal(in)
	if err != nil {
		panic(err)
	}
	half, junk := b[:len(b)/2], []byte(strings.Repeat("[", 20_000))
	if streams(m) {
		all := []body{{"application/connect+proto", "", framed(0, b)}, {"application/grpc", "", framed(0, b)}}
		return append(all, [][]body{
			{{"application/connect+proto", "", framed(0, half)}}, {{"application/connect+proto", "", framed(0, b)[:5+len(half)]}}, {{"application/connect+proto", "", nil}},
			{{"application/connect+proto", "", framed(1, b)}}, {{"application/connect+json", "", framed(0, junk)}}, {{"application/connect+proto", "", framed(2, []byte("{}"))}},
			{{"application/connect+proto", "", append(framed(0, b), framed(0, b)...)}}, {{"application/grpc", "", []byte{0, 255, 255, 255, 255}}},
		}[r.IntN(8)]...)
	}
	all := []body{{"application/proto", "", b}, {"application/grpc", "", framed(0, b)}}
	if j, err := protojson.Marshal(in); err == nil { // not every time can be written
		all[r.IntN(2)] = body{"application/json", "", j}
	}
	return append(all, [][]body{
		{{"application/proto", "", half}}, {{"application/json", "", junk}}, {{"application/json", "", nil}}, {{"application/proto", "gzip", b}}, {{"text/plain", "", b}}, {{"", "", b}},
		{{"application/grpc", "", nil}}, {{"application/grpc", "", framed(0, b)[:5+len(half)]}}, {{"application/grpc-web+proto", "", framed(1, b)}},
		{{"application/json", "", []byte(`{"key":{"name":"mine","name":"mine"}}`)}}, {{"application/proto", "", bytes.Repeat([]byte{0x0b}, 20_000)}},
	}[r.IntN(11)]...)
}

// hang is far above what any request takes.
const hang = time.Minute

// send sends one request and looks at the answer: it comes, is a result or says which fault, and shows nothing that the caller may not see.
func (p *prober) send(ctx context.Context, c sender, procedure string, b body) error {
	ctx, cancel := context.WithTimeout(ctx, hang)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+p.Address()+procedure, bytes.NewReader(b.bytes))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", b.kind)
	if b.encoding != "" {
		r.Header.Set("Content-Encoding", b.encoding)
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return fmt.Errorf("no answer: %w", err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("half an answer: %w", err)
	}
	if what := mistake(resp, got); what != "" {
		return fmt.Errorf("answered %d, %s: %.300q", resp.StatusCode, what, got)
	}
	for name, text := range p.texts {
		if !c.sees && bytes.Contains(got, []byte(text)) {
			return fmt.Errorf("tells %s", name)
		}
	}
	return nil
}

// mistake says what is wrong with an answer: a mistake of the server's, or a failure without a code.
func mistake(resp *http.Response, got []byte) string {
	said := resp.Header.Get("Grpc-Message") + resp.Trailer.Get("Grpc-Message")
	switch grpc := resp.Header.Get("Grpc-Status") + resp.Trailer.Get("Grpc-Status"); grpc {
	case "2", "13", "15":
		if !strings.HasPrefix(said, "protocol error: ") { // INTERNAL is what gRPC's specification wants for a frame that is none
			return "grpc status " + grpc + " " + said
		}
	}
	if i := bytes.LastIndex(got, []byte(`{"error":`)); i >= 0 && strings.HasPrefix(resp.Header.Get("Content-Type"), "application/connect+") {
		var end struct{ Error json.RawMessage }
		if err := json.Unmarshal(got[i:], &end); err != nil {
			return "an end that is none"
		}
		return uncoded(end.Error)
	}
	switch resp.StatusCode {
	case http.StatusOK, http.StatusUnsupportedMediaType:
		return ""
	case http.StatusNotFound:
		if !json.Valid(got) { // no such procedure here
			return ""
		}
	case http.StatusUnauthorized:
		if !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") { // to what is no protocol of ours
			return ""
		}
	}
	return uncoded(got)
}

func uncoded(b []byte) string {
	var e struct{ Code string }
	switch err := json.Unmarshal(b, &e); {
	case err != nil:
		return "no code"
	case e.Code == "internal", e.Code == "unknown", e.Code == "data_loss", e.Code == "":
		return "code " + e.Code
	}
	return ""
}

// skipped is what would end the test: a server that was told to seal itself answers nobody.
func skipped(c sender, m protoreflect.MethodDescriptor) bool {
	return c.who == "administrator" && procedureOf(m) == "/rotor.v1.SealService/Seal"
}

// withEnd: a tail that follows has no end.
func withEnd(in proto.Message) {
	if m := in.ProtoReflect(); m.Descriptor().Name() == "TailRequest" {
		m.Clear(m.Descriptor().Fields().ByName("follow"))
	}
}

// healthy: the server answers, opens what was encrypted before, has logged no mistake, and what it stored and logged verifies at the next start.
func (p *prober) healthy() {
	t := p.t
	t.Helper()
	for _, path := range []string{"/healthz", "/readyz"} {
		resp, err := as(t, "").Get("https://" + p.Address() + path)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %v, %v", path, resp, err)
		}
		resp.Body.Close()
	}
	for range 2 {
		r, err := p.client().Admin().Keys.Decrypt(t.Context(), connect.NewRequest(&rotorv1.DecryptRequest{Key: &rotorv1.KeyRef{Name: "kept"}, Ciphertext: p.kept}))
		if err != nil || string(r.Msg.GetPlaintext()) != "kept" {
			t.Fatalf("%v, %v", r, rpc.Decode(err))
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		p.again()
	}
	if log := p.log.String(); log != "" {
		t.Errorf("the server logged mistakes:\n%.4000s", log)
	}
}

// TestEveryEndpoint sends every procedure requests of all kinds, whole and broken, as an administrator, as an instance with a right on one key, and as
// a stranger. What is sent is the same in every run.
func TestEveryEndpoint(t *testing.T) {
	t.Parallel()
	p := newProber(t)
	for _, g := range p.genuine {
		b, err := proto.Marshal(g.request)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range p.callers {
			if err := p.send(t.Context(), c, g.procedure, body{"application/proto", "", b}); err != nil {
				t.Errorf("%s, %s: %v", c.who, g.procedure, err)
			}
		}
	}
	all := endpoints()
	if len(all) < 45 {
		t.Fatalf("only %d endpoints", len(all))
	}
	var wg sync.WaitGroup
	for _, c := range p.callers {
		wg.Go(func() {
			for _, m := range all {
				if skipped(c, m) {
					continue
				}
				p.tryOne(t, c, m, 3)
			}
		})
	}
	wg.Wait()
	p.tryHold(t)
	p.healthy()
}

// tryHold opens streams as an instance does, and then says anything.
func (p *prober) tryHold(t *testing.T) {
	d, err := identity.Read(p.instance)
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint64(20) {
		r := rand.New(rand.NewPCG(i, 2))
		s, up := hello(t, p.world, d, p.callers[1].http)
		for range 5 {
			m := &rotorv1.HoldUp{}
			p.anything(r, m.ProtoReflect(), 3)
			if m.Keys = append(m.GetKeys(), known["name"]...); r.IntN(3) > 0 {
				m.Hello, m.Leave = up.GetHello(), false
			}
			_ = s.Send(m) // the stream may have ended
		}
		_ = s.CloseRequest()
		for err = nil; err == nil; {
			_, err = s.Receive()
		}
		if err = rpc.Decode(err); !errors.Is(err, io.EOF) && fault.CodeOf(err) == fault.Internal {
			t.Errorf("stream %d: %v", i, err)
		}
	}
}

func (p *prober) tryOne(t *testing.T, c sender, m protoreflect.MethodDescriptor, times int) {
	seed := fnv.New64a()
	_, _ = io.WriteString(seed, c.who+string(m.FullName()))
	r := rand.New(rand.NewPCG(seed.Sum64(), 0))
	for range times {
		in := dynamicpb.NewMessage(m.Input())
		p.anything(r, in, 3)
		withEnd(in)
		for _, b := range bodies(r, m, in) {
			if err := p.send(t.Context(), c, procedureOf(m), b); err != nil {
				t.Errorf("%s, %s as %q: %v\n%.500v", c.who, procedureOf(m), b.kind, err, in)
			}
		}
	}
}

// FuzzEndpoint sends one message's bytes to one method, as one of the callers.
func FuzzEndpoint(f *testing.F) {
	p, all := newProber(f), endpoints()
	for i, m := range all {
		in := dynamicpb.NewMessage(m.Input())
		p.anything(rand.New(rand.NewPCG(uint64(i), 1)), in, 3)
		withEnd(in)
		b, err := proto.Marshal(in)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), uint8(i), b)
	}
	f.Fuzz(func(t *testing.T, method, who uint8, b []byte) {
		m, c := all[int(method)%len(all)], p.callers[int(who)%len(p.callers)]
		in := dynamicpb.NewMessage(m.Input())
		err := proto.Unmarshal(b, in)
		if skipped(c, m) || len(b) > 1<<16 {
			return
		}
		if err == nil {
			withEnd(in)
			if b, err = proto.Marshal(in); err != nil {
				t.Fatal(err)
			}
		} else if m.Name() == "Tail" {
			return // the request may be whole to who reads it otherwise
		}
		form := body{"application/proto", "", b}
		switch {
		case who%2 == 1:
			form = body{"application/grpc", "", framed(0, b)}
		case streams(m):
			form = body{"application/connect+proto", "", framed(0, b)}
		}
		if err := p.send(t.Context(), c, procedureOf(m), form); err != nil {
			t.Errorf("%s, %s as %s: %v\n%v", c.who, procedureOf(m), form.kind, err, in)
		}
		if log := p.log.String(); log != "" {
			t.Errorf("%s, %s: the server logged %.2000s", c.who, procedureOf(m), log)
		}
	})
}
