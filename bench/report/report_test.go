package report_test

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex/bench/report"
)

var run = report.Report{
	Caption: "2 CPUs, today",
	Facts:   []report.Fact{{Name: "machine", Value: "2 CPUs"}},
	Notes:   []report.Fact{{Name: "bare pair", Value: "two statements"}},
	Tables: []report.Table{{
		Title: "Uncontended", Text: "A cycle.", Columns: []string{"", "median"},
		Rows: [][]string{{"bare pair", "1 ms"}, {"dbmutex", "0.8 ms"}},
		Chart: &report.Chart{Title: "Uncontended, ms", Points: []report.Point{
			{Name: "bare pair", Median: 1, P99: 2}, {Name: "dbmutex", Median: 0.8, P99: 30, Own: true}, {Name: "slow"},
		}},
	}, {
		Title: "No chart", Text: strings.Repeat("10 letters ", 12) + "words", Columns: []string{"", "n"},
		Rows: [][]string{{"x", "1"}},
	}},
}

func TestText(t *testing.T) {
	var b strings.Builder
	require.NoError(t, run.WriteText(&b))
	assert.Equal(t, `machine  2 CPUs

Uncontended
           median
bare pair  1 ms
dbmutex    0.8 ms

No chart
   n
x  1
`, b.String())
}

func TestMarkdown(t *testing.T) {
	var b strings.Builder
	require.NoError(t, run.WriteMarkdown(&b, "results.svg"))
	assert.Contains(t, b.String(), "![The chart of this run](results.svg)")
	assert.Contains(t, b.String(), `
## Uncontended

A cycle.

|  | median |
|---|---|
| bare pair | 1 ms |
| dbmutex | 0.8 ms |
`)
	assert.Contains(t, b.String(), "\n- bare pair: two statements\n")
	assert.Contains(t, b.String(), "\n\n"+strings.Repeat("10 letters ", 10)+"10 letters\n10 letters words\n\n",
		"a long text is wrapped")
}

func TestSVG(t *testing.T) {
	var b strings.Builder
	require.NoError(t, run.WriteSVG(&b))
	for _, text := range []string{"Uncontended, ms", ">dbmutex<", ">slow: none<", ">20<", ">2 CPUs, today<"} {
		assert.Contains(t, b.String(), text)
	}
	for decoder := xml.NewDecoder(strings.NewReader(b.String())); ; {
		_, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
	}
}

func TestMachine(t *testing.T) {
	assert.Regexp(t, `^\d+ CPUs, .*/`, report.Machine())
}
