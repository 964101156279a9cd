package locktable

import (
	"database/sql"
	"strings"
)

// acquireSlotSQL takes a slot that is free, as acquireSQL does. $1 are the slots' ids, in the order in which they are tried.
// Each is looked up by itself, so that the index is used however small the table was when the statement was planned. If
// somebody else takes the slot first, the answer says that fewer are taken than there are.
func (p *postgres) acquireSlotSQL(sequence string) string {
	return `WITH other AS MATERIALIZED (
	SELECT s.slot, s.place, m.* FROM pg_catalog.unnest($1::text[]) WITH ORDINALITY AS s (slot, place)
	LEFT JOIN LATERAL (
		SELECT lock_id, lease_id, holder, creation_time, expires_at FROM ` + p.table + ` WHERE lock_id = s.slot LIMIT 1
	) AS m ON true),
made AS (
	INSERT INTO ` + p.table + ` (lock_id, creation_time, expires_at, holder, lease_id)
	SELECT free.slot, ` + now + `, ` + expires("$3") + `, $4::text, $2::varchar
	FROM (SELECT slot FROM other WHERE lock_id IS NULL AND NOT EXISTS (SELECT FROM other WHERE lease_id = $2)
		ORDER BY place LIMIT 1) AS free
	ON CONFLICT (lock_id) DO NOTHING
	RETURNING pg_catalog.nextval('` + strings.ReplaceAll(sequence, "'", "''") + `'::regclass) AS token, lock_id, ` + durable + `)
SELECT token, lock_id::text, 0::bigint, 0::bigint, '' FROM made
UNION ALL (SELECT 0, lock_id, (SELECT pg_catalog.count(lock_id) FROM other),
	(SELECT ` + epoch(`pg_catalog.max(creation_time)`) + ` FROM other), ` + leaseJSON + `
	FROM other WHERE lock_id IS NOT NULL AND NOT EXISTS (SELECT FROM made)
	ORDER BY lease_id = $2 DESC, expires_at NULLS LAST LIMIT 1)`
}

// takeOverSlotSQL is takeOverSQL for any of some slots.
func (p *postgres) takeOverSlotSQL() string {
	return `WITH stale AS MATERIALIZED (
	SELECT id, CASE WHEN lease_id = $2 THEN '' ELSE ` + leaseJSON + ` END AS lease FROM ` + p.table + `
	WHERE lock_id = ANY ($1::text[]) AND (expires_at <= ` + now + ` OR lease_id = $2)
	ORDER BY lease_id = $2 DESC LIMIT 1 FOR UPDATE SKIP LOCKED)
UPDATE ` + p.table + ` AS m
SET id = DEFAULT, creation_time = ` + now + `, expires_at = ` + expires("$3") + `, holder = $4, lease_id = $2
FROM stale WHERE m.id = stale.id RETURNING m.id, m.lock_id::text, stale.lease, ` + durable
}

func (p *postgres) acquireSlot(on executor, r Request, _ bool) (a Answer, err error) {
	ctx, cancel := gracefully(on.ctx)
	defer cancel()
	on = on.under(ctx)
	query := p.known.Load().acquireSlotSQL
	var token, taken, newest int64
	var lockID, other string
	pinned := 0
	for range maxRaces(r.Slots) {
		args := []any{textArray(slotIDs(r.LockID, r.Slots)), r.LeaseID, microseconds(r.TTL), r.Holder}
		found, err := on.queryOne(query, args, &token, &lockID, &taken, &newest, &other)
		switch {
		case err != nil:
			return Answer{}, err
		case token != 0:
			_, slot := SplitSlot(lockID)
			return Answer{Token: token, Slot: slot}, nil
		case !found:
			continue
		}
		if a, err = heldBy(r.LockID, other); err != nil {
			return Answer{}, err
		}
		a.Newest, a.Ended = newest, a.Held.ExpiresAt != nil && a.Left <= 0
		own := a.Held.LeaseID == r.LeaseID
		if !own && taken < int64(r.Slots) {
			continue
		}
		if !own && !a.Ended {
			return a, nil
		}
		if taken, err := p.takeOverSlot(on, r, args); err != nil || taken.Token != 0 {
			return taken, err
		}
		if pinned++; pinned == maxLooks {
			break
		}
	}
	return a, nil
}

func (p *postgres) takeOverSlot(on executor, r Request, args []any) (a Answer, err error) {
	var lockID, lease string
	_, err = on.queryOne(p.takeOverSlotSQL(), args, &a.Token, &lockID, &lease, new(sql.NullString))
	if err != nil || a.Token == 0 {
		return Answer{}, err
	}
	_, a.Slot = SplitSlot(lockID)
	if lease != "" {
		past, _ := heldBy(r.LockID, lease)
		a.Past = r.past(past.Held)
	}
	return a, nil
}

func (p *postgres) releaseSlot(on executor, k Key) (bool, error) {
	ids := textArray(slotIDs(k.LockID, k.Slots))
	return on.exec(`DELETE FROM `+p.table+` WHERE lock_id = ANY ($1::text[]) AND lease_id = $2 RETURNING `+durable,
		[]any{ids, k.LeaseID})
}

// textArray is an array of texts as PostgreSQL reads it: not every driver sends a slice.
func textArray(texts []string) string {
	quote := strings.NewReplacer(`\`, `\\`, `"`, `\"`)
	var s strings.Builder
	for i, text := range texts {
		s.WriteString([]string{`{"`, `","`}[min(i, 1)])
		_, _ = quote.WriteString(&s, text)
	}
	s.WriteString(`"}`)
	return s.String()
}
