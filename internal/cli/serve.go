package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/sandbox"
	"github.com/rotorkms/rotor/internal/server"
)

// quiet is the logger of one-shot commands: errors are returned, nothing else is of interest.
func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// serverFlags are the flags that server init, server run and dev share.
func serverFlags(c *cobra.Command, f *server.Config, dir string) {
	flags := c.Flags()
	flags.StringVar(&f.Dir, "dir", dir, "directory of the server: store, seal key, rules, administrator's identity")
	flags.StringVar(&f.Listen, "listen", "", "host:port to listen on; port 0 takes a free one (default 127.0.0.1:7420)")
	flags.StringVar(&f.Advertise, "advertise", "", "host:port that join tokens name (default: the listener's)")
	flags.StringVar(&f.Profile, "profile", f.Profile, "dev, single or ha: decides defaults and what is refused (default single)")
	flags.StringVar(&f.Store, "store", "", "URL of the store (default bolt:, which is the file DIR/rotor.db)")
	flags.StringVar(&f.Rules, "rules", "", "path of the rules file (default DIR/rules.yaml)")
	flags.StringVar(&f.SealKey, "seal-key", "", "path of the seal's key file (default DIR/seal.key); beside the store it protects against theft of the store alone")
	flags.StringVar(&f.TrustDomain, "trust-domain", "", "trust domain of SPIFFE IDs (default rotor.local); the same at init and at every run")
}

// configFlag adds --config: a file that says what no flag says. Call the function that it returns before the configuration is used.
func configFlag(c *cobra.Command, f *server.Config) (load func() error) {
	path := c.Flags().String("config", "", "configuration file (docs/reference/configuration.md); a flag that is given overrides it")
	return func() error {
		if *path == "" {
			return nil
		}
		given := map[string][]string{}
		c.Flags().Visit(func(fl *pflag.Flag) {
			given[fl.Name] = []string{fl.Value.String()}
			if list, ok := fl.Value.(pflag.SliceValue); ok {
				given[fl.Name] = list.GetSlice()
			}
		})
		file, err := server.ReadFile(*path)
		if err != nil {
			return err
		}
		*f = file
		for name, values := range given {
			v := c.Flags().Lookup(name).Value
			if list, ok := v.(pflag.SliceValue); ok {
				err = errors.Join(err, list.Replace(values))
			} else {
				err = errors.Join(err, v.Set(values[0]))
			}
		}
		return err
	}
}

// runFlags are the flags of a server that runs.
func runFlags(c *cobra.Command, f *server.Config) {
	flags := c.Flags()
	flags.StringVar(&f.Sandbox, "sandbox", f.Sandbox, "on, off or require: whether the process shuts itself in (default by profile)")
	flags.StringVar(&f.Socket, "socket", "", "path of a local socket: status, shares and, where there is no cluster yet, its init (docs/howto/operate-with-vault.md)")
	flags.StringVar(&f.User, "user", "", "user that a server started as root goes on as")
	flags.StringVar(&f.Logging.Format, "log-format", "", "text or json (default by profile)")
	flags.StringVar(&f.Logging.Level, "log-level", "", "debug, info, warn or error (default info)")
	flags.StringSliceVar(&f.Hosts, "host", nil, "name or address in the server's certificate, for strangers that check it; may be repeated (default: the listener's host)")
	flags.Var(duration{&f.LeaseTTL}, "lease-ttl", "how long an instance in fence mode goes on without the server (default 10s)")
	flags.Var(duration{&f.MaxSkew}, "max-skew", "bound of the drift between two clocks in one lease (default a tenth of it)")
}

// serve runs a server until ctx ends. ready is called with its address. SIGHUP reloads configuration and rules.
func (a *app) serve(ctx context.Context, c server.Config, ready func(address string)) error {
	var err error
	if c.Log, c.LogLevel, err = c.Logger(a.err); err != nil {
		return err
	}
	locked, err := sandbox.Harden() // a dump would hold every key in use
	if err != nil {
		return err
	}
	if c.User != "" {
		if err := sandbox.Become(c.User); err != nil {
			return err
		}
	}
	if !locked {
		c.Log.Debug("memory is not locked: its limit is too low")
	}
	s, err := server.Start(ctx, c)
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	wait := func() { ended <- s.Wait() } // ends with the server, which this function closes
	go wait()
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	if err := s.ShutIn(); err != nil {
		return errors.Join(err, s.CloseNow())
	}
	ready(s.Address())
	sandbox.Settle()
	for {
		select {
		case <-ctx.Done():
			c.Log.Info("stopping")
			return s.Close()
		case err := <-ended:
			if !server.StartsAgain(err) {
				return err
			}
			c.Log.Warn("the server starts again", "why", err)
			waited := s.Waiting()
			if s, err = s.Restart(ctx); err != nil {
				return err
			}
			if waited {
				if err := s.ShutIn(); err != nil {
					return errors.Join(err, s.CloseNow())
				}
				ready(s.Address())
			}
			go wait()
		case <-hup:
			if err := s.Reload(); err != nil {
				var f *fault.Error
				hint := ""
				if errors.As(err, &f) {
					hint = f.HintText()
				}
				c.Log.Error("configuration and rules not reloaded, the old ones stay", "error", err, "hint", hint)
			}
		}
	}
}

// listening is the one line that a server prints on standard output once it answers.
func (a *app) listening(address string) { fmt.Fprintf(a.out, "listening on %s\n", address) }
