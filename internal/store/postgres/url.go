package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// config is what the URL says.
type config struct {
	raw     string // the URL
	schema  string
	history int // commits that a watch can look back; 0: not said
	pool    *pgxpool.Config
	own     *pgx.ConnConfig // of connections outside of the pool
}

// ErrURL says that the URL is not understood. No error holds any of it.
var ErrURL = errors.New("postgres URL")

var validSchema = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,47}$`)

// parse reads a URL. No error holds any of it, for a part that is not understood may be the password. ErrURL.
func parse(whole string) (config, error) {
	raw, also, sslmode, err := split(whole)
	if err != nil {
		return config{}, err
	}
	c, err := pgxpool.ParseConfig(raw)
	if err == nil && !sslmode && !local(c.ConnConfig) {
		c, err = pgxpool.ParseConfig(with(raw, "sslmode=verify-full"))
	}
	if err != nil {
		var file *fs.PathError
		if errors.As(err, &file) {
			return config{}, fmt.Errorf("%w: %s: %w", ErrURL, file.Path, file.Err)
		}
		return config{}, fmt.Errorf("%w: postgres://USER@HOST:PORT/DATABASE?schema=NAME&…, reserved characters of names and password as %%XX", ErrURL)
	}
	if also.passwordFile != "" {
		if c.ConnConfig.Password, err = readPassword(also.passwordFile); err != nil {
			return config{}, err
		}
	}
	c.ConnConfig.ValidateConnect = writable
	own := c.ConnConfig.Copy()
	dial := own.DialFunc
	own.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if ctx.Value(ours{}) == nil {
			return nil, errCancel
		}
		return dial(ctx, network, addr)
	}
	return config{raw: whole, schema: also.schema, history: also.history, pool: c, own: own}, nil
}

// renew gives a connection that is about to be made what the files say now that the URL names: password, certificate, key, authorities.
func (c config) renew(_ context.Context, conn *pgx.ConnConfig) error {
	now, err := parse(c.raw)
	if err != nil {
		return err
	}
	fresh := now.pool.ConnConfig
	conn.Password, conn.TLSConfig, conn.Fallbacks = fresh.Password, fresh.TLSConfig, fresh.Fallbacks
	return nil
}

// maxPassword bounds a password file, in bytes.
const maxPassword = 4 << 10

// readPassword reads the first line of a file. Errors name the file alone. ErrURL.
func readPassword(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		var file *fs.PathError
		if errors.As(err, &file) {
			err = file.Err
		}
		return "", fmt.Errorf("%w: password_file %s: %w", ErrURL, path, err)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxPassword))
	if err := errors.Join(err, f.Close()); err != nil {
		return "", fmt.Errorf("%w: password_file %s cannot be read", ErrURL, path)
	}
	line, _, _ := strings.Cut(string(b), "\n")
	if line = strings.TrimSuffix(line, "\r"); line == "" || len(b) == maxPassword {
		return "", fmt.Errorf("%w: password_file %s: its first line is no password", ErrURL, path)
	}
	return line, nil
}

// Files are the files that a URL names, which are read again at each connection. What it does not name (PGPASSFILE, ~/.pgpass) is not among them.
func Files(raw string) []string {
	_, query, _ := strings.Cut(raw, "?")
	var all []string
	for pair := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(pair, "=")
		switch name {
		case "password_file", "passfile", "sslcert", "sslkey", "sslrootcert", "servicefile":
			if path, err := url.QueryUnescape(value); err == nil && path != "" && path != "system" {
				all = append(all, path)
			}
		}
	}
	return all
}

// ours marks the context of a connection that we make ourselves. pgx makes others to ask the server to cancel what we no longer wait for. A
// canceled commit that waits for its synchronous replicas becomes visible without being on them, so a commit is never canceled.
type ours struct{}

var errCancel = errors.New("a commit is never canceled")

// extra are the parameters of a URL that are not libpq's.
type extra struct {
	schema, passwordFile string
	history              int // 0: not said
}

// Bounds of history, in commits.
const (
	minHistory = 100
	maxHistory = 1 << 30
)

// split takes our own parameters out of the URL, and says whether the encryption of the connection was chosen.
func split(raw string) (rest string, also extra, sslmode bool, err error) {
	if !strings.HasPrefix(raw, "postgres://") && !strings.HasPrefix(raw, "postgresql://") {
		return "", also, false, fmt.Errorf("%w: begins with postgres://", ErrURL)
	}
	rest, query, _ := strings.Cut(raw, "?")
	also.schema, sslmode = "rotor", os.Getenv("PGSSLMODE") != ""
	var keep []string
	for pair := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(pair, "=")
		switch name {
		case "":
			continue
		case "schema":
			if also.schema, err = url.QueryUnescape(value); err != nil || !validSchema.MatchString(also.schema) {
				return "", also, false, fmt.Errorf("%w: schema: up to 48 lower-case letters, digits and _, not beginning with a digit", ErrURL)
			}
			continue
		case "password_file":
			if also.passwordFile, err = url.QueryUnescape(value); err != nil || also.passwordFile == "" {
				return "", also, false, fmt.Errorf("%w: password_file: a path", ErrURL)
			}
			continue
		case "history":
			if also.history, err = strconv.Atoi(value); err != nil || also.history < minHistory || also.history > maxHistory {
				return "", also, false, fmt.Errorf("%w: history: %d to %d commits", ErrURL, minHistory, maxHistory)
			}
			continue
		case "sslmode", "ssl", "service":
			sslmode = true
		}
		keep = append(keep, pair)
	}
	if len(keep) > 0 {
		rest += "?" + strings.Join(keep, "&")
	}
	return rest, also, sslmode, nil
}

func with(raw, pair string) string {
	if strings.Contains(raw, "?") {
		return raw + "&" + pair
	}
	return raw + "?" + pair
}

// local says whether every host is this machine, where nobody listens on the wire.
func local(c *pgx.ConnConfig) bool {
	hosts := []string{c.Host}
	for _, f := range c.Fallbacks {
		hosts = append(hosts, f.Host)
	}
	for _, h := range hosts {
		ip := net.ParseIP(h)
		if !strings.HasPrefix(h, "/") && h != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return false
		}
	}
	return true
}

// writable refuses a server that does not take writes, so that of several hosts the primary is found.
func writable(ctx context.Context, c *pgconn.PgConn) error {
	return pgconn.ValidateConnectTargetSessionAttrsReadWrite(ctx, c)
}

// bound sets what ends, on the server's side, the wait for locks, for us in the middle of a transaction, and for the network.
func (c config) bound(timeout time.Duration) {
	ms := func(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }
	for _, conn := range []*pgx.ConnConfig{c.pool.ConnConfig, c.own} {
		if conn.ConnectTimeout == 0 || conn.ConnectTimeout > timeout {
			conn.ConnectTimeout = timeout / 2 // of one host; there may be others
		}
		set := map[string]string{
			"default_transaction_isolation": "read committed", "statement_timeout": ms(statementTime), "lock_timeout": ms(timeout / 3),
			"idle_in_transaction_session_timeout": ms(timeout / 3),
			"tcp_keepalives_idle":                 "2", "tcp_keepalives_interval": "1", "tcp_keepalives_count": "3",
		}
		for name, value := range set {
			conn.RuntimeParams[name] = value
		}
		if conn.RuntimeParams["application_name"] == "" {
			conn.RuntimeParams["application_name"] = "rotor"
		}
	}
}
