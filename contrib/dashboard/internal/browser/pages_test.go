package browser

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/contrib/dashboard"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// some are mutexes of all kinds.
func some(b *tab) {
	b.Helper()
	testdb.Acquire(b, b.db, "billing/invoice-run", dbmutex.WithHolder("billing-7c9d5f-x2m4k/1"), dbmutex.WithTTL(time.Hour))
	time.Sleep(5 * time.Millisecond)
	testdb.Acquire(b, b.db, "leader/scheduler", dbmutex.WithHolder("scheduler-0/1"), dbmutex.WithoutTTL())
	time.Sleep(5 * time.Millisecond)
	testdb.Acquire(b, b.db, "cache-warm/"+strings.Repeat("eu-west-1/", 24), dbmutex.WithHolder(strings.Repeat("holder", 50)))
	testdb.Acquire(b, b.db, "pay\u202etxt.exe", dbmutex.WithHolder("<img src=x onerror=alert(1)>"))
	testdb.Acquire(b, b.db, "nightly-report", dbmutex.WithHolder("worker-2.fra.example/30922"))
	testdb.Expire(b, b.db, "nightly-report")
	require.NoError(b, testdb.Acquire(b, b.db, "resting", dbmutex.WithMinHold(time.Minute)).Release())
}

// shared has a semaphore with holders, and some work of Once.
func shared(b *tab) {
	b.Helper()
	for i := range 3 {
		holder := dbmutex.WithHolder(fmt.Sprint("worker-", i+1))
		_, err := b.db.Semaphore("thumbnails", 3, holder, dbmutex.WithTTL(time.Hour)).Acquire()
		require.NoError(b, err)
	}
	for id, keep := range map[string]time.Duration{
		"nightly-report@2026-11-27T00:00:00Z": 47 * time.Hour, "clean@" + strings.Repeat("eu-west-1/", 24): 200_000 * time.Hour,
	} {
		require.NoError(b, b.db.Once(id, keep, dbmutex.WithHolder(strings.Repeat("holder", 50))).Do(testdb.Nothing))
	}
	goOn := make(chan bool)
	begun := make(chan bool)
	b.Cleanup(func() { close(goOn) })
	go func() {
		_ = b.db.Once("running", time.Hour, dbmutex.WithTTL(time.Hour)).Do(
			func(context.Context) error { close(begun); <-goOn; return nil })
	}()
	<-begun
}

func TestSlotsAndOnceAreSeenAndReleasedWithoutJavaScript(t *testing.T) {
	t.Parallel()
	b := openTab(t, dashboard.Options{AllowRelease: allow})
	shared(b)
	b.do(emulation.SetScriptExecutionDisabled(true))
	b.open("")
	require.Equal(t, []string{"thumbnails", "thumbnails,\nslot 1", "thumbnails,\nslot 2", "thumbnails,\nslot 3"}, b.ids())
	require.Equal(t, "3 holders", b.text("tbody td.c-holder"))
	b.click("tbody tr:nth-child(3) .c-act a")
	require.Contains(t, b.text("h1"), "Release slot 2 of thumbnails?")
	require.Equal(t, http.StatusOK, b.leads(chromedp.SendKeys("#sure", "thumbnails"+kb.Enter, chromedp.ByQuery)))
	require.Equal(t, []string{"thumbnails", "thumbnails,\nslot 1", "thumbnails,\nslot 3"}, b.ids())
	b.click("td.c-id a")
	require.Equal(t, "2 holders", b.text(".head .tag"))
	b.click(".slots .c-act a")
	require.Contains(t, b.text("h1"), "Release slot 1 of thumbnails?")
	b.open("")
	b.click(".tabs a:nth-child(4)")
	long := "clean@" + strings.Repeat("eu-west-1/", 24)
	require.Equal(t, []string{long, "nightly-report@2026-11-27T00:00:00Z", "running"}, b.ids())
	require.Regexp(t, `^done kept for 1 d 2[23] h$`, strings.Join(strings.Fields(b.text("tr:nth-child(2) td.c-left")), " "))
	b.leads(chromedp.SendKeys("#q", "nightly"+kb.Enter, chromedp.ByQuery))
	require.Equal(t, []string{"nightly-report@2026-11-27T00:00:00Z"}, b.ids())
	b.click(".tabs a:nth-child(1)")
	require.Contains(t, b.text(".empty"), "No mutex begins with “nightly”")
}

