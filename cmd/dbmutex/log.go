package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"gorm.io/gorm/logger"
)

// newLogger writes one line a record. A text has no time: cron and systemd add theirs.
func newLogger(w io.Writer, format string, level slog.Level) *slog.Logger {
	options := &slog.HandlerOptions{Level: level}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(textHandler{slog.NewTextHandler(w, options), w})
}

// textHandler writes the message alone, behind the program's name.
type textHandler struct {
	slog.Handler // of whose levels it makes use
	w            io.Writer
}

// Handle writes a line.
func (h textHandler) Handle(_ context.Context, r slog.Record) error {
	_, err := io.WriteString(h.w, "dbmutex: "+oneLine(r.Message)+"\n")
	return err
}

// forPeople turns what the library says to programs into what the command says.
var forPeople = strings.NewReplacer(
	"\n\t", " ", "\n", "; ",
	"; it goes on in the background", "", // the program ends
	"run AutoMigrate(&dbmutex.DBMutex{})", "run dbmutex migrate",
	"run AutoMigrate(&dbmutex.DBOnce{})", "run dbmutex migrate",
	" (AutoMigrate does so if the plugin was registered before, and Migrate does)", " (dbmutex migrate does so)",
)

// oneLine is a message without the name of the package, which the program has too.
func oneLine(text string) string { return forPeople.Replace(strings.TrimPrefix(text, "dbmutex: ")) }

// gormLogger passes on what dbmutex warns of. Errors of statements are returned, so it does not log those.
type gormLogger struct{ *slog.Logger }

// LogMode changes nothing.
func (l gormLogger) LogMode(logger.LogLevel) logger.Interface { return l }

// Info is for details.
func (l gormLogger) Info(ctx context.Context, format string, args ...any) {
	l.DebugContext(ctx, oneLine(fmt.Sprintf(format, args...)))
}

// Warn logs a warning.
func (l gormLogger) Warn(ctx context.Context, format string, args ...any) {
	l.WarnContext(ctx, oneLine(fmt.Sprintf(format, args...)))
}

// Error logs an error.
func (l gormLogger) Error(ctx context.Context, format string, args ...any) {
	l.ErrorContext(ctx, oneLine(fmt.Sprintf(format, args...)))
}

// Trace logs nothing.
func (l gormLogger) Trace(context.Context, time.Time, func() (string, int64), error) {}
