// Package ends lets package dbmutextest end leases of package dbmutex, which exports nothing for that.
package ends

// RunOut makes a lease run out. A lease is a *dbmutex.Lease, which this package cannot name. Package dbmutex sets it.
var RunOut func(lease any) error

// Lose takes a lease's row away, in the same way.
var Lose func(lease any) error
