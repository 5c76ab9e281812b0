package telemetry

import (
	"cmp"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
)

// View is a server as it is at one moment.
type View struct {
	Ready    bool
	Draining bool
	Checks   map[string]bool

	Sealed      bool   // the root key is not open, or is being closed
	SealedFor   string // why
	Sealers     []Sealer
	Holds       bool // no root answers, and the server seals itself in HoldSeconds
	HoldSeconds float64

	Instances, Connected int     // members of the fleet; those with a stream to this server
	Connections          int     // open connections
	InFlight, Streams    int     // requests, streams that are being answered
	AuditEntries         float64 // entries in order
	AuditWaiting         float64 // committed entries that are not in order yet
	Leads                bool    // this server leads those that share its store
	Replicas, Silent     int     // servers on the store that live; those that do not and are in the list still
	Format               int     // that the servers on the store have agreed on
	CompactionsFailed    float64 // times that the history of the store could not be bounded
	CertificateDays      map[string]float64
	Sandbox              bool
	Token, TokenUp       bool // there is a token for keys of custody hsm; it answered when it was looked at last

	Keys    []Key
	MaxKeys int // how many of them are shown; 0: DefaultMaxKeys
}

// Sealer is what is shown of one root of trust that opens by itself.
type Sealer struct {
	ID, Kind      string
	Up            bool    // it opened when it was asked last
	Opened        bool    // it has, since the start
	OpenedSeconds float64 // since it last did
}

// Key is what is shown of one key.
type Key struct {
	Namespace, Name string
	AgeSeconds      float64 // since its primary version was activated
	Primary         uint32
	Live            int     // versions that can be used, the primary among them
	Holders         int     // members that hold it
	Laggards        int     // those of them that have not acknowledged what is being distributed, or the present primary
	PeriodDays      float64 // until its primary may protect no longer; negative: since then
	HasPeriod       bool    // there is such an end
	InFlight        bool    // a rotation waits or moves
	WaitedSeconds   float64 // since it began
	Paused          bool    // for longer than the key allows
	Census          *Census // nil: none was taken since the server started
}

// Census is what was counted last.
type Census struct {
	AgeSeconds              float64
	Primary, Older, Unknown uint64 // ciphertexts under the primary version, under others, under none of the key
	Unreachable             int    // data sets that could not be counted
}

// gauge is one metric that is read off a View.
type gauge struct {
	Metric
	read func(v *View, set func(value float64, labels ...string))
}

// views collects gauges.
type views struct {
	look   func() View
	gauges []gauge
}