func TestEveryPageIsAccessibleAndFits(t *testing.T) {
	t.Parallel()
	b := openTab(t, dashboard.Options{AllowRelease: allow, Refresh: -1})
	empty := []string{"", "?state=expired", "?prefix=x", "?once=1"}
	look := func(path string) {
		b.open(path)
		for _, s := range screens {
			b.on(s)
			b.requireFits(path + " on " + s.name)
			b.requireAccessible(path + " on " + s.name)
		}
	}
	for _, path := range empty {
		look(path)
	}
	some(b)
	shared(b)
	of := func(page, id string) string {
		row := testdb.Row(t, b.db, id)
		return page + "?" + url.Values{"id": {id}, "lease": {row.LeaseID}}.Encode()
	}
	long := "cache-warm/" + strings.Repeat("eu-west-1/", 24)
	for _, path := range []string{
		"?state=all", "?state=all&order=oldest&done=job", "mutex?id=nobody", of("mutex", "leader/scheduler"), of("mutex", long),
		of("mutex", "nightly-report"), of("release", long), of("release", "pay\u202etxt.exe"), "release?id=x&lease=x",
		"mutex?id=thumbnails", "?once=1", "?once=1&order=ending",
	} {
		look(path)
	}
}

func TestTheListIsSearchedAndSorted(t *testing.T) {
	t.Parallel()
	b := openTab(t, dashboard.Options{})
	some(b)
	b.open("")
	all := []string{"billing/invoice-run", "cache-warm/" + strings.Repeat("eu-west-1/", 24), "leader/scheduler",
		`pay\u202etxt.exe`, "resting"}
	require.Equal(t, all, b.ids())

	b.do(input.DispatchKeyEvent(input.KeyDown).WithKey("/").WithText("/"))
	require.Equal(t, "q", eval[string](b, "document.activeElement.id"))
	b.leads(chromedp.KeyEvent("billing/" + kb.Enter))
	require.Equal(t, all[:1], b.ids())
	b.open("")
	b.leads(chromedp.SendKeys("#q", "leader/scheduler", chromedp.ByQuery), chromedp.Click("form button", chromedp.ByQuery))
	require.Equal(t, []string{"leader/scheduler"}, b.ids())

	b.open("")
	b.click("th.c-since a")
	require.Equal(t, []string{"billing/invoice-run", "leader/scheduler"}, b.ids()[:2])
	require.Equal(t, "descending", eval[string](b, `document.querySelector("th.c-since").getAttribute("aria-sort")`))
	b.click("th.c-left a")
	require.Equal(t, "leader/scheduler", b.ids()[4])
	b.click("th.c-id a")
	require.Equal(t, all, b.ids())

	b.click(`.tabs a:nth-child(2)`)
	require.Equal(t, []string{"nightly-report"}, b.ids())
	require.Regexp(t, `^ran out .* ago$`, b.text("td.c-left"))
	b.click(`.tabs a:nth-child(3)`)
	require.Len(t, b.ids(), 6)
	b.click("td.c-id a")
	require.Equal(t, "billing/invoice-run", b.text("h1"))
}

func TestTenThousandLeasesAreLeafedThrough(t *testing.T) {
	t.Parallel()
	b := openTab(t, dashboard.Options{})
	testdb.Many(t, b.db, 10_000)
	b.open("")
	require.Contains(t, b.text(".foot"), "50 of 10,000")
	page := func(n int) (ids []string) {
		for i := range 50 {
			ids = append(ids, fmt.Sprintf("many-%05d", n*50+i))
		}
		return ids
	}
	for n := range 5 {
		require.Equal(t, page(n), b.ids())
		b.click(`a[rel=next]`)
	}
	b.open("?after=many-09899")
	require.Equal(t, page(198), b.ids())
	b.click(`a[rel=next]`)
	require.Equal(t, page(199), b.ids())
	require.False(t, eval[bool](b, `!!document.querySelector("a[rel=next]")`))
	b.click(`.pager a`)
	require.Equal(t, page(0), b.ids())
}

