// Package telemetry is what a server shows of itself: metrics in the format of Prometheus. It knows no room of the server: what is
// counted where it happens comes in through small hooks, and what is looked up at a scrape comes in as a View.
package telemetry

import (
	"net/http"
	"runtime"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// DefaultMaxKeys is how many keys have metrics of their own unless the configuration says another number.
const DefaultMaxKeys = 1000

// Build names what runs.
type Build struct {
	Version, Engine string
}

// Metrics are the metrics of one server. Safe for concurrent use.
type Metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	took     *prometheus.HistogramVec
	commits  *prometheus.HistogramVec
	reads    *prometheus.HistogramVec
	lag      prometheus.Histogram
	reloads  *prometheus.CounterVec
}

// New makes the metrics.
func New(b Build) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry()}
	m.requests = prometheus.NewCounterVec(counterOpts(requestsTotal), []string{"method", "code"})
	m.took = prometheus.NewHistogramVec(histogramOpts(requestSeconds, prometheus.ExponentialBuckets(0.0001, 3, 12)), []string{"method"})
	m.commits = prometheus.NewHistogramVec(histogramOpts(commitSeconds, prometheus.ExponentialBuckets(0.0005, 2, 14)), []string{"outcome"})
	m.reads = prometheus.NewHistogramVec(histogramOpts(readSeconds, prometheus.ExponentialBuckets(0.00001, 4, 10)), []string{"operation", "outcome"})
	m.lag = prometheus.NewHistogram(histogramOpts(watchSeconds, prometheus.ExponentialBuckets(0.0001, 4, 10)))
	m.reloads = prometheus.NewCounterVec(counterOpts(reloadsTotal), []string{"outcome"})
	info := prometheus.NewGauge(prometheus.GaugeOpts{Name: buildInfo.Name, Help: buildInfo.Help, ConstLabels: prometheus.Labels{
		"version": b.Version, "engine": b.Engine, "go_version": runtime.Version(),
	}})
	info.Set(1)
	m.registry.MustRegister(m.requests, m.took, m.commits, m.reads, m.lag, m.reloads, info,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Show adds what look finds at each scrape. Call it once.
func (m *Metrics) Show(look func() View) { m.registry.MustRegister(views{look, gauges()}) }

// Sealed answers a scrape of a server that is sealed for a reason, with nothing that a stranger may not know.
func Sealed(reason string) http.Handler {
	v := View{Sealed: true, SealedFor: reason, Checks: map[string]bool{"unsealed": false}}
	r := prometheus.NewRegistry()
	r.MustRegister(views{func() View { return v }, stateGauges()})
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{MaxRequestsInFlight: 4, EnableOpenMetrics: true})
}

// Handler answers a scrape. It asks nobody for rights: its caller does.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, EnableOpenMetrics: true})
}

// Request counts an answered request. Streams are counted when they end and have no place among the times.
func (m *Metrics) Request(method, code string, took time.Duration, stream bool) {
	m.requests.WithLabelValues(method, code).Inc()
	if !stream {
		m.took.WithLabelValues(method).Observe(took.Seconds())
	}
}

// Reload counts a reload of the configuration.
func (m *Metrics) Reload(err error) { m.reloads.WithLabelValues(outcome(err)).Inc() }

func outcome(err error) string {
	if err != nil {
		return "failed"
	}
	return "ok"
}

// Metric describes one metric for the reference.
type Metric struct {
	Name   string
	Type   string // gauge, counter or histogram
	Labels []string
	Help   string
}

// Metrics that are counted where something happens.
var (
	requestsTotal  = Metric{"rotor_requests_total", "counter", []string{"method", "code"}, "Requests answered, by method and outcome: ok or the code of the fault. A stream is counted when it ends."}
	requestSeconds = Metric{"rotor_request_duration_seconds", "histogram", []string{"method"}, "Time to answer a request; streams are not in it."}
	commitSeconds  = Metric{"rotor_store_commit_duration_seconds", "histogram", []string{"outcome"}, "Time until the store has acknowledged a commit; outcome: ok, conflict, unknown, full or failed."}
	readSeconds    = Metric{"rotor_store_read_duration_seconds", "histogram", []string{"operation", "outcome"}, "Time of a linearizable read (get) or of the start of a list."}
	watchSeconds   = Metric{"rotor_store_watch_lag_seconds", "histogram", nil, "Time from a commit of this server until the store's watch has brought it back."}
	reloadsTotal   = Metric{"rotor_config_reloads_total", "counter", []string{"outcome"}, "Reloads of configuration, rules and certificates; failed: the old ones stay."}
	buildInfo      = Metric{"rotor_build_info", "gauge", []string{"version", "engine", "go_version"}, "Always 1; what runs stands in the labels."}
)

// Catalogue lists rotor's own metrics, by name. Those of the Go runtime (go_*) and of the process (process_*) come beside them.
func Catalogue() []Metric {
	all := []Metric{requestsTotal, requestSeconds, commitSeconds, readSeconds, watchSeconds, reloadsTotal, buildInfo}
	for _, g := range gauges() {
		all = append(all, g.Metric)
	}
	slices.SortFunc(all, func(a, b Metric) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return all
}

func counterOpts(m Metric) prometheus.CounterOpts {
	return prometheus.CounterOpts{Name: m.Name, Help: m.Help}
}

func histogramOpts(m Metric, buckets []float64) prometheus.HistogramOpts {
	return prometheus.HistogramOpts{Name: m.Name, Help: m.Help, Buckets: buckets}
}
