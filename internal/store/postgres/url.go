package postgres

import (
	"context"
	"errors"
	"fmt"
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
	schema string
	pool   *pgxpool.Config
	own    *pgx.ConnConfig // of connections outside of the pool
}

// ErrURL says that the URL is not understood. No error holds any of it.
var ErrURL = errors.New("postgres URL")

var validSchema = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,47}$`)

// parse reads a URL. No error holds any of it, for a part that is not understood may be the password. ErrURL.
func parse(raw string) (config, error) {
	raw, schema, sslmode, err := split(raw)
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
	c.ConnConfig.ValidateConnect = writable
	own := c.ConnConfig.Copy()
	dial := own.DialFunc
	own.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if ctx.Value(ours{}) == nil {
			return nil, errCancel
		}
		return dial(ctx, network, addr)
	}
	return config{schema: schema, pool: c, own: own}, nil
}

// ours marks the context of a connection that we make ourselves. pgx makes others to ask the server to cancel what we no longer wait for. A
// canceled commit that waits for its synchronous replicas becomes visible without being on them, so a commit is never canceled.
type ours struct{}

var errCancel = errors.New("a commit is never canceled")

// split takes our own parameter out of the URL, and says whether the encryption of the connection was chosen.
func split(raw string) (rest, schema string, sslmode bool, err error) {
	if !strings.HasPrefix(raw, "postgres://") && !strings.HasPrefix(raw, "postgresql://") {
		return "", "", false, fmt.Errorf("%w: begins with postgres://", ErrURL)
	}
	rest, query, _ := strings.Cut(raw, "?")
	schema, sslmode = "rotor", os.Getenv("PGSSLMODE") != ""
	var keep []string
	for pair := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(pair, "=")
		switch name {
		case "":
			continue
		case "schema":
			if schema, err = url.QueryUnescape(value); err != nil || !validSchema.MatchString(schema) {
				return "", "", false, fmt.Errorf("%w: schema: up to 48 lower-case letters, digits and _, not beginning with a digit", ErrURL)
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
	return rest, schema, sslmode, nil
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
