package report

import (
	"cmp"
	"math"
	"slices"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg/draw"
)

// lines draws them from left to right, each with its name beside its end.
func (c *Chart) lines() (*plot.Plot, error) {
	const (
		gap    = 0.06 // between the end of a line and its name, as a share of the lines' width
		names  = 0.55 // of all that is right of the lines
		margin = 0.06 // above and below the lines, as a share of their height
	)
	p := c.panel()
	p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, plot.TickerFunc(ticks)
	grid := plotter.NewGrid()
	grid.Horizontal.Color, grid.Vertical.Color = gridColor, gridColor
	p.Add(grid)

	var all []Line
	for _, line := range c.Lines {
		line.At = slices.DeleteFunc(slices.Clone(line.At), func(at XY) bool { return !drawn(at.X) || !drawn(at.Y) })
		if len(line.At) > 0 {
			all = append(all, line)
		}
	}
	if len(all) == 0 { // nobody has a figure
		p.X.Min, p.X.Max, p.Y.Min, p.Y.Max = 1, 2, 1, 2
		return p, nil
	}
	slices.SortStableFunc(all, func(a, b Line) int { return cmp.Compare(a.end().Y, b.end().Y) })
	var xs, ys []float64
	for _, line := range all {
		for _, at := range line.At {
			xs, ys = append(xs, at.X), append(ys, at.Y)
		}
	}
	left, right := slices.Min(xs), slices.Max(xs)
	low, high := math.Log(slices.Min(ys)), math.Log(slices.Max(ys))
	if more := (1 - (high - low)) / 2; more > 0 {
		low, high = low-more, high+more
	}
	p.Y.Min, p.Y.Max = math.Exp(low-margin*(high-low)), math.Exp(high+margin*(high-low))
	slices.Sort(xs)
	var marks []plot.Tick
	for _, x := range slices.Compact(xs) {
		marks = append(marks, plot.Tick{Value: x, Label: strconv.FormatFloat(x, 'g', 6, 64)})
	}
	p.X.Tick.Marker = plot.ConstantTicks(marks)
	width := max(math.Log(right/left), 1)
	p.X.Min, p.X.Max = left, right*math.Exp(names*width)

	heights := make([]float64, len(all))
	for i, line := range all {
		heights[i] = math.Log(line.end().Y)
	}
	heights = spread(heights, (high-low)/float64(namesOf(len(all))), low, high)
	for i, line := range all {
		name := plotter.XY{X: right * math.Exp(gap*width), Y: math.Exp(heights[i])}
		if err := line.draw(p, name); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// drawn says whether a logarithmic scale has a place for a figure.
func drawn(figure float64) bool { return figure > 0 && !math.IsInf(figure, 1) }

// end is the last of a line's figures.
func (l Line) end() XY { return l.At[len(l.At)-1] }

// draw adds a line to a panel, and its name at a place that a thin line leads to.
func (l Line) draw(p *plot.Plot, name plotter.XY) error {
	colour := colourOf(l.Own)
	var path plotter.XYs
	for _, at := range l.At {
		path = append(path, plotter.XY(at))
	}
	line, dots, err := plotter.NewLinePoints(path)
	if err != nil {
		return err
	}
	line.Color, line.Width = colour, 1
	if l.Own {
		line.Width = 2
	}
	dots.GlyphStyle = draw.GlyphStyle{Color: colour, Radius: 2, Shape: draw.CircleGlyph{}}
	lead, err := plotter.NewLine(plotter.XYs{path[len(path)-1], name})
	if err != nil {
		return err
	}
	lead.Color, lead.Width = gridColor, 0.5
	label, err := plotter.NewLabels(plotter.XYLabels{XYs: plotter.XYs{name}, Labels: []string{" " + l.Name}})
	if err != nil {
		return err
	}
	style := &label.TextStyle[0]
	style.Font.Variant, style.Font.Size, style.Color, style.YAlign = sans, 9, colour, draw.YCenter
	p.Add(lead, line, dots, label)
	return nil
}

// namesOf is for how many names, one below the other, lines are high.
func namesOf(lines int) int { return max(12, lines) }

// spread moves places, which are in order, to at least that far apart, between low and high.
func spread(places []float64, apart, low, high float64) []float64 {
	moved := slices.Clone(places)
	least := low
	for i := range moved {
		moved[i] = max(moved[i], least)
		least = moved[i] + apart
	}
	most := high
	for i := len(moved) - 1; i >= 0; i-- {
		moved[i] = min(moved[i], most)
		most = moved[i] - apart
	}
	return moved
}
