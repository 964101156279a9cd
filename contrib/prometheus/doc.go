// Package prommutex tells Prometheus of an application's mutexes.
//
// NewObserver makes metrics of what this process does with mutexes. They have the names that OpenTelemetry's exporter for
// Prometheus gives those of contrib/otel:
//
//	dbmutex_acquire_duration_seconds   histogram   how long acquires took, by dbmutex_outcome
//	dbmutex_acquire_pending            gauge       acquires under way
//	dbmutex_lease_duration_seconds     histogram   how long leases were held, by dbmutex_outcome
//	dbmutex_lease_active               gauge       leases that this process holds
//	dbmutex_lease_renewals_total       counter     by dbmutex_outcome: ok or failed
//	dbmutex_lease_takeovers_total      counter     leases of others that had run out, and were taken over
//	dbmutex_lease_forced_total         counter     leases that this process ended by ForceRelease
//
// All have the label dbmutex_mutex_name, of which ObserverOptions keep the values few. They never have the holder, the token
// or the id of a lease.
//
// NewCollector makes metrics of what is in the table, whichever process did it:
//
//	dbmutex_up                            gauge   1 if the table could be read, or else 0: then this is the only one
//	dbmutex_table_leases                  gauge   by state: held or expired
//	dbmutex_table_leases_without_expiry   gauge   leases that are held and never expire
//	dbmutex_table_oldest_lease_seconds    gauge   how long the oldest is held; 0 if none is
//	dbmutex_table_lease_age_seconds       gauge   by mutex, of the oldest, if CollectorOptions.PerMutex asks for them
package prommutex
