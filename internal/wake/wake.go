// Package wake brings a driver's notifications to the waiters of package dbmutex, so that dbmutex imports no driver.
package wake

import (
	"context"
	"database/sql"
)

// Listener listens for notifications until ctx is done or its connection fails. The connection is its own, and like those of
// the pool. It calls ready once it has proof that notifications reach it, and notified for each notification.
type Listener func(
	ctx context.Context, pool *sql.DB, channels []string, ready func(), notified func(channel, payload string)) error

// Listen is the Listener of a driver, or nil if there is none. Package pgnotify sets it.
var Listen Listener
