// Package wake is where a driver's notifications reach the waiters of package dbmutex, so that dbmutex imports no driver.
package wake

import (
	"context"
	"database/sql"
)

// Listen listens for notifications on a connection of its own, like those of the pool, until ctx is done or the connection
// fails; nil where nothing can. It calls ready once it listens and notified with the payload of each. Package pgnotify sets it.
var Listen func(ctx context.Context, pool *sql.DB, channel string, ready func(), notified func(payload string)) error
