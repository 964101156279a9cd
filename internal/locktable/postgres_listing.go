package locktable

import (
	"fmt"
	"strings"
	"time"
)

func (p *postgres) newLister() *lister {
	const at = `(SELECT now FROM clock)`
	return &lister{
		table: p.table,
		with: `WITH clock AS MATERIALIZED (SELECT ` + now + ` AS now)
`,
		now:    at,
		micros: epoch,
		row:    `lock_id, holder, lease_id, 0 AS fence`,
		is: map[Which]string{
			Live:           `(expires_at IS NULL OR expires_at > ` + at + `)`,
			Expired:        `expires_at <= ` + at,
			LiveAndExpired: `true`,
		},
		holder:   `pg_catalog.strpos(holder::text COLLATE "C", ?::text) > 0`,
		key:      text,
		begins:   p.begins,
		moment:   `'epoch'::timestamptz + ?::bigint * interval '1 microsecond'`,
		at:       func(t time.Time) any { return t.UnixMicro() },
		numbered: true,
	}
}

// begins is exact by starts_with; the rest is for the index. Where lock_id is not sorted by bytes, what has a prefix may
// have other ids in between, and there is no telling where it ends. It may even come before the prefix: some languages sort
// two letters as one.
func (p *postgres) begins(prefix string) (condition string, args []any) {
	condition, args = `pg_catalog.starts_with(lock_id::text, ?::text)`, []any{prefix}
	if p.known.Load().bytewise {
		condition, args = condition+` AND lock_id >= ?`, append(args, prefix)
		if end := afterPrefix(prefix); end != "" {
			condition, args = condition+` AND lock_id < ?`, append(args, end)
		}
		return condition, args
	}
	// The planner would think that so few have the prefix that it had better read the whole table. It knows nothing of a CASE.
	condition = `CASE WHEN ` + condition + ` THEN true END`
	if start := steadyPrefix(prefix); start != "" {
		condition, args = condition+` AND lock_id >= ?`, append(args, start)
	}
	return condition, args
}

// steadyPrefix is the beginning of a prefix that no language sorts after what begins with the prefix: Latin letters and
// digits without accents, which what follows cannot make another letter that comes earlier. In Welsh, ng comes before n.
func steadyPrefix(prefix string) string {
	end := 0
	for end < len(prefix) && prefix[end] > ' ' && prefix[end] < 0x7f {
		end++
	}
	return strings.TrimRight(prefix[:end], "nN")
}

// prune passes rows that are pinned. What it has locked stays as it is until it is removed.
func (p *postgres) prune(on executor, after place) (next place, removed int64, err error) {
	_, err = on.queryOne(fmt.Sprintf(`WITH old AS MATERIALIZED (
	SELECT lock_id FROM %s WHERE lock_id > $1 AND expires_at <= `+now+` ORDER BY lock_id LIMIT %d FOR UPDATE SKIP LOCKED),
removed AS (DELETE FROM %s AS m USING old WHERE m.lock_id = old.lock_id RETURNING m.lock_id)
SELECT pg_catalog.count(*), coalesce(pg_catalog.max(lock_id), '') FROM removed`, p.table, pruneRows, p.table),
		[]any{after.lockID}, &removed, &next.lockID)
	next.end = removed < pruneRows
	return next, removed, err
}

func (p *postgres) list(on executor, q Query) ([]Listed, error) { return p.lister.list(on, q) }

func (p *postgres) count(on executor) (Stats, error) { return p.lister.count(on) }
