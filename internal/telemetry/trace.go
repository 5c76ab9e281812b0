package telemetry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"

	"connectrpc.com/connect"
	"connectrpc.com/otelconnect"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/store"
)

// TraceConfig says where traces go.
type TraceConfig struct {
	Endpoint string  // URL of an OTLP/HTTP receiver, such as https://otel.example:4318; default $OTEL_EXPORTER_OTLP_TRACES_ENDPOINT and $OTEL_EXPORTER_OTLP_ENDPOINT
	Sample   float64 // share of the traces that begin here, 0 to 1
	Version  string
	Log      *slog.Logger
}

// On says whether traces go anywhere.
func (c TraceConfig) On() bool {
	return cmp.Or(c.Endpoint, os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"), os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT")) != ""
}

// Tracing sends spans to a receiver. The zero Tracing, and nil, do nothing.
type Tracing struct {
	provider *sdktrace.TracerProvider
	calls    connect.Interceptor
}

// NewTracing begins to send, or returns nil when traces go nowhere. Its caller stops it. fault.Invalid.
func NewTracing(ctx context.Context, c TraceConfig) (*Tracing, error) {
	if !c.On() {
		return nil, nil //nolint:nilnil // nil does nothing
	}
	var o []otlptracehttp.Option
	if c.Endpoint != "" {
		u, err := url.Parse(c.Endpoint)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return nil, fault.New(fault.Invalid, "tracing.endpoint").WithHint("the URL of an OTLP/HTTP receiver, such as https://otel.example:4318")
		}
		if strings.Trim(u.Path, "/") == "" {
			u.Path = "/v1/traces" // OTLP/HTTP, "Request"
		}
		o = append(o, otlptracehttp.WithEndpointURL(u.String()))
	}
	exporter, err := otlptracehttp.New(ctx, o...)
	if err != nil {
		return nil, fmt.Errorf("make exporter of traces: %w", err)
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { c.Log.Warn("traces not sent", "error", err) }))
	t := &Tracing{provider: sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(bare{exporter}),
		sdktrace.WithResource(resource.NewSchemaless(attribute.String("service.name", "rotor-server"), attribute.String("service.version", c.Version))),
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(c.Sample))),
	)}
	t.calls, err = otelconnect.NewInterceptor(otelconnect.WithTracerProvider(t.provider), otelconnect.WithoutMetrics(),
		otelconnect.WithPropagator(propagation.TraceContext{}), otelconnect.WithTrustRemote())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("trace calls: %w", err), t.Stop(ctx))
	}
	return t, nil
}

// bare sends spans without the text of errors, which names keys: the code is in the attributes.
type bare struct{ sdktrace.SpanExporter }

// ExportSpans implements sdktrace.SpanExporter.
func (b bare) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	out := make([]sdktrace.ReadOnlySpan, len(spans))
	for i, s := range spans {
		out[i] = bareSpan{s}
	}
	return b.SpanExporter.ExportSpans(ctx, out)
}

type bareSpan struct{ sdktrace.ReadOnlySpan }

// Status implements sdktrace.ReadOnlySpan.
func (s bareSpan) Status() sdktrace.Status {
	return sdktrace.Status{Code: s.ReadOnlySpan.Status().Code}
}

// Calls are the interceptors of the handlers: none when nothing is traced.
func (t *Tracing) Calls() []connect.Interceptor {
	if t == nil {
		return nil
	}
	return []connect.Interceptor{t.calls}
}

// Stop sends what is left until ctx ends.
func (t *Tracing) Stop(ctx context.Context) error {
	if t == nil {
		return nil
	}
	return t.provider.Shutdown(ctx)
}

// Store traces the calls of a store that requests make; loops of the server itself begin no traces. Keys and values are in no span.
func (t *Tracing) Store(s store.Store) store.Store {
	if t == nil {
		return s
	}
	return &traced{Store: s, tracer: t.provider.Tracer("github.com/rotorkms/rotor/internal/store")}
}

type traced struct {
	store.Store
	tracer trace.Tracer
}

// Get implements store.Store.
func (t *traced) Get(ctx context.Context, key string) (store.Record, error) {
	ctx, end := t.span(ctx, "store.get")
	r, err := t.Store.Get(ctx, key)
	end(err, 0)
	return r, err
}

// Commit implements store.Store.
func (t *traced) Commit(ctx context.Context, conds []store.Cond, ops []store.Op) (store.Rev, error) {
	ctx, end := t.span(ctx, "store.commit")
	rev, err := t.Store.Commit(ctx, conds, ops)
	end(err, len(ops))
	return rev, err
}

func (t *traced) span(ctx context.Context, name string) (context.Context, func(err error, records int)) {
	if !trace.SpanContextFromContext(ctx).IsSampled() {
		return ctx, func(error, int) {}
	}
	ctx, s := t.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindClient))
	return ctx, func(err error, records int) {
		if records > 0 {
			s.SetAttributes(attribute.Int("rotor.records", records))
		}
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			s.SetStatus(codes.Error, commitOutcome(err))
		}
		s.End()
	}
}

// WithTrace adds the ID of the trace to each line that is logged in one.
func WithTrace(h slog.Handler) slog.Handler { return lines{h} }

type lines struct{ slog.Handler }

// Handle implements slog.Handler.
func (l lines) Handle(ctx context.Context, r slog.Record) error {
	if s := trace.SpanContextFromContext(ctx); s.IsValid() {
		r = r.Clone()
		r.AddAttrs(slog.String("trace_id", s.TraceID().String()))
	}
	return l.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (l lines) WithAttrs(a []slog.Attr) slog.Handler { return lines{l.Handler.WithAttrs(a)} }

// WithGroup implements slog.Handler.
func (l lines) WithGroup(name string) slog.Handler { return lines{l.Handler.WithGroup(name)} }
