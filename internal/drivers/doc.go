// Package drivers tests dbmutex with modules that it doesn't itself depend on: other SQLite drivers, dbresolver, and the
// newest driver for MySQL with all that a DSN may say. It is a module of its own so that nobody who uses dbmutex has them as
// dependencies.
package drivers
