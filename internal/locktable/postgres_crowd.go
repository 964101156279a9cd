package locktable

import (
	"database/sql"
	"fmt"
	"strings"
)

// crowdWait is for how long a statement for many may wait for one row: for a stranger's INSERT that is not committed.
const crowdWait = "100ms"

// acquireManySQL is acquireSQL for many. It takes rows in one order, in all processes, so that no two of it wait for each
// other. Each lock_id is looked up by itself. The arrays come from a SELECT, so that all plans are the same, as in
// lookSlotsSQL.
func (p *postgres) acquireManySQL(sequence string) string {
	sequence = strings.ReplaceAll(sequence, "'", "''")
	return `WITH other AS MATERIALIZED (
	SELECT q.wanted, q.asking, q.lasting, q.asker, m.*
	FROM ROWS FROM (pg_catalog.unnest((SELECT $1::text[])), pg_catalog.unnest((SELECT $2::text[])),
		pg_catalog.unnest((SELECT $3::bigint[])), pg_catalog.unnest((SELECT $4::text[]))) AS q (wanted, asking, lasting, asker)
	LEFT JOIN LATERAL (
		SELECT lock_id, lease_id, holder, creation_time, expires_at FROM ` + p.table + ` WHERE lock_id = q.wanted LIMIT 1
	) AS m ON true),
made AS (
	INSERT INTO ` + p.table + ` (lock_id, creation_time, expires_at, holder, lease_id)
	SELECT wanted, ` + now + `, ` + expires("lasting") + `, asker, asking
	FROM other WHERE lock_id IS NULL AND pg_catalog.set_config('lock_timeout', '` + crowdWait + `', true) <> ''
	ORDER BY wanted COLLATE pg_catalog."C"
	ON CONFLICT (lock_id) DO NOTHING
	RETURNING lease_id, pg_catalog.nextval('` + sequence + `'::regclass) AS token, ` + durable + `)
SELECT lease_id::text, token, '' FROM made
UNION ALL SELECT asking, 0, ` + leaseJSON + ` FROM other WHERE lock_id IS NOT NULL`
}

func (p *postgres) alone() int { return 8 }

func (p *postgres) acquireMany(on executor, requests []Request) ([]Answer, error) {
	ids, leases := make([]string, len(requests)), make([]string, len(requests))
	ttls, holders := make([]string, len(requests)), make([]string, len(requests))
	at := make(map[string]int, len(requests))
	for i, r := range requests {
		ids[i], leases[i], ttls[i], holders[i] = r.LockID, r.LeaseID, "NULL", r.Holder
		if r.TTL != nil {
			ttls[i] = fmt.Sprint(microseconds(r.TTL))
		}
		at[r.LeaseID] = i
	}
	args := []any{textArray(ids), textArray(leases), "{" + strings.Join(ttls, ",") + "}", textArray(holders)}
	answers := make([]Answer, len(requests))
	err := on.queryAll(p.known.Load().acquireManySQL, args, func(rows *sql.Rows) error {
		var lease, other string
		var token int64
		if err := rows.Scan(&lease, &token, &other); err != nil {
			return err
		}
		i, known := at[lease]
		switch {
		case !known: // a trigger's
			return nil
		case token != 0:
			answers[i] = Answer{Token: token}
			return nil
		}
		a, err := heldBy(requests[i].LockID, other)
		if err == nil && !requests[i].owns(a) {
			answers[i] = a
		}
		return err
	})
	return answers, err
}

// newReleaseManySQL are releaseSQL for many. SKIP LOCKED passes a row that somebody pins. ONLY is for a table's partitions:
// their rows may have the same ctid, so that they are released one by one.
func newReleaseManySQL(table, async, released string) map[together]string {
	release := func(condition, effect string) string {
		return `DELETE FROM ONLY ` + table + ` WHERE ctid = ANY (ARRAY (
	SELECT m.place FROM ROWS FROM (pg_catalog.unnest((SELECT $1::text[])), pg_catalog.unnest((SELECT $2::text[])))
		AS q (id, lease)
	CROSS JOIN LATERAL (
		SELECT ctid AS place FROM ONLY ` + table + ` WHERE lock_id = q.id AND lease_id = q.lease` + condition + `
		LIMIT 1 FOR UPDATE SKIP LOCKED) AS m))
RETURNING lease_id::text, ` + effect
	}
	notify := async + ` AND ` + released + ` IS NOT NULL`
	return map[together]string{
		releaseTogether:  release("", async),
		notifyTogether:   release("", notify),
		unmarkedTogether: release(` AND (xmax = 0 OR xmax = xmin)`, notify),
	}
}

func (p *postgres) releaseMany(on executor, keys []Key, how together) ([]bool, error) {
	ids, leases := make([]string, len(keys)), make([]string, len(keys))
	at := make(map[string]int, len(keys))
	for i, k := range keys {
		ids[i], leases[i] = k.LockID, k.LeaseID
		at[k.LeaseID] = i
	}
	found := make([]bool, len(keys))
	err := on.queryAll(p.releaseManySQL[how], []any{textArray(ids), textArray(leases)}, func(rows *sql.Rows) error {
		var lease string
		err := rows.Scan(&lease, new(bool))
		if i, known := at[lease]; err == nil && known {
			found[i] = true
		}
		return err
	})
	return found, err
}

// textArray is an array of texts as PostgreSQL reads it: not every driver sends a slice.
func textArray(texts []string) string {
	quote := strings.NewReplacer(`\`, `\\`, `"`, `\"`)
	for i, text := range texts {
		texts[i] = `"` + quote.Replace(text) + `"`
	}
	return `{` + strings.Join(texts, `,`) + `}`
}
