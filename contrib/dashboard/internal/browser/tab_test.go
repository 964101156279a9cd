package browser

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/cdproto/target"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/contrib/dashboard"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// patience is for a step in the browser. The first page of a browser that has just been installed takes long.
const patience = 2 * time.Minute

// start starts the browser of all tests, once.
var start = sync.OnceValues(func() (context.Context, error) {
	program, err := findBrowser()
	if err != nil {
		return nil, err
	}
	options := []chromedp.ExecAllocatorOption{chromedp.ExecPath(program), chromedp.WSURLReadTimeout(patience)}
	for _, flag := range []string{
		"headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
		"disable-component-update", "disable-sync",
	} {
		options = append(options, chromedp.Flag(flag, true))
	}
	var ctx context.Context
	ctx, stopProgram = chromedp.NewExecAllocator(context.Background(), options...)
	ctx, _ = chromedp.NewContext(ctx)
	return ctx, chromedp.Run(ctx)
})

var stopProgram = func() {}

func TestMain(m *testing.M) {
	code := m.Run()
	stopProgram()
	os.Exit(code)
}

func findBrowser() (program string, err error) {
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if program, err = exec.LookPath(name); err == nil {
			return program, nil
		}
	}
	return "", err
}

// tab is a tab of the browser with a dashboard in it.
type tab struct {
	*testing.T
	ctx      context.Context
	db       *dbmutex.DB
	base     string       // the dashboard's address
	requests atomic.Int32 // to it

	mu       sync.Mutex
	problems []string // what the browser complained of
}

// allow lets everybody release.
func allow(*http.Request) bool { return true }

// openTab opens a tab, and mounts a dashboard. The browser may complain of nothing until the test ends.
func openTab(t *testing.T, o dashboard.Options) *tab {
	t.Helper()
	o.Logger = slog.New(slog.DiscardHandler)
	b := &tab{T: t, db: testdb.SQLite(t).Mutexes(t, dbmutex.DefaultSettings())}
	h, err := dashboard.New(b.db, o)
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.Handle("/ops/mutexes/", http.StripPrefix("/ops/mutexes", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.requests.Add(1)
		h.ServeHTTP(w, r)
	})))
	mux.HandleFunc("/favicon.ico", func(http.ResponseWriter, *http.Request) {})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	b.base = server.URL + "/ops/mutexes/"
	b.openWindow()
	return b
}

func (b *tab) openWindow() {
	b.Helper()
	browser, err := start()
	if errors.Is(err, exec.ErrNotFound) && os.Getenv("DBMUTEX_TEST_POSTGRES") != "required" {
		b.Skip("no chromium found: install it (Debian: apt-get install chromium)")
	}
	require.NoError(b, err)
	ctx, cancel := context.WithTimeout(browser, patience)
	defer cancel()
	window := target.CreateTarget("about:blank").WithNewWindow(true) // a tab behind another would be hidden
	id, err := window.Do(cdp.WithExecutor(ctx, chromedp.FromContext(browser).Browser))
	require.NoError(b, err)
	var close context.CancelFunc
	b.ctx, close = chromedp.NewContext(browser, chromedp.WithTargetID(id))
	b.Cleanup(close)
	chromedp.ListenTarget(b.ctx, b.listen)
	b.do(cdplog.Enable(), runtime.Enable())
	b.Cleanup(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		require.Empty(b, b.problems, "the browser complains")
	})
}