func TestTheListStaysFresh(t *testing.T) {
	t.Parallel()
	b := openTab(t, dashboard.Options{Refresh: 200 * time.Millisecond})
	b.open("")
	require.Contains(t, b.text("main"), "Nothing is held")
	require.Equal(t, "Live, every 0.2 s", b.text("[data-live]"))
	eval[bool](b, "window.here = true")
	lease := testdb.Acquire(t, b.db, "job", dbmutex.WithTTL(5*time.Minute))
	b.until(`document.querySelector("tbody td.c-id")`)
	require.Equal(t, []string{"job"}, b.ids())
	before := b.text("td.c-left span")
	b.until(fmt.Sprintf(`document.querySelector("td.c-left span").innerText !== %q`, before))

	eval[any](b, `document.querySelector("td.c-id a").focus()`) // what has the focus stays
	require.NoError(t, lease.Release())
	n := b.requests.Load() // answers last a second
	require.Eventually(t, func() bool { return b.requests.Load() > n+10 }, patience, 10*time.Millisecond)
	require.Equal(t, []string{"job"}, b.ids())
	eval[any](b, "document.activeElement.blur()")
	b.until(`document.querySelector(".empty")`)

	for hidden, more := range map[string]bool{"true": false, "false": true} { // a tab that nobody sees
		eval[any](b, `Object.defineProperty(document, "hidden", {configurable: true, get: () => `+hidden+`});
			document.dispatchEvent(new Event("visibilitychange"))`)
		require.Eventually(t, func() bool {
			n := b.requests.Load()
			time.Sleep(time.Second)
			return more == (b.requests.Load() > n)
		}, patience, time.Millisecond)
	}
	require.True(t, eval[bool](b, "window.here"), "the page was never loaded again")
}

func TestAPageSaysThatTheDatabaseDoesNotAnswer(t *testing.T) {
	t.Parallel()
	b := openTab(t, dashboard.Options{Refresh: 200 * time.Millisecond})
	testdb.Acquire(t, b.db, "job")
	b.open("")
	var broken atomic.Bool
	require.NoError(t, b.db.Callback().Row().Before("gorm:row").Register("fail", func(tx *gorm.DB) {
		if broken.Load() {
			_ = tx.AddError(gorm.ErrInvalidDB)
		}
	}))
	broken.Store(true)
	b.until(`document.querySelector(".note.bad")`)
	require.Regexp(t, `^No answer for \d+ s, trying again$`, b.text("[data-live]"))
	require.Contains(t, b.text(".note"), "The database does not answer.")
	require.Equal(t, []string{"job"}, b.ids())
	b.requireAccessible("without a database")
	broken.Store(false)
	b.until(`!document.querySelector(".note.bad")`)
	require.Equal(t, "Live, every 0.2 s", b.text("[data-live]"))
	b.forgive(http.StatusServiceUnavailable)
}

func TestAMutexStaysFresh(t *testing.T) {
	t.Parallel()
	b := openTab(t, dashboard.Options{Refresh: 200 * time.Millisecond})
	lease := testdb.Acquire(t, b.db, "job", dbmutex.WithHolder("worker-1"))
	b.open("mutex?id=job")
	require.NoError(t, lease.Release())
	b.until(`document.querySelector(".empty")`)
	testdb.Acquire(t, b.db, "job", dbmutex.WithHolder("worker-2"))
	b.until(`document.querySelector(".facts")`)
	require.Contains(t, b.text(".facts"), "worker-2")
	b.forgive(http.StatusNotFound)
}