// Describe implements prometheus.Collector: what a scrape shows differs with the keys, so nothing is promised.
func (views) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c views) Collect(out chan<- prometheus.Metric) {
	v := c.look()
	slices.SortFunc(v.Keys, func(a, b Key) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	for _, g := range c.gauges {
		desc := prometheus.NewDesc(g.Name, g.Help, g.Labels, nil)
		g.read(&v, func(value float64, labels ...string) {
			kind := prometheus.GaugeValue
			if g.Type == "counter" {
				kind = prometheus.CounterValue
			}
			out <- prometheus.MustNewConstMetric(desc, kind, value, labels...)
		})
	}
}

// shown are the keys that have metrics of their own: the first by namespace and name, so that the same ones are shown each time.
func (v *View) shown() []Key { return v.Keys[:min(len(v.Keys), cmp.Or(v.MaxKeys, DefaultMaxKeys))] }

func one(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// simple is a metric with one value.
func simple(name, help string, read func(v *View) float64) gauge {
	return gauge{Metric{name, "gauge", nil, help}, func(v *View, set func(float64, ...string)) { set(read(v)) }}
}

// perKey is a metric with a value for each shown key that has one.
func perKey(name, help string, read func(k Key) (float64, bool)) gauge {
	return gauge{Metric{name, "gauge", []string{"namespace", "key"}, help}, func(v *View, set func(float64, ...string)) {
		for _, k := range v.shown() {
			if x, ok := read(k); ok {
				set(x, k.Namespace, k.Name)
			}
		}
	}}
}

func gauges() []gauge {
	return slices.Concat(stateGauges(), sealerGauges(), serverGauges(), keyGauges())
}

// stateGauges are what a sealed server shows too.
func stateGauges() []gauge {
	return []gauge{
		simple("rotor_ready", "1 when /readyz answers 200.", func(v *View) float64 { return one(v.Ready) }),
		{Metric{"rotor_check", "gauge", []string{"check"}, "1 for each check of /readyz that holds."}, func(v *View, set func(float64, ...string)) {
			for name, ok := range v.Checks {
				set(one(ok), name)
			}
		}},
		simple("rotor_sealed", "1 while the root key is not open. A sealed server shows this, its reason and that it is not ready, to anybody, and nothing else.", func(v *View) float64 { return one(v.Sealed) }),
		{
			Metric{"rotor_sealed_reason", "gauge", []string{"reason"}, "1 for the reason that the server is sealed for: told, hold, shares or away; absent while it is open."},
			func(v *View, set func(float64, ...string)) {
				if v.SealedFor != "" {
					set(1, v.SealedFor)
				}
			},
		},
	}
}

func sealerGauges() []gauge {
	return []gauge{
		{Metric{"rotor_sealer_up", "gauge", []string{"sealer", "kind"}, "1 for each root of trust that opens by itself and did when it was asked last; people are not asked."}, func(v *View, set func(float64, ...string)) {
			for _, s := range v.Sealers {
				set(one(s.Up), s.ID, s.Kind)
			}
		}},
		{Metric{"rotor_sealer_opened_age_seconds", "gauge", []string{"sealer", "kind"}, "Time since a root of trust last opened; absent when it has not since the start."}, func(v *View, set func(float64, ...string)) {
			for _, s := range v.Sealers {
				if s.Opened {
					set(s.OpenedSeconds, s.ID, s.Kind)
				}
			}
		}},
		{Metric{"rotor_seal_hold_remaining_seconds", "gauge", nil, "Time until the server seals itself because no root of trust answers; absent while one does, and without seal_hold."}, func(v *View, set func(float64, ...string)) {
			if v.Holds {
				set(v.HoldSeconds)
			}
		}},
	}
}

func serverGauges() []gauge {
	return []gauge{
		simple("rotor_draining", "1 while the server stops.", func(v *View) float64 { return one(v.Draining) }),
		{Metric{"rotor_token_up", "gauge", nil, "1 while the PKCS #11 token in which keys of custody hsm are answers; absent where the configuration names none."}, func(v *View, set func(float64, ...string)) {
			if v.Token {
				set(one(v.TokenUp))
			}
		}},
		simple("rotor_sandboxed", "1 when the process has shut itself in.", func(v *View) float64 { return one(v.Sandbox) }),
		simple("rotor_fleet_instances", "Members of the fleet.", func(v *View) float64 { return float64(v.Instances) }),
		simple("rotor_fleet_connected", "Members with a stream to this server.", func(v *View) float64 { return float64(v.Connected) }),
		simple("rotor_connections", "Open connections of this server.", func(v *View) float64 { return float64(v.Connections) }),
		simple("rotor_requests_in_flight", "Requests that are being answered, streams not counted.", func(v *View) float64 { return float64(v.InFlight) }),
		simple("rotor_streams", "Streams that are open.", func(v *View) float64 { return float64(v.Streams) }),
		simple("rotor_audit_entries", "Entries of the audit log that are in order.", func(v *View) float64 { return v.AuditEntries }),
		simple("rotor_audit_waiting_entries", "Committed entries of the audit log that are not in order yet.", func(v *View) float64 { return v.AuditWaiting }),
		simple("rotor_leads", "1 at the server that leads those on its store: exactly one does, but for moments.", func(v *View) float64 { return one(v.Leads) }),
		{
			Metric{"rotor_replicas", "gauge", []string{"state"}, "Servers on the store, as this one has heard of them; state: alive or silent."},
			func(v *View, set func(float64, ...string)) {
				set(float64(v.Replicas), "alive")
				set(float64(v.Silent), "silent")
			},
		},
		simple("rotor_store_format", "Format of the store's records, the newest that every server on it knows.", func(v *View) float64 { return float64(v.Format) }),
		{
			Metric{"rotor_store_compactions_failed_total", "counter", nil, "Times that this server could not bound the history of the store, which then grows until its quota is used up."},
			func(v *View, set func(float64, ...string)) { set(v.CompactionsFailed) },
		},
		{Metric{"rotor_certificate_expiry_days", "gauge", []string{"certificate"}, "Days until a certificate of the server ends."}, func(v *View, set func(float64, ...string)) {
			for name, days := range v.CertificateDays {
				set(days, name)
			}
		}},
		simple("rotor_keys", "Keys.", func(v *View) float64 { return float64(len(v.Keys)) }),
		simple("rotor_keys_not_shown", "Keys beyond metrics.max_keys, which have no metrics of their own.", func(v *View) float64 { return float64(len(v.Keys) - len(v.shown())) }),
		simple("rotor_rotations_in_flight", "Keys, of all, with a rotation in flight.", func(v *View) float64 { return v.count(func(k Key) bool { return k.InFlight }) }),
		simple("rotor_rotations_paused", "Keys, of all, whose rotation has waited for longer than they allow.", func(v *View) float64 { return v.count(func(k Key) bool { return k.Paused }) }),
		simple("rotor_keys_period_over", "Keys, of all, whose primary version may protect no longer.", func(v *View) float64 {
			return v.count(func(k Key) bool { return k.HasPeriod && k.PeriodDays <= 0 })
		}),
	}
}

func (v *View) count(holds func(Key) bool) float64 {
	n := 0
	for _, k := range v.Keys {
		if holds(k) {
			n++
		}
	}
	return float64(n)
}

func keyGauges() []gauge {
	return []gauge{
		perKey("rotor_key_age_seconds", "Time since the primary version was activated.", func(k Key) (float64, bool) { return k.AgeSeconds, k.Primary > 0 }),
		perKey("rotor_key_primary_version", "Number of the version that protects.", func(k Key) (float64, bool) { return float64(k.Primary), true }),
		perKey("rotor_key_live_versions", "Versions that can still be used.", func(k Key) (float64, bool) { return float64(k.Live), true }),
		perKey("rotor_key_holders", "Members that hold the key.", func(k Key) (float64, bool) { return float64(k.Holders), true }),
		perKey("rotor_key_laggards", "Members that have not acknowledged what is being distributed, or the present primary version.", func(k Key) (float64, bool) {
			return float64(k.Laggards), true
		}),
		perKey("rotor_key_acknowledged_ratio", "Share of the holders that have acknowledged; 1 when there are none.", func(k Key) (float64, bool) {
			if k.Holders == 0 {
				return 1, true
			}
			return 1 - float64(k.Laggards)/float64(k.Holders), true
		}),
		perKey("rotor_key_rotation_in_flight", "1 while a rotation waits or moves.", func(k Key) (float64, bool) { return one(k.InFlight), true }),
		perKey("rotor_key_rotation_waiting_seconds", "Time since the rotation in flight began; 0 without one.", func(k Key) (float64, bool) { return k.WaitedSeconds, true }),
		perKey("rotor_key_rotation_paused", "1 when the rotation has waited for longer than the key allows.", func(k Key) (float64, bool) { return one(k.Paused), true }),
		perKey("rotor_key_cryptoperiod_remaining_days", "Days until the primary version may protect no longer; absent when its period has no end.", func(k Key) (float64, bool) {
			return k.PeriodDays, k.HasPeriod
		}),
		perKey("rotor_key_census_age_seconds", "Time since the last census; absent when none was taken since the server started.", func(k Key) (float64, bool) {
			if k.Census == nil {
				return 0, false
			}
			return k.Census.AgeSeconds, true
		}),
		perKey("rotor_key_census_unreachable", "Data sets that the last census could not count.", func(k Key) (float64, bool) {
			if k.Census == nil {
				return 0, false
			}
			return float64(k.Census.Unreachable), true
		}),
		{Metric{
			"rotor_key_census_ciphertexts", "gauge", []string{"namespace", "key", "under"},
			"Ciphertexts that the last census counted: under the primary version, under older ones, under no known one.",
		}, func(v *View, set func(float64, ...string)) {
			for _, k := range v.shown() {
				if c := k.Census; c != nil {
					set(float64(c.Primary), k.Namespace, k.Name, "primary")
					set(float64(c.Older), k.Namespace, k.Name, "older")
					set(float64(c.Unknown), k.Namespace, k.Name, "unknown")
				}
			}
		}},
	}
}