// listen hears of what the browser complains of: exceptions, violations of the content policy, what could not be loaded.
func (b *tab) listen(event any) {
	problem := ""
	switch event := event.(type) {
	case *runtime.EventExceptionThrown:
		problem = event.ExceptionDetails.Error()
	case *runtime.EventConsoleAPICalled:
		problem = fmt.Sprintf("console.%s: %s", event.Type, event.Args[0].Value)
	case *cdplog.EventEntryAdded:
		problem = event.Entry.Text
	case *page.EventJavascriptDialogOpening:
		problem = "a dialog: " + event.Message
	default:
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.problems = append(b.problems, problem)
}

// forgive takes away the complaint of a page whose status is an error.
func (b *tab) forgive(status int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var left []string
	for _, problem := range b.problems {
		if !strings.Contains(problem, fmt.Sprintf("the server responded with a status of %d", status)) {
			left = append(left, problem)
		}
	}
	b.problems = left
}

// do runs steps, which must succeed.
func (b *tab) do(steps ...chromedp.Action) {
	b.Helper()
	if chromedp.FromContext(b.ctx).Target == nil { // its end would close the tab
		require.NoError(b, chromedp.Run(b.ctx))
	}
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	require.NoError(b, chromedp.Run(ctx, steps...))
}

// leads runs steps that lead to another page, and gives its status.
func (b *tab) leads(steps ...chromedp.Action) int {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	response, err := chromedp.RunResponse(ctx, steps...)
	require.NoError(b, err)
	status := int(response.Status)
	if status >= http.StatusBadRequest {
		b.forgive(status)
	}
	return status
}

// open opens a page of the dashboard.
func (b *tab) open(path string) (status int) {
	b.Helper()
	return b.leads(chromedp.Navigate(b.base + path))
}

// click clicks on what leads to another page.
func (b *tab) click(selector string) (status int) {
	b.Helper()
	return b.leads(chromedp.Click(selector, chromedp.ByQuery))
}

// eval is the value of an expression in the page.
func eval[T any](b *tab, expression string) (value T) {
	b.Helper()
	b.do(chromedp.Evaluate(expression, &value, func(p *runtime.EvaluateParams) *runtime.EvaluateParams {
		return p.WithAwaitPromise(true)
	}))
	return value
}

// until waits until an expression is true.
func (b *tab) until(expression string) {
	b.Helper()
	for began := time.Now(); !eval[bool](b, "!!("+expression+")"); time.Sleep(20 * time.Millisecond) {
		if time.Since(began) > patience {
			require.Fail(b, "it does not become true: "+expression, b.text("body"))
		}
	}
}

// text is what a reader sees of the first element.
func (b *tab) text(selector string) string {
	b.Helper()
	return eval[string](b, fmt.Sprintf("document.querySelector(%q).innerText", selector))
}

// ids are those of the list.
func (b *tab) ids() []string {
	b.Helper()
	return eval[[]string](b, `[...document.querySelectorAll("tbody .c-id")].map(e => e.innerText.trim())`)
}

// screen is how pages are looked at.
type screen struct {
	name          string
	width, height int64
	dark, mobile  bool
}

var screens = []screen{
	{name: "light", width: 1280, height: 860}, {name: "dark", width: 1280, height: 860, dark: true},
	{name: "phone", width: 360, height: 740, mobile: true},
	{name: "dark phone", width: 360, height: 740, dark: true, mobile: true},
}

func (b *tab) on(s screen) {
	b.Helper()
	scheme := "light"
	if s.dark {
		scheme = "dark"
	}
	b.do(emulation.SetDeviceMetricsOverride(s.width, s.height, 1, s.mobile),
		emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}))
}

//go:embed testdata/axe.min.js
var axe string

// requireAccessible lets axe-core look at the page.
func (b *tab) requireAccessible(name string) {
	b.Helper()
	b.do(chromedp.Evaluate(axe, nil))
	type violation struct {
		ID    string
		Help  string
		Nodes []struct {
			HTML           string
			FailureSummary string
		}
	}
	found := eval[[]violation](b, `axe.run().then(found => found.violations)`)
	text, err := json.MarshalIndent(found, "", " ")
	require.NoError(b, err)
	require.Empty(b, found, "%s: %s", name, text)
}

// requireFits says that nothing sticks out at the sides.
func (b *tab) requireFits(name string) {
	b.Helper()
	const wide = `[...document.querySelectorAll("body *")].filter(e => {
		const box = e.getBoundingClientRect();
		const out = box.right > document.documentElement.clientWidth + .5 || box.left < -.5;
		return out && box.width > 1 && !e.matches(".skip, .hide, .hide *, .stats dd *"); // or cut, with an ellipsis
	}).map(e => e.outerHTML.slice(0, 200))`
	const root = "document.documentElement"
	require.Equal(b, eval[int](b, root+".clientWidth"), eval[int](b, root+".scrollWidth"), "%s: %v", name,
		eval[[]string](b, wide))
	require.Empty(b, eval[[]string](b, wide), name)
}
