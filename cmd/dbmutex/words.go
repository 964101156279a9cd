package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/gorm-dbmutex/dbmutex"
)

// printable quotes a text with which somebody could forge lines or control the terminal, or that looks as if it were quoted
// or a slot.
func printable(text string) string {
	if strings.HasPrefix(text, `"`) || strings.HasPrefix(text, " ") ||
		strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(text)
	}
	return text
}

// inWords is a time such as 1 h 12 min, in two units at the most.
func inWords(d time.Duration) string {
	d = max(d, 0)
	if d < time.Second {
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	units := []struct {
		unit time.Duration
		name string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "min"}, {time.Second, "s"}}
	for i, u := range units {
		n := d / u.unit
		if n == 0 {
			continue
		}
		text := fmt.Sprintf("%d %s", n, u.name)
		if i+1 < len(units) {
			if rest := d % u.unit / units[i+1].unit; rest > 0 {
				text += fmt.Sprintf(" %d %s", rest, units[i+1].name)
			}
		}
		return text
	}
	return ""
}

// endsIn says when a lease ends.
func endsIn(lease dbmutex.LeaseInfo) string {
	switch {
	case !lease.Expires():
		return "never"
	case lease.Expired():
		return "ran out " + inWords(-lease.Left) + " ago"
	}
	return inWords(lease.Left)
}

// count is a number of things.
func count(n int64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
