package dashboard

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"strings"
)

//go:embed static
var embedded embed.FS

// file is one that browsers keep for ever, under its hash.
type file struct {
	content []byte
	kind    string
	hash    string
}

var kinds = map[string]string{".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

var files = func() map[string]file {
	files := map[string]file{}
	names, err := fs.Glob(embedded, "static/*")
	for _, name := range names {
		var content []byte
		if content, err = embedded.ReadFile(name); err != nil {
			break
		}
		sum := sha256.Sum256(content)
		kind := mime.FormatMediaType(kinds[path.Ext(name)], map[string]string{"charset": "utf-8"})
		files[path.Base(name)] = file{content, kind, hex.EncodeToString(sum[:8])}
	}
	if err != nil {
		panic(err)
	}
	return files
}()

// link is where a page finds a file.
func link(name string) string { return "static/" + name + "?v=" + files[name].hash }

// static serves a file. Browsers ask for the hash of another version while versions change: it must not be kept under that.
func static(w http.ResponseWriter, r *http.Request) {
	f := files[strings.TrimPrefix(place(r), "static/")]
	w.Header().Set("Content-Type", f.kind)
	if r.URL.Query().Get("v") == f.hash {
		w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	}
	_, _ = w.Write(f.content)
}
