// Package report writes down what the benchmark measured: a table to read, Markdown and a chart.
package report

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"unicode/utf8"
)

// Report is one run.
type Report struct {
	Caption string // of the chart
	Facts   []Fact
	Notes   []Fact // how each contender is used
	Tables  []Table
}

// Fact is something to know about a run.
type Fact struct{ Name, Value string }

// Table is what one scenario measured.
type Table struct {
	Title   string
	Text    string // what was done, and how to read it
	Columns []string
	Rows    [][]string
	Chart   *Chart // nil = none
}

// Chart is a table's figures to draw, on a logarithmic scale: either points or lines.
type Chart struct {
	Title  string // with the unit
	Points []Point
	Lines  []Line
}

// Point is one contender's line.
type Point struct {
	Name        string
	Median, P99 float64 // 0 if there is none
	Own         bool    // drawn in colour
}

// Line is one contender's figures for something that varies, the same for all lines.
type Line struct {
	Name string
	At   []XY // by X
	Own  bool // drawn in colour
}

// XY is one of these figures: Y at X, both more than 0.
type XY struct{ X, Y float64 }

// WriteText writes the tables for a terminal.
func (r *Report) WriteText(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range r.Facts {
		writeLine(t, f.Name, f.Value)
	}
	for _, table := range r.Tables {
		_ = t.Flush()
		writeLine(t, "\n"+table.Title)
		_ = t.Flush()
		writeLine(t, table.Columns...)
		for _, row := range table.Rows {
			writeLine(t, row...)
		}
	}
	return t.Flush()
}

// writeLine leaves errors to Flush.
func writeLine(w io.Writer, cells ...string) { _, _ = fmt.Fprintln(w, strings.Join(cells, "\t")) }

// WriteMarkdown writes all of it, with the chart that is in a file.
func (r *Report) WriteMarkdown(w io.Writer, chart string) error {
	var b strings.Builder
	b.WriteString("# Results of make bench\n\n![The chart of this run](" + chart + ")\n\n")
	writeFacts(&b, r.Facts)
	for _, table := range r.Tables {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n", table.Title, wrapped(table.Text, "\n"))
		writeTable(&b, table.Columns, table.Rows)
	}
	b.WriteString("\n## How each is used\n\n")
	writeFacts(&b, r.Notes)
	_, err := io.WriteString(w, b.String())
	return err
}

// wrapped is a text in lines that are no longer than those of the repository's other texts, with a separator between them.
func wrapped(text, separator string) string {
	const limit = 120
	var b strings.Builder
	length := 0
	for i, word := range strings.Fields(text) {
		n := utf8.RuneCountInString(word)
		switch {
		case i == 0:
		case length+1+n > limit:
			b.WriteString(separator)
			length = 0
		default:
			b.WriteString(" ")
			length++
		}
		b.WriteString(word)
		length += n
	}
	return b.String()
}

// writeFacts writes a list, as a value may be too long for a table.
func writeFacts(b *strings.Builder, facts []Fact) {
	for _, f := range facts {
		b.WriteString(wrapped("- "+f.Name+": "+f.Value, "\n  ") + "\n")
	}
}

func writeTable(b *strings.Builder, columns []string, rows [][]string) {
	line := func(cells []string) { b.WriteString("| " + strings.Join(cells, " | ") + " |\n") }
	line(columns)
	b.WriteString(strings.Repeat("|---", len(columns)) + "|\n")
	for _, row := range rows {
		line(row)
	}
}
