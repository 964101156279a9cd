package dbmutex

import "github.com/gorm-dbmutex/dbmutex/internal/locktable"

// isRecord says whether a row in the way is the record of a success.
func (m *Mutex) isRecord(row *locktable.Row) bool {
	return m.once && row != nil && row.LeaseID == locktable.DoneID
}

// model is the name of the table's model.
func (m *Mutex) model() string {
	if m.once {
		return "DBOnce"
	}
	return "DBMutex"
}

// leave lets the lease's release leave a record, unless the work has ended the lease itself; nil = none.
func (l *Lease) leave(record *locktable.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if record != nil && (l.state == released || l.state == held && l.ending) {
		return errOwnEnd
	}
	l.record = record
	return nil
}

func (l *Lease) leaves() *locktable.Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.record
}
