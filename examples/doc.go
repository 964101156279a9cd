// Package examples is the folder of programs that show dbmutex at work, each one file:
//
//   - quickstart: what dbmutex promises, on SQLite (in pure Go) or PostgreSQL
//   - minimal: the README's first program, on SQLite (with cgo)
//
// It is a module of its own, so that no driver in pure Go is a dependency of dbmutex.
package examples
