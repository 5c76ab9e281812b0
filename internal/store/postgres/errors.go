package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rotorkms/rotor/internal/store"
)

// The states that PostgreSQL names (appendix A of its manual).
const (
	stateFull          = "53100" // disk_full
	stateSerialization = "40001"
	stateDeadlock      = "40P01"
	stateLock          = "55P03" // lock_not_available: lock_timeout
	stateReadOnly      = "25006" // the server became a replica
	stateIdle          = "25P03" // idle_in_transaction_session_timeout
)

// unavailable makes store.ErrUnavailable of an error, with its text alone: the end of a time of ours is not the end of the caller's.
func unavailable(err error) error {
	if errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrCorrupt) {
		return err
	}
	return fmt.Errorf("%w: %s", store.ErrUnavailable, err.Error())
}

// server is the error that the server reported, if it did.
func server(err error) (*pgconn.PgError, bool) {
	var e *pgconn.PgError
	ok := errors.As(err, &e)
	return e, ok
}

// fatal says whether the server ended the connection with this error.
func fatal(e *pgconn.PgError) bool {
	severity := e.SeverityUnlocalized
	if severity == "" {
		severity = e.Severity
	}
	return severity == "FATAL" || severity == "PANIC"
}

// transient says whether the same call may succeed later: the connection is gone, or the server says so.
func transient(err error) bool {
	e, ok := server(err)
	if !ok {
		return !errors.Is(err, store.ErrCorrupt) && !errors.Is(err, context.Canceled)
	}
	switch e.Code {
	case stateSerialization, stateDeadlock, stateLock, stateReadOnly:
		return true
	}
	return fatal(e) || strings.HasPrefix(e.Code, "08") || strings.HasPrefix(e.Code, "57P") || e.Code == "53300" // too_many_connections
}

// ambiguous says whether a transaction may have been committed that ended with this error. An error that does not end the connection is
// the answer "no", and so is one that found us idle in the middle of it.
func ambiguous(err error) bool {
	if e, ok := server(err); ok {
		return fatal(e) && e.Code != stateIdle
	}
	return !pgconn.SafeToRetry(err)
}

// plain makes an error of the contract of an error that says that nothing was written.
func plain(err error) error {
	e, ok := server(err)
	switch {
	case ok && e.Code == stateFull:
		return fmt.Errorf("%w: %w", store.ErrFull, err)
	case transient(err):
		return unavailable(err)
	}
	return err
}
