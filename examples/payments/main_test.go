package main

import (
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex/examples/internal/program"
)

// TestPayments counts: at least one worker was late for each invoice, and yet each was paid once.
func TestPayments(t *testing.T) {
	program.Each(t, func(t *testing.T, out string) {
		for invoice, amount := range map[string]string{"1": "100", "2": "250", "3": "400"} {
			require.Regexp(t, `(?m)^\w+ was late to pay invoice `+invoice+`, and rolled back$`, out)
			require.Len(t, regexp.MustCompile(`(?m)^\w+ paid invoice `+invoice+`$`).FindAllString(out, -1), 1, "%s", out)
			require.Equal(t, 1, strings.Count(out, "\n"+amount+" was moved for invoice "+invoice+"\n"), "%s", out)
		}
		require.Contains(t, out, "\n750 was moved in all, for invoices of 750\n")
	})
}
