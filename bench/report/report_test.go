package report_test

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"regexp"
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

func TestSVGOfLines(t *testing.T) {
	lines := report.Report{Tables: []report.Table{{Chart: &report.Chart{Title: "Rates", Lines: []report.Line{
		{Name: "bare pair", At: []report.XY{{X: 1, Y: 1}, {X: 64, Y: 1}}},
		{Name: "dbmutex", At: []report.XY{{X: 1, Y: 1.2}, {X: 64, Y: 4}}, Own: true},
		{Name: "as slow", At: []report.XY{{X: 1, Y: 1}, {X: 64, Y: 1}}},
		{Name: "unmeasured"},
		{Name: "stuck", At: []report.XY{{X: 1, Y: 0}, {X: 64, Y: math.NaN()}, {X: 256, Y: math.Inf(1)}}},
	}}}}}
	var b strings.Builder
	require.NoError(t, lines.WriteSVG(&b))
	for _, text := range []string{"Rates", "> bare pair<", "> dbmutex<", "> as slow<", ">1<", ">64<", "#0072B2"} {
		assert.Contains(t, b.String(), text)
	}
	for _, text := range []string{"unmeasured", "stuck", ">256<", "NaN"} {
		assert.NotContains(t, b.String(), text)
	}
	places := regexp.MustCompile(`y="([^"]+)"[^>]*>\s*[^<]*(?:bare pair|as slow)<`).FindAllStringSubmatch(b.String(), -1)
	require.Len(t, places, 2)
	assert.NotEqual(t, places[0][1], places[1][1], "names are not on top of each other")
}

func TestSVGOfLinesThatNobodyHas(t *testing.T) {
	none := report.Report{Tables: []report.Table{{Chart: &report.Chart{Title: "None", Lines: []report.Line{{Name: "stuck"}}}}}}
	var b strings.Builder
	require.NoError(t, none.WriteSVG(&b))
	assert.Contains(t, b.String(), ">None<")
}

func TestMachine(t *testing.T) {
	assert.Regexp(t, `^\d+ CPUs, .*/`, report.Machine())
}
