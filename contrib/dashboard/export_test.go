package dashboard

import (
	"net/http"
	"time"

	"github.com/gorm-dbmutex/dbmutex"
)

// NewAt is New with other limits.
func NewAt(db *dbmutex.DB, o Options, answer, stats, limit time.Duration, statements int) (http.Handler, error) {
	return newDashboard(db, o, pace{answer, stats, limit, statements})
}

// Words, Visible, Grouped and Argument are for their tests.
var (
	Words    = words
	Visible  = visible
	Grouped  = grouped
	Argument = argument
)
