package server

import (
	"cmp"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/sandbox"
	"github.com/rotorkms/rotor/internal/telemetry"
)

// The profiles: what a server is for decides its defaults, and what it refuses to do without.
const (
	ProfileDev    = "dev"    // a workshop: nothing is asked for
	ProfileSingle = "single" // one server in earnest
	ProfileHA     = "ha"     // several servers over one replicated store
)

// The ways to run a process that shuts itself in.
const (
	SandboxOff     = "off"
	SandboxOn      = "on"      // as far as the kernel can, with a line in the log about what it cannot
	SandboxRequire = "require" // or do not start
)

// Drain says how a server stops.
type Drain struct {
	Delay time.Duration `yaml:"delay"` // how long it says that it is not ready before it stops to take requests, for load balancers to hear; default 0 s, in profile ha 5 s
	Time  time.Duration `yaml:"time"`  // how long it waits for requests in flight then; default 5 s
}

// Tracing says where traces go. They are off unless an endpoint is named, here or by OTEL_EXPORTER_OTLP_ENDPOINT.
type Tracing struct {
	Endpoint string  `yaml:"endpoint"` // URL of an OTLP/HTTP receiver
	Sample   float64 `yaml:"sample"`   // share of the traces that begin at the server; those of callers go on as they decided; default 0.01
}

// maxDrain bounds both times.
const maxDrain = 10 * time.Minute

// Logging says how the server logs.
type Logging struct {
	Format string `yaml:"format"` // text or json; default text, in profile ha json
	Level  string `yaml:"level"`  // debug, info, warn or error; default info
}

func (l Logging) level() slog.Level {
	var v slog.Level
	_ = v.UnmarshalText([]byte(l.Level)) // validate has asked it; what is empty is info
	return v
}

// Logger makes the logger that the configuration asks for, with the level that a reload changes. fault.Invalid.
func (c Config) Logger(w io.Writer) (*slog.Logger, *slog.LevelVar, error) {
	c = c.defaults()
	if err := c.Logging.validate(); err != nil {
		return nil, nil, err
	}
	level := new(slog.LevelVar)
	level.Set(c.Logging.level())
	o := &slog.HandlerOptions{Level: level}
	if c.Logging.Format == "json" {
		return slog.New(telemetry.WithTrace(slog.NewJSONHandler(w, o))), level, nil
	}
	return slog.New(telemetry.WithTrace(slog.NewTextHandler(w, o))), level, nil
}

func (l Logging) validate() error {
	if l.Format != "text" && l.Format != "json" {
		return fault.New(fault.Invalid, "log.format").WithHint("text or json")
	}
	switch l.Level {
	case "debug", "info", "warn", "error":
		return nil
	}
	return fault.New(fault.Invalid, "log.level").WithHint("debug, info, warn or error")
}

// Bounds of what nobody shall be able to set to nothing in earnest.
const (
	recoverWait    = 24 * time.Hour // default
	minRecoverWait = time.Hour
	maxRecoverWait = 30 * 24 * time.Hour
	minShredEvery  = time.Hour // each shred seals everything again
	devShredEvery  = time.Second
)

// validateWaits refuses a recovery that nobody can notice in time, and shreds without pause. fault.Invalid.
func (c Config) validateWaits() error {
	bad := func(field, hint string) error { return fault.New(fault.Invalid, field).WithHint("%s", hint) }
	dev := c.Profile == ProfileDev
	switch {
	case c.RecoverWait < 0 || c.RecoverWait > maxRecoverWait || !dev && c.RecoverWait < minRecoverWait:
		return bad("recovery_delay", "1 h to 30 d; in profile dev 0 s to 30 d")
	case c.ShredEvery < 0 || c.ShredEvery > 0 && (c.ShredEvery < devShredEvery || !dev && c.ShredEvery < minShredEvery):
		return bad("shred_every", "0, never, or at least 1 h; in profile dev at least 1 s")
	}
	return nil
}

