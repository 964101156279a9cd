package dashboard

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// part is a piece of a text that somebody else has written.
type part struct {
	Text   string
	Hidden bool // the text is an escape, for characters that would not be seen as what they are
}

// parts takes a text apart.
func parts(s string) (all []part) {
	inner := strings.Trim(s, " ")
	first := strings.Index(s, inner)
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		text, hidden := s[i:i+size], true
		switch {
		case r == utf8.RuneError && size == 1:
			text = fmt.Sprintf(`\x%02x`, s[i])
		case r == ' ' && (i < first || i >= first+len(inner)):
			text = `\x20`
		case unseen(r):
			text = strings.Trim(strconv.QuoteRuneToASCII(r), "'")
		default:
			hidden = false
		}
		if last := len(all) - 1; last >= 0 && all[last].Hidden == hidden {
			all[last].Text += text
		} else {
			all = append(all, part{text, hidden})
		}
		i += size
	}
	return all
}

// unseen says that a character has no shape of its own, or changes the order of others.
func unseen(r rune) bool {
	const brailleBlank = '\u2800'
	return !unicode.IsPrint(r) || r == brailleBlank ||
		unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
}

// visible is a text in which every character can be seen, and typed.
func visible(s string) string {
	var b strings.Builder
	for _, p := range parts(s) {
		b.WriteString(p.Text)
	}
	return b.String()
}

var units = []struct {
	name string
	d    time.Duration
}{{"d", 24 * time.Hour}, {"h", time.Hour}, {"min", time.Minute}, {"s", time.Second}}

// words is a duration, as the script says it: 9 d 4 h, 1 h 12 min, 26 min, 4 min 11 s, 21 s.
func words(d time.Duration) string {
	for i, unit := range units[:len(units)-1] {
		if d < unit.d {
			continue
		}
		text := fmt.Sprintf("%d %s", d/unit.d, unit.name)
		next := units[i+1]
		if rest := d % unit.d / next.d; rest > 0 && (next.d > time.Second || d < 10*time.Minute) {
			text += fmt.Sprintf(" %d %s", rest, next.name)
		}
		return text
	}
	return fmt.Sprintf("%d s", max(d, 0)/time.Second)
}

// grouped is a number with commas.
func grouped(n int64) string {
	digits := strconv.FormatInt(n, 10)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

var plainArgument = regexp.MustCompile(`^[\w./:@%+=,-]+$`)

// argument is a text as the last argument of a command in a shell. It is "" if a person could not type it.
func argument(s string) string {
	switch {
	case visible(s) != s:
		return ""
	case !plainArgument.MatchString(s):
		s = "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
	}
	if strings.HasPrefix(strings.TrimPrefix(s, "'"), "-") {
		s = "-- " + s
	}
	return s
}
