package report

import (
	"image/color"
	"io"
	"math"
	"slices"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

const sans = "Sans"

var (
	ownColor   = color.RGBA{R: 0x00, G: 0x72, B: 0xb2, A: 0xff}
	otherColor = color.RGBA{R: 0x80, G: 0x80, B: 0x80, A: 0xff}
	gridColor  = color.RGBA{R: 0xdd, G: 0xdd, B: 0xdd, A: 0xff}
)

// WriteSVG draws the tables that have charts, one below the other. Of points a dot is the median, a line goes on to p99.
// Below them is the caption.
func (r *Report) WriteSVG(w io.Writer) error {
	const width, perLine, around = 24 * vg.Centimeter, 16, 60
	var panels [][]*plot.Plot
	height := vg.Length(0) // of a panel, in points
	for _, table := range r.Tables {
		if table.Chart == nil || len(table.Chart.Points)+len(table.Chart.Lines) == 0 {
			continue
		}
		draw := table.Chart.points
		if len(table.Chart.Lines) > 0 {
			draw = table.Chart.lines
		}
		panel, err := draw()
		if err != nil {
			return err
		}
		panels = append(panels, []*plot.Plot{panel})
		rows := len(table.Chart.Points)
		if len(table.Chart.Lines) > 0 {
			rows = namesOf(len(table.Chart.Lines))
		}
		height = max(height, around+perLine*vg.Length(rows))
	}
	if len(panels) == 0 {
		return nil
	}
	canvas := vgsvg.New(width, height*vg.Length(len(panels)))
	paper := draw.New(canvas)
	paper.SetColor(color.White)
	paper.Fill(paper.Rectangle.Path())
	caption := panels[0][0].X.Label.TextStyle
	caption.Font.Variant, caption.Font.Size = sans, 8
	paper.FillText(caption, vg.Point{X: width / 2, Y: 16}, r.Caption)
	tiles := draw.Tiles{Rows: len(panels), Cols: 1, PadX: 10, PadY: 10, PadTop: 10, PadBottom: 30, PadLeft: 10, PadRight: 20}
	for i, row := range plot.Align(panels, tiles, paper) {
		panels[i][0].Draw(row[0])
	}
	_, err := canvas.WriteTo(w)
	return err
}

// panel is an empty one.
func (c *Chart) panel() *plot.Plot {
	p := plot.New()
	p.Title.Text = c.Title
	for _, style := range []*text.Style{&p.Title.TextStyle, &p.X.Tick.Label, &p.Y.Tick.Label} {
		style.Font.Variant = sans
	}
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.TickerFunc(ticks)
	return p
}

func colourOf(own bool) color.Color {
	if own {
		return ownColor
	}
	return otherColor
}

func (c *Chart) points() (*plot.Plot, error) {
	p := c.panel()
	points := slices.Clone(c.Points)
	slices.Reverse(points) // the first at the top

	least, most := math.Inf(1), math.Inf(-1)
	names := make([]plot.Tick, len(points))
	grid := plotter.NewGrid()
	grid.Horizontal.Color, grid.Vertical.Color = color.Transparent, gridColor
	p.Add(grid)
	for i, point := range points {
		y := float64(i)
		names[i] = plot.Tick{Value: y, Label: point.Name}
		if point.Median == 0 {
			names[i].Label += ": none"
			continue
		}
		colour := colourOf(point.Own)
		tail := max(point.Median, point.P99)
		line, err := plotter.NewLine(plotter.XYs{{X: point.Median, Y: y}, {X: tail, Y: y}})
		if err != nil {
			return nil, err
		}
		line.Color, line.Width = colour, 2
		dot, err := plotter.NewScatter(plotter.XYs{{X: point.Median, Y: y}})
		if err != nil {
			return nil, err
		}
		dot.GlyphStyle = draw.GlyphStyle{Color: colour, Radius: 4, Shape: draw.CircleGlyph{}}
		p.Add(line, dot)
		least, most = min(least, point.Median), max(most, tail)
	}
	if least > most {
		least, most = 1, 1 // nobody has a figure
	}
	p.X.Min, p.X.Max = least/1.3, most*1.3
	p.Y.Min, p.Y.Max = -0.7, float64(len(points))-0.3
	p.Y.Tick.Marker = plot.ConstantTicks(names)
	p.Y.Tick.Length, p.Y.LineStyle.Width = 0, 0
	return p, nil
}

// ticks are 1, 2 and 5 times each power of ten.
func ticks(least, most float64) (all []plot.Tick) {
	for exponent := math.Floor(math.Log10(least)); math.Pow(10, exponent) <= most; exponent++ {
		for _, digit := range []float64{1, 2, 5} {
			value := digit * math.Pow(10, exponent)
			if value >= least && value <= most {
				all = append(all, plot.Tick{Value: value, Label: strconv.FormatFloat(value, 'g', 6, 64)})
			}
		}
	}
	return all
}
