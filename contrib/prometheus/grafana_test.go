package prommutex_test

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	model "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

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

// export exports everything that there is: each metric by the names of its series, and the labels of them all.
func export(t *testing.T, d *testdb.Database) (metrics map[string]string, labels []string) {
	t.Helper()
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
	metrics, labels = map[string]string{}, []string{"job", "instance", "le"}
	for _, family := range families {
		metrics[family.GetName()] = family.GetName()
		for _, suffix := range []string{"_bucket", "_count", "_sum"} {
			if family.GetType() == model.MetricType_HISTOGRAM {
				metrics[family.GetName()+suffix] = family.GetName()
			}
		}
		for _, label := range family.GetMetric()[0].GetLabel() {
			labels = append(labels, label.GetName())
		}
	}
	return metrics, labels
}

// requireShowsAll requires that the texts name no metric but those that there are, and each of them.
func requireShowsAll(t *testing.T, texts []string, metrics map[string]string, labels []string) {
	t.Helper()
	shown := map[string]bool{}
	for _, text := range texts {
		for _, name := range regexp.MustCompile(`\bdbmutex_\w+`).FindAllString(text, -1) {
			if !slices.Contains(labels, name) {
				require.Contains(t, metrics, name, text)
				shown[metrics[name]] = true
			}
		}
	}
	for _, metric := range metrics {
		require.True(t, shown[metric], "%s is not shown", metric)
	}
}

func TestTheDashboardAsksForMetricsThatThereAre(t *testing.T) {
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		metrics, labels := export(t, d)
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
		requireShowsAll(t, queries, metrics, labels)
	})
}

func TestThePageAboutOperatingNamesMetricsThatThereAre(t *testing.T) {
	page, err := os.ReadFile("../../docs/operating.md")
	require.NoError(t, err)
	metrics, labels := export(t, testdb.SQLite(t))
	requireShowsAll(t, []string{string(page)}, metrics, labels)

	_, after, _ := strings.Cut(string(page), "```yaml\n")
	text, _, _ := strings.Cut(after, "```")
	var file struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	reader := yaml.NewDecoder(strings.NewReader(text))
	reader.KnownFields(true)
	require.NoError(t, reader.Decode(&file))
	require.Len(t, file.Groups, 1)
	rules := file.Groups[0].Rules
	require.Len(t, rules, strings.Count(text, "alert:"))
	for _, rule := range rules {
		require.NotEmpty(t, rule.Annotations["summary"], rule.Alert)
		require.Contains(t, []string{"warning", "critical"}, rule.Labels["severity"], rule.Alert)
		require.Contains(t, string(page), "| `"+rule.Alert+"` |", "what to do")
	}
}
