package prommutex_test

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	model "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	prommutex "github.com/gorm-dbmutex/dbmutex/contrib/prometheus"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// source is where a panel asks.
type source struct{ Type, UID string }

// dashboard is what the tests look at of docs/grafana.json.
type dashboard struct {
	Title, UID    string
	SchemaVersion int
	Templating    struct {
		List []struct {
			Name, Type string
			Query      json.RawMessage
			Datasource source
		}
	}
	Panels []struct {
		ID                       int
		Type, Title, Description string
		Datasource               source
		GridPos                  struct{ X, Y, W, H int }
		Targets                  []struct {
			RefID, Expr, LegendFormat string
			Datasource                source
		}
	}
}

func readDashboard(t *testing.T) (d dashboard) {
	t.Helper()
	text, err := os.ReadFile("../../docs/grafana.json")
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &d))
	return d
}

func TestTheDashboardIsWhole(t *testing.T) {
	d := readDashboard(t)
	require.Equal(t, "dbmutex", d.Title)
	require.Equal(t, "dbmutex", d.UID)
	require.GreaterOrEqual(t, d.SchemaVersion, 36)

	chosen := source{"prometheus", "${datasource}"}
	require.Equal(t, "datasource", d.Templating.List[0].Name)
	require.Equal(t, "datasource", d.Templating.List[0].Type)
	require.JSONEq(t, `"prometheus"`, string(d.Templating.List[0].Query))
	variables := []string{"datasource", "__rate_interval"}
	for _, variable := range d.Templating.List[1:] {
		require.Equal(t, chosen, variable.Datasource)
		variables = append(variables, variable.Name)
	}

	ids, taken := map[int]bool{}, map[[2]int]string{}
	for _, p := range d.Panels {
		require.False(t, ids[p.ID], p.Title)
		ids[p.ID] = true
		require.Contains(t, []string{"stat", "timeseries"}, p.Type)
		require.NotEmpty(t, p.Title)
		require.NotEmpty(t, p.Description, p.Title)
		require.Equal(t, chosen, p.Datasource, p.Title)
		require.Positive(t, p.GridPos.W*p.GridPos.H, p.Title)
		require.LessOrEqual(t, p.GridPos.X+p.GridPos.W, 24, p.Title)
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				place := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
				require.Empty(t, taken[place], "%s covers it", p.Title)
				taken[place] = p.Title
			}
		}
		require.NotEmpty(t, p.Targets, p.Title)
		refs := map[string]bool{}
		for _, target := range p.Targets {
			require.False(t, refs[target.RefID], p.Title)
			refs[target.RefID] = true
			require.NotEmpty(t, target.RefID, p.Title)
			require.NotEmpty(t, target.LegendFormat, p.Title)
			require.Equal(t, chosen, target.Datasource, p.Title)
			for _, used := range regexp.MustCompile(`\$(\w+)`).FindAllStringSubmatch(target.Expr, -1) {
				require.Contains(t, variables, used[1], p.Title)
			}
		}
	}
}

func TestTheDashboardAsksForMetricsThatThereAre(t *testing.T) {
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		r := prometheus.NewRegistry()
		settings := dbmutex.DefaultSettings()
		settings.Observer = newObserver(t, r, prommutex.ObserverOptions{})
		tellEveryKind(settings.Observer)
		db := d.Mutexes(t, settings)
		testdb.Acquire(t, db, "job")
		collector, err := prommutex.NewCollector(db, prommutex.CollectorOptions{PerMutex: 1, Timeout: always.Timeout})
		require.NoError(t, err)
		require.NoError(t, r.Register(collector))
		families, err := r.Gather()
		require.NoError(t, err)
		exported, labels := map[string]string{}, []string{"job", "instance", "le"} // a metric by the names of its series
		for _, family := range families {
			exported[family.GetName()] = family.GetName()
			for _, suffix := range []string{"_bucket", "_count", "_sum"} {
				if family.GetType() == model.MetricType_HISTOGRAM {
					exported[family.GetName()+suffix] = family.GetName()
				}
			}
			for _, label := range family.GetMetric()[0].GetLabel() {
				labels = append(labels, label.GetName())
			}
		}

		var queries []string
		board := readDashboard(t)
		for _, variable := range board.Templating.List[1:] {
			queries = append(queries, string(variable.Query))
		}
		for _, panel := range board.Panels {
			for _, target := range panel.Targets {
				queries = append(queries, target.Expr)
				for _, label := range regexp.MustCompile(`\{\{(\w+)\}\}`).FindAllStringSubmatch(target.LegendFormat, -1) {
					require.Contains(t, labels, label[1])
				}
			}
		}
		shown := map[string]bool{}
		for _, query := range queries {
			for _, name := range regexp.MustCompile(`\bdbmutex_\w+`).FindAllString(query, -1) {
				if !slices.Contains(labels, name) {
					require.Contains(t, exported, name, query)
					shown[exported[name]] = true
				}
			}
		}
		require.Len(t, shown, len(families), "a metric that no panel shows")
	})
}
