package server_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/internal/server"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// receiver is a collector of traces.
type receiver struct {
	*httptest.Server
	mu    sync.Mutex // guards spans
	spans []*tracev1.Span
}

func newReceiver(t *testing.T) *receiver {
	t.Helper()
	r := &receiver{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		b, err := io.ReadAll(q.Body)
		var m collector.ExportTraceServiceRequest
		if err != nil || q.URL.Path != "/v1/traces" || proto.Unmarshal(b, &m) != nil {
			t.Errorf("%s: %v", q.URL, err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, res := range m.GetResourceSpans() {
			for _, s := range res.GetScopeSpans() {
				r.spans = append(r.spans, s.GetSpans()...)
			}
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	t.Cleanup(r.Close)
	return r
}

// find gives the span of a name, the newest one, and fails without.
func (r *receiver) find(t *testing.T, name string, kind tracev1.Span_SpanKind) *tracev1.Span {
	t.Helper()
	for _, s := range slices.Backward(r.spans) {
		if s.GetName() == name && s.GetKind() == kind {
			return s
		}
	}
	t.Fatalf("no span %s, %s of %d", name, kind, len(r.spans))
	return nil
}

// TestOneTrace: a call of the SDK, the server's work on it, and the commit in the store are one trace, which tells no secret.
func TestOneTrace(t *testing.T) {
	t.Parallel()
	w, r := newWorld(t), newReceiver(t)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w.config.Tracing = server.Tracing{Endpoint: r.URL, Sample: 1}
	w.start()
	exporter, err := otlptracehttp.New(t.Context(), otlptracehttp.WithEndpointURL(r.URL+"/v1/traces"))
	if err != nil {
		t.Fatal(err)
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter))
	c, err := rotor.Dial(t.Context(), rotor.Config{Identity: w.admin, Address: w.Address(), Tracing: provider})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	key := &rotorv1.KeyRef{Name: "named-in-no-span"}
	if _, err := c.Admin().Keys.Create(t.Context(), connect.NewRequest(&rotorv1.CreateRequest{Key: &rotorv1.Key{Name: key.GetName(), Purpose: "encrypt"}})); err != nil {
		t.Fatal(err)
	}
	plain := []byte("plaintext of 27 bytes, once")
	if _, err := c.Admin().Keys.Encrypt(t.Context(), connect.NewRequest(&rotorv1.EncryptRequest{Key: key, Plaintext: plain})); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Admin().Keys.Get(t.Context(), connect.NewRequest(&rotorv1.KeyRef{Name: "missing-in-no-span"})); err == nil {
		t.Fatal("found")
	}
	if err := provider.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil { // it sends what is left
		t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	const create = "rotor.v1.KeyService/Create"
	call := r.find(t, create, tracev1.Span_SPAN_KIND_CLIENT)
	work := r.find(t, create, tracev1.Span_SPAN_KIND_SERVER)
	if !bytes.Equal(work.GetTraceId(), call.GetTraceId()) || !bytes.Equal(work.GetParentSpanId(), call.GetSpanId()) {
		t.Error("the server's span does not follow the call's")
	}
	i := slices.IndexFunc(r.spans, func(s *tracev1.Span) bool {
		return s.GetName() == "store.commit" && bytes.Equal(s.GetTraceId(), call.GetTraceId()) && bytes.Equal(s.GetParentSpanId(), work.GetSpanId())
	})
	if i < 0 {
		t.Error("the commit is not in the trace")
	}
	for _, s := range r.spans {
		text := prototext.Format(s)
		secrets := []string{string(plain), base64.StdEncoding.EncodeToString(plain), "size", fmt.Sprintf("int_value:  %d\n", len(plain))}
		if s.GetKind() == tracev1.Span_SPAN_KIND_SERVER || strings.HasPrefix(s.GetName(), "store.") { // those of the caller are the caller's own
			secrets = append(secrets, key.GetName(), "missing-in-no-span", "admin/admin", "127.0.0.1")
		}
		for _, secret := range secrets {
			if strings.Contains(text, secret) {
				t.Errorf("%s is in a span: %s", secret, text)
			}
		}
	}
}

// TestTracesAreOff: without an endpoint no span is made and nothing stands in the way.
func TestTracesAreOff(t *testing.T) {
	t.Parallel()
	w, r := newWorld(t), newReceiver(t)
	w.made(&rotorv1.Key{Name: "records", Purpose: "encrypt"})
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if len(r.spans) > 0 {
		t.Error("spans were sent")
	}
	w.config.Tracing.Endpoint = "otel.example:4318"
	if _, err := server.Start(t.Context(), w.config); err == nil || !strings.Contains(err.Error(), "tracing.endpoint") {
		t.Errorf("%v", err)
	}
}

// TestLogHasTheTrace: what is logged in a trace names it.
func TestLogHasTheTrace(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	log, _, err := server.Config{Logging: server.Logging{Format: "json"}}.Logger(&b)
	if err != nil {
		t.Fatal(err)
	}
	ctx, span := sdktrace.NewTracerProvider().Tracer("test").Start(t.Context(), "x")
	log.With("a", 1).WithGroup("g").InfoContext(ctx, "inside", slog.String("k", "v"))
	span.End()
	log.InfoContext(t.Context(), "outside")
	first, second, _ := strings.Cut(b.String(), "\n")
	if !strings.Contains(first, span.SpanContext().TraceID().String()) || strings.Contains(second, "trace_id") {
		t.Error(b.String())
	}
}
