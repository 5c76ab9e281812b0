package postgres

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/rotorkms/rotor/internal/store"
)

// migration is one step of the schema. Servers of this release and the one before share a store, so a step says from which version on an
// engine can still use the store after it.
type migration struct {
	usableFrom int // version of the oldest engine that understands the result
	sql        string
}

// migrations make version 1, 2, 3 … of the schema. What has been released is never changed. {s} is the schema.
//
// head is one row: the newest revision, and the newest that the log no longer holds. commits is the log: batch is the random number of the
// transaction, which tells whether a commit of unknown outcome happened; events is record.go's.
var migrations = []migration{{1, `
CREATE TABLE {s}.head (
	one boolean PRIMARY KEY DEFAULT true CHECK (one),
	rev bigint NOT NULL,
	first bigint NOT NULL
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
INSERT INTO {s}.head (rev, first) VALUES (0, 0);
CREATE TABLE {s}.records (
	key bytea PRIMARY KEY,
	value bytea NOT NULL,
	rev bigint NOT NULL
);
ALTER TABLE {s}.records ALTER COLUMN value SET STORAGE EXTERNAL;
CREATE TABLE {s}.commits (
	rev bigint PRIMARY KEY,
	batch bytea NOT NULL,
	events bytea NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);
ALTER TABLE {s}.commits ALTER COLUMN events SET STORAGE EXTERNAL;
`}}

// migrate makes or completes the schema. Of several servers that begin at once one does it, the others wait.
func migrate(ctx context.Context, conn *pgx.Conn, schema string) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		id := fnv.New64a()
		_, _ = id.Write([]byte("rotor " + schema)) // it cannot fail
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", int64(id.Sum64())); err != nil {
			return err
		}
		if err := prepare(ctx, tx, schema); err != nil {
			return err
		}
		var version, usableFrom int
		err := tx.QueryRow(ctx, "SELECT version, usable_from FROM "+schema+".meta").Scan(&version, &usableFrom)
		if err != nil {
			return err
		}
		if usableFrom > len(migrations) {
			return fmt.Errorf("%w: the schema is of a newer release: version %d, this one knows %d", store.ErrUnavailable, version, len(migrations))
		}
		if version >= len(migrations) {
			return nil
		}
		for _, m := range migrations[version:] {
			if _, err := tx.Exec(ctx, strings.ReplaceAll(m.sql, "{s}", schema)); err != nil {
				return err
			}
			usableFrom = m.usableFrom
		}
		_, err = tx.Exec(ctx, "UPDATE "+schema+".meta SET version = $1, usable_from = $2", len(migrations), usableFrom)
		return err
	})
}

// prepare makes the schema and the table that tells its version, where they are missing. CREATE … IF NOT EXISTS asks for the right to
// create even where there is nothing to create, and a role may well have been given a schema alone.
func prepare(ctx context.Context, tx pgx.Tx, schema string) error {
	var hasSchema, hasMeta bool
	err := tx.QueryRow(ctx, "SELECT to_regnamespace($1) IS NOT NULL, to_regclass($1 || '.meta') IS NOT NULL", schema).Scan(&hasSchema, &hasMeta)
	if err != nil {
		return err
	}
	if !hasSchema {
		if _, err := tx.Exec(ctx, "CREATE SCHEMA "+schema); err != nil {
			return err
		}
	}
	if hasMeta {
		return nil
	}
	_, err1 := tx.Exec(ctx, "CREATE TABLE "+schema+".meta (one boolean PRIMARY KEY DEFAULT true CHECK (one), version int NOT NULL, usable_from int NOT NULL)")
	_, err2 := tx.Exec(ctx, "INSERT INTO "+schema+".meta (version, usable_from) VALUES (0, 0)")
	return errors.Join(err1, err2)
}

// statements are the engine's, for one schema.
type statements struct {
	channel                                                          string
	get, list, listFrom, listAll, head, known, since                 string
	lock, revs, put, remove, log, advance, trim, notify, find, prove string
}

func statementsOf(schema string) statements {
	in := func(sql string) string { return strings.ReplaceAll(sql, "{s}", schema) }
	const snapshot = `SELECT h.rev, r.key, r.value, r.rev FROM {s}.head h LEFT JOIN {s}.records r ON `
	return statements{
		channel:  "rotor_" + schema,
		get:      in(`SELECT value, rev FROM {s}.records WHERE key = $1`),
		list:     in(snapshot + `r.key >= $1 AND r.key < $2 ORDER BY r.key`),
		listFrom: in(snapshot + `r.key >= $1 ORDER BY r.key`),
		listAll:  in(snapshot + `true ORDER BY r.key`),
		head:     in(`SELECT rev, first FROM {s}.head`),
		known:    in(`SELECT h.rev, c.batch FROM {s}.head h LEFT JOIN {s}.commits c ON c.rev = $1`),
		since: in(`SELECT h.rev, h.first, c.rev, c.batch, c.events FROM {s}.head h LEFT JOIN (
			SELECT rev, batch, events, sum(octet_length(events)) OVER (ORDER BY rev) - octet_length(events) AS before
			FROM (SELECT rev, batch, events FROM {s}.commits WHERE rev > $1 ORDER BY rev LIMIT $2) newer
		) c ON c.before < $3 ORDER BY c.rev`),
		lock:    in(`SELECT rev, first FROM {s}.head FOR UPDATE`),
		revs:    in(`SELECT key, rev FROM {s}.records WHERE key = ANY($1)`),
		put:     in(`INSERT INTO {s}.records (key, value, rev) SELECT * FROM unnest($1::bytea[], $2::bytea[], $3::bigint[]) ON CONFLICT (key) DO UPDATE SET value = excluded.value, rev = excluded.rev`),
		remove:  in(`DELETE FROM {s}.records WHERE key = ANY($1)`),
		log:     in(`INSERT INTO {s}.commits (rev, batch, events) SELECT rev, $2, events FROM unnest($1::bigint[], $3::bytea[]) AS new (rev, events)`),
		advance: in(`UPDATE {s}.head SET rev = $1, first = $2`),
		trim:    in(`DELETE FROM {s}.commits WHERE rev <= $1`),
		notify:  `SELECT pg_notify($1, '')`,
		find:    in(`SELECT count(*) FROM {s}.commits WHERE rev = $1 AND batch = $2`),
		prove:   in(`UPDATE {s}.head SET rev = rev`),
	}
}
