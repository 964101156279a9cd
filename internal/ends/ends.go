// Package ends lets package dbmutextest end leases of package dbmutex, which exports nothing for that.
package ends

// RunOut makes a lease run out, and Lose takes its row away. A lease is a *dbmutex.Lease, which this package cannot name.
// Package dbmutex sets both.
var RunOut, Lose func(lease any) error