// profiled fills what the profile decides.
func (c Config) profiled() Config {
	c.Profile = cmp.Or(c.Profile, ProfileSingle)
	c.Drain.Time = cmp.Or(c.Drain.Time, 5*time.Second)
	c.Logging.Level = cmp.Or(c.Logging.Level, "info")
	c.Tracing.Sample = cmp.Or(c.Tracing.Sample, 0.01)
	if c.Profile != ProfileDev {
		c.RecoverWait = cmp.Or(c.RecoverWait, recoverWait)
	}
	switch c.Profile {
	case ProfileHA:
		c.Drain.Delay = cmp.Or(c.Drain.Delay, 5*time.Second)
		c.Logging.Format = cmp.Or(c.Logging.Format, "json")
		c.Sandbox = cmp.Or(c.Sandbox, SandboxRequire)
	case ProfileDev:
		c.Sandbox = cmp.Or(c.Sandbox, SandboxOff)
	default:
		c.Sandbox = cmp.Or(c.Sandbox, SandboxOn)
	}
	c.Logging.Format = cmp.Or(c.Logging.Format, "text")
	return c
}

// validateProfile refuses what the profile does without. fault.Invalid.
func (c Config) validateProfile() error {
	bad := func(field, hint string) error { return fault.New(fault.Invalid, field).WithHint("%s", hint) }
	switch c.Profile {
	case ProfileDev, ProfileSingle, ProfileHA:
	default:
		return bad("profile", "dev, single or ha")
	}
	switch c.Sandbox {
	case SandboxOff, SandboxOn, SandboxRequire:
	default:
		return bad("sandbox", "on, off or require")
	}
	if c.Drain.Delay < 0 || c.Drain.Delay > maxDrain {
		return bad("drain.delay", "0 s to 10 min")
	}
	if c.Drain.Time < 0 || c.Drain.Time > maxDrain {
		return bad("drain.time", "0 s to 10 min")
	}
	if c.Tracing.Sample < 0 || c.Tracing.Sample > 1 {
		return bad("tracing.sample", "0 to 1")
	}
	if c.Profile == ProfileHA {
		if engine, err := engineOf(c.Store); err != nil || engine == engineBolt {
			return bad("store", "profile ha needs a store that several servers share; bolt: is one file of one server")
		}
		if c.Sandbox != SandboxRequire {
			return bad("sandbox", "profile ha requires it")
		}
		if c.Advertise == "" {
			return bad("advertise", "profile ha needs the address that all replicas are reached at")
		}
	}
	return c.Logging.validate()
}

// ShutIn shuts the process in as the configuration says (package sandbox), for good; call it once the server serves. fault.Unavailable when
// it is required and the kernel cannot do all of it.
func (s *Server) ShutIn() error {
	c := s.config
	if c.Sandbox == SandboxOff || s.waits { // an init writes what the configuration names
		return nil
	}
	box := sandbox.Config{Write: append([]string{c.Dir, filepath.Dir(c.Anchor)}, c.SandboxPaths...), Require: c.Sandbox == SandboxRequire}
	for _, path := range append(c.paths(), &c.File) { // what is read again, by its directory: editors put new files in the place of old ones
		if *path != "" && path != &c.Dir {
			box.Read = append(box.Read, filepath.Dir(*path))
		}
	}
	for _, path := range c.storeFiles() {
		box.Read = append(box.Read, filepath.Dir(path))
	}
	r, err := sandbox.Enter(box)
	if err != nil {
		return err
	}
	if len(r.Missing) > 0 {
		c.Log.Warn("the kernel cannot shut the process in as far as rotor would", "missing", r.Missing)
	}
	state := SandboxOn
	if len(r.Missing) > 0 {
		state = "partial, without " + strings.Join(r.Missing, ", ")
	}
	s.sandbox.Store(&state)
	s.sandboxed.Store(len(r.Missing) == 0)
	c.Log.Info("shut in", "landlock", r.Landlock, "missing", r.Missing)
	return nil
}

// Checked is the configuration with its defaults, and what is wrong with it. The engine is "" when the store's URL names none.
func (c Config) Checked() (full Config, engine string, err error) {
	full = c.defaults()
	engine, _ = engineOf(full.Store) // validate says what is wrong with it
	err = full.validate()
	if err == nil {
		_, _, err = hashedRules(full.Rules)
	}
	return full, engine, err
}
