// Package wake is where a driver's notifications reach the waiters of package dbmutex, so that dbmutex imports no driver.
package wake

import (
	"context"
	"database/sql"
)

// Listener listens for notifications on a connection of its own, like those of the pool, until ctx is done or the connection
// fails. It calls ready once it has proof that notifications reach it, and notified for each.
type Listener func(
	ctx context.Context, pool *sql.DB, channels []string, ready func(), notified func(channel, payload string)) error

// Listen is the driver's; nil if nothing can listen. Package pgnotify sets it.
var Listen Listener