func TestAReleaseIsTyped(t *testing.T) {
	t.Parallel()
	b := openTab(t, dashboard.Options{AllowRelease: allow})
	ids := []string{`"quoted" <b>`, "export/customer 80131", "two\r\nlines\u202e"}
	for _, id := range ids {
		testdb.Acquire(t, b.db, id)
	}
	b.open("")
	for _, id := range ids {
		require.Equal(t, http.StatusOK, b.click(".c-act a"))
		shown := b.text("h1 .mono")
		const disabled = `document.querySelector("form button").disabled`
		require.True(t, eval[bool](b, disabled))
		require.Equal(t, "sure", eval[string](b, "document.activeElement.id"))
		b.do(chromedp.KeyEvent(shown[:len(shown)-1]))
		require.True(t, eval[bool](b, disabled))
		b.do(chromedp.KeyEvent(shown[len(shown)-1:]))
		require.False(t, eval[bool](b, disabled))
		const twice = `(b => { b.click(); setTimeout(() => b.click(), 1); })(document.querySelector("form button"))`
		require.Equal(t, http.StatusOK, b.leads(chromedp.Evaluate(twice, nil)))
		require.Contains(t, b.text(".note"), "Released "+shown)
		require.Equal(t, b.base, eval[string](b, "location.href"))
		testdb.RequireFree(t, b.db, id)
	}
}

func TestAReleaseIsRefused(t *testing.T) {
	t.Parallel()
	var may atomic.Bool
	b := openTab(t, dashboard.Options{AllowRelease: func(*http.Request) bool { return may.Load() }})
	lease := testdb.Acquire(t, b.db, "job")
	confirm := "release?id=job&lease=" + testdb.Row(t, b.db, "job").LeaseID
	b.open("")
	require.Contains(t, b.text("header"), "Read only")
	require.Equal(t, 0, eval[int](b, `document.querySelectorAll("a[href^=release]").length`))
	require.Equal(t, http.StatusForbidden, b.open(confirm))
	require.Contains(t, b.text("main"), "You may not release mutexes here.")

	may.Store(true)
	b.open(confirm)
	b.do(chromedp.SendKeys("#sure", "job", chromedp.ByQuery))
	require.NoError(t, lease.Release())
	testdb.Acquire(t, b.db, "job")
	require.Equal(t, http.StatusConflict, b.click("form button"))
	require.Contains(t, b.text("main"), "That lease had ended.\n\nNothing was released.")
	testdb.RequireHeld(t, b.db, "job")

	b.open("release?id=job&lease=" + testdb.Row(t, b.db, "job").LeaseID)
	b.do(chromedp.SendKeys("#sure", "job", chromedp.ByQuery))
	may.Store(false)
	require.Equal(t, http.StatusForbidden, b.click("form button"))
	testdb.RequireHeld(t, b.db, "job")
}

func TestAllWorksWithoutJavaScript(t *testing.T) {
	t.Parallel()
	b := openTab(t, dashboard.Options{AllowRelease: allow})
	testdb.Many(t, b.db, 60)
	testdb.Acquire(t, b.db, "job", dbmutex.WithHolder("worker-1"))
	b.do(emulation.SetScriptExecutionDisabled(true))
	b.open("")
	require.Regexp(t, `^As of \d\d:\d\d:\d\d$`, b.text("[data-live]"))
	require.Regexp(t, `^\d+ min \d\d:\d\d:\d\d$`, strings.Join(strings.Fields(b.text("td.c-left")), " "))
	b.click("a[rel=next]")
	require.Len(t, b.ids(), 11)
	b.click("th.c-since a")
	require.Len(t, b.ids(), 50)
	b.leads(chromedp.SendKeys("#q", "job"+kb.Enter, chromedp.ByQuery))
	require.Equal(t, []string{"job"}, b.ids())
	b.click("td.c-id a")
	require.Contains(t, b.text(".facts"), "worker-1")
	b.click(".head .btn")
	require.Equal(t, http.StatusUnprocessableEntity, b.leads(chromedp.SendKeys("#sure", "jo"+kb.Enter, chromedp.ByQuery)))
	require.Contains(t, b.text(".note"), "That is not the mutex’s id.")
	b.do(chromedp.SendKeys("#sure", "job", chromedp.ByQuery))
	require.Equal(t, http.StatusOK, b.click("form button"))
	require.Contains(t, b.text(".note"), "Released job")
	testdb.RequireFree(t, b.db, "job")
}
