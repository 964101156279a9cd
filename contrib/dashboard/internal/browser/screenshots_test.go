package browser

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/contrib/dashboard"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

var folder = flag.String("screenshots", "", "the `folder` for the pictures that the README shows")

// TestScreenshots takes the pictures.
func TestScreenshots(t *testing.T) {
	if *folder == "" {
		t.Skip("no -screenshots")
	}
	b := openTab(t, dashboard.Options{AllowRelease: allow, Title: "orders-db · db_mutexes"})
	const never = 0
	for _, lease := range []struct {
		id, holder string
		held, ttl  time.Duration
	}{
		{"billing/invoice-run", "billing-7c9d5f-x2m4k/1", 12 * time.Minute, 22 * time.Second},
		{"cache-warm/eu-west-1", "api-5b6f8c-9qq7d/1", 3 * time.Second, 57 * time.Second},
		{"export/customer/80131", "worker-3.fra.example/48213", 26 * time.Minute, 226 * time.Second},
		{"export/customer/80177", "worker-1.fra.example/1177", 29 * time.Minute, 18 * time.Second},
		{"import/catalogue", "worker-2.fra.example/30922", 31 * time.Minute, 5 * time.Second},
		{"leader/scheduler", "scheduler-0/1", 220 * time.Hour, 8 * time.Second},
		{"nightly-report", "worker-2.fra.example/30922", 72 * time.Minute, never},
		{"payments", "payments-6f7b9d-t8w2c/1", 0, 29 * time.Second},
		{"search/reindex/products", "search-indexer-84fb7/1", 123 * time.Minute, 41 * time.Second},
		{"sync/warehouse", "worker-2.fra.example/30922", 309 * time.Second, 24*time.Minute + 50*time.Second},
	} {
		ttl := dbmutex.WithTTL(max(lease.ttl, time.Second))
		if lease.ttl == never {
			ttl = dbmutex.WithoutTTL()
		}
		testdb.Acquire(t, b.db, lease.id, dbmutex.WithHolder(lease.holder), ttl)
		row := testdb.Row(t, b.db, lease.id)
		began := row.CreationTime.Add(-lease.held)
		require.NoError(t, b.db.Model(row).UpdateColumn("creation_time", began).Error)
	}
	for i := range 3 {
		_, err := b.db.Semaphore("thumbnails", 4, dbmutex.WithTTL(time.Duration(30-7*i)*time.Second),
			dbmutex.WithHolder(fmt.Sprintf("worker-%d.fra.example/%d", i+1, 30922+4711*i))).Acquire()
		require.NoError(t, err)
	}
	testdb.Expire(t, b.db, "import/catalogue")
	row := testdb.Row(t, b.db, "import/catalogue")
	require.NoError(t, b.db.Model(row).UpdateColumn("expires_at", row.ExpiresAt.Add(-11*time.Minute)).Error)
	b.open("?state=all")
	for _, dark := range []bool{false, true} {
		s := screen{width: 1280, height: 800, dark: dark}
		b.on(s)
		height := eval[float64](b, "document.body.scrollHeight")
		var picture []byte
		b.do(chromedp.ActionFunc(func(ctx context.Context) (err error) {
			picture, err = page.CaptureScreenshot().WithCaptureBeyondViewport(true).
				WithClip(&page.Viewport{Width: 1280, Height: height, Scale: 1}).Do(ctx)
			return err
		}))
		name := map[bool]string{false: "dashboard-light.png", true: "dashboard-dark.png"}[dark]
		require.NoError(t, os.WriteFile(filepath.Join(*folder, name), small(t, picture), 0o644))
	}
}

// small is the picture in 256 of its colours, which is half the size: those that it has most of, and those that differ most.
func small(t *testing.T, picture []byte) []byte {
	t.Helper()
	full, err := png.Decode(bytes.NewReader(picture))
	require.NoError(t, err)
	seen := map[color.Color]int{}
	for y := range full.Bounds().Dy() {
		for x := range full.Bounds().Dx() {
			seen[full.At(x, y)]++
		}
	}
	colours := color.Palette(slices.SortedFunc(maps.Keys(seen), func(a, b color.Color) int { return seen[b] - seen[a] }))
	few := colours[:min(len(colours), 128):min(len(colours), 128)]
	for len(few) < min(len(colours), 256) {
		few = append(few, slices.MaxFunc(colours, func(a, b color.Color) int {
			return distance(a, few.Convert(a)) - distance(b, few.Convert(b))
		}))
	}
	paletted := image.NewPaletted(full.Bounds(), few)
	draw.Draw(paletted, paletted.Bounds(), full, image.Point{}, draw.Src)
	var out bytes.Buffer
	require.NoError(t, (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&out, paletted))
	return out.Bytes()
}

func distance(a, b color.Color) (sum int) {
	ar, ag, ab, _ := a.RGBA()
	br, bg, bb, _ := b.RGBA()
	for _, d := range []int{int(ar) - int(br), int(ag) - int(bg), int(ab) - int(bb)} {
		sum += d * d
	}
	return sum
}
