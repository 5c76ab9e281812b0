package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
)

// maxSecret bounds tokens that are read from a file or standard input, in bytes.
const maxSecret = 64 << 10

// interruptible is a stream whose Read ends with ctx.
type interruptible struct {
	ctx context.Context
	r   io.Reader
}

// Read implements io.Reader. The operating system offers no way to end a blocking read of standard input, so the read is left
// behind in its goroutine; that happens only when the process is about to end. It has a buffer of its own, as nobody may write
// into b after Read returned.
func (i interruptible) Read(b []byte) (int, error) {
	type result struct {
		n   int
		err error
	}
	own, done := make([]byte, len(b)), make(chan result, 1)
	go func() {
		n, err := i.r.Read(own)
		done <- result{n, err}
	}()
	select {
	case r := <-done:
		return copy(b, own[:r.n]), r.err
	case <-i.ctx.Done():
		return 0, fault.New(fault.Canceled, "").WithHint("nothing was changed")
	}
}

// confirm shows a plan and asks. Without a terminal and without --yes it is a usage error.
func (a *app) confirm(plan string) error {
	return a.ask(plan, "Go on? [y/N] ", func(s string) bool { return strings.EqualFold(s, "y") || strings.EqualFold(s, "yes") })
}

// confirmName shows a plan that cannot be undone and asks for the name of what it is about.
func (a *app) confirmName(plan, name string) error {
	return a.ask(plan, fmt.Sprintf("This cannot be undone. Type %s to go on: ", name), func(s string) bool { return s == name })
}

func (a *app) ask(plan, question string, agreed func(string) bool) error {
	fmt.Fprintln(a.err, plan)
	if a.yes {
		return nil
	}
	if !terminal(a.in) {
		return usage("--yes", "standard input is no terminal, so nobody can be asked; look at the plan and repeat the command with --yes")
	}
	fmt.Fprint(a.err, question)
	line, err := bufio.NewReader(a.in).ReadString('\n')
	if err != nil && line == "" {
		fmt.Fprintln(a.err) // the question still stands on its line
		return fault.New(fault.Canceled, "plan").WithHint("nothing was changed")
	}
	if !agreed(strings.TrimSpace(line)) {
		return fault.New(fault.Canceled, "plan").WithHint("nothing was changed")
	}
	return nil
}

// secretText reads a token from a file, standard input, or a prompt that does not echo.
func (a *app) secretText(path, what string) (string, error) {
	if path != "" {
		f, err := os.Open(path)
		if err != nil {
			return "", fmt.Errorf("read %s: %w", what, err)
		}
		defer func() { _ = f.Close() }() // only read
		return readSecret(f, what)
	}
	if terminal(a.in) {
		return a.prompt(what)
	}
	return readSecret(a.in, what)
}

func readSecret(r io.Reader, what string) (string, error) {
	b, err := readAll(r, maxSecret, what)
	if err != nil {
		return "", err
	}
	if s := strings.TrimSpace(string(b)); s != "" {
		return s, nil
	}
	return "", usage(what, "give it on standard input or in a file")
}

// prompt reads a secret from the terminal without echo; the terminal is put right when ctx ends meanwhile.
func (a *app) prompt(what string) (string, error) {
	i, _ := a.in.(interruptible)
	f, ok := i.r.(*os.File)
	if !ok {
		return "", usage(what, "give it on standard input or in a file")
	}
	fd := int(f.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", what, err)
	}
	fmt.Fprintf(a.err, "%s: ", what)
	defer fmt.Fprintln(a.err)
	type answer struct {
		text []byte
		err  error
	}
	typed := make(chan answer, 1)
	go func() { // left behind at the end of ctx, like interruptible's
		b, err := term.ReadPassword(fd)
		typed <- answer{b, err}
	}()
	select {
	case t := <-typed:
		return strings.TrimSpace(string(t.text)), t.err
	case <-i.ctx.Done():
		_ = term.Restore(fd, before) // best effort: the process is about to end
		return "", fault.New(fault.Canceled, "").WithHint("nothing was changed")
	}
}

// readAll reads at most limit bytes.
func readAll(r io.Reader, limit int, what string) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", what, err)
	}
	if len(b) > limit {
		return nil, fault.New(fault.TooLarge, what).WithHint("at most %d bytes", limit)
	}
	return b, nil
}

// parseVersion reads a version's number, with or without a v before it.
func parseVersion(s string) (uint32, error) {
	n, err := strconv.ParseUint(strings.TrimPrefix(s, "v"), 10, 32)
	if err != nil || n == 0 {
		return 0, usage("version "+printable(s), "a version is a number from 1")
	}
	return uint32(n), nil
}

// parsePair reads name=value.
func parsePair(flag, s string) (name, value string, err error) {
	name, value, ok := strings.Cut(s, "=")
	if !ok || name == "" {
		return "", "", usage("--"+flag, "it has the form name=value")
	}
	return name, value, nil
}

// parsePairs reads several name=value. A name may stand once.
func parsePairs(flag string, in []string) (map[string]string, error) {
	out := map[string]string{}
	for _, s := range in {
		name, value, err := parsePair(flag, s)
		if err != nil {
			return nil, err
		}
		if _, twice := out[name]; twice {
			return nil, usage("--"+flag, "%s stands twice", name)
		}
		out[name] = value
	}
	return out, nil
}

// duration is a flag that also takes days: 90d, 1d12h.
type duration struct{ d *time.Duration }

// String implements pflag.Value.
func (v duration) String() string {
	if v.d == nil || *v.d == 0 {
		return ""
	}
	return days(*v.d)
}

// Type implements pflag.Value.
func (duration) Type() string { return "duration" }

// Set implements pflag.Value.
func (v duration) Set(s string) error {
	d, err := parseDuration(s)
	*v.d = d
	return err
}

// parseDuration reads Go's durations with days before them. Negative ones are refused.
func parseDuration(s string) (time.Duration, error) {
	var total time.Duration
	whole, rest, ok := strings.Cut(s, "d")
	if ok {
		count, err := strconv.ParseUint(whole, 10, 16)
		if err != nil {
			return 0, fmt.Errorf("a duration looks like 90d, 12h or 30s")
		}
		total, s = time.Duration(count)*24*time.Hour, rest
	}
	if s == "" && (total > 0 || whole == "0") {
		return total, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("a duration looks like 90d, 12h or 30s")
	}
	return total + d, nil
}

// days is a duration as people write it: whole days as 7d, hours as 25h.
func days(d time.Duration) string { return keyring.Days(d) }
