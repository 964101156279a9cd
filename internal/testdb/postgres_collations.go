package testdb

import (
	"crypto/rand"
	"net/url"
	"slices"
	"strings"
	"testing"
)

// PostgresCollations are collations that the server has, "C" and some of languages.
func PostgresCollations(t testing.TB) (names []string) {
	t.Helper()
	find(t, &names, `SELECT DISTINCT collname::text FROM pg_collation WHERE collencoding IN (-1, 6)
AND collname IN ('C', 'C.utf8', 'en_US.utf8', 'en-US-x-icu', 'cy-x-icu', 'da-x-icu', 'cs-x-icu', 'fr-CA-x-icu', 'ja-x-icu')`)
	return names
}

// PostgresLocales are locales for PostgresIn that the server can give a database, not all of which sort by bytes.
func PostgresLocales(t testing.TB) []string {
	t.Helper()
	locales := []string{`LOCALE 'C'`}
	names := PostgresCollations(t)
	for _, libc := range []string{"C.utf8", "en_US.utf8"} {
		if slices.Contains(names, libc) {
			locales = append(locales, `LOCALE '`+libc+`'`)
		}
	}
	var versions []int
	find(t, &versions, `SELECT current_setting('server_version_num')::int`)
	if slices.Contains(names, "cy-x-icu") && versions[0] >= 150000 { // databases have had ICU's since then
		for _, icu := range []string{"en-US", "cy"} {
			locales = append(locales, `LOCALE 'C' LOCALE_PROVIDER icu ICU_LOCALE '`+icu+`'`)
		}
	}
	return locales
}

func find(t testing.TB, found any, query string) {
	t.Helper()
	if err := PostgresAt(PostgresServer(t)).Open(t).Raw(query).Scan(found).Error; err != nil {
		t.Fatalf("testdb: %v", err)
	}
}

// PostgresIn makes a fresh database with a locale.
func PostgresIn(t testing.TB, locale string) *Database {
	t.Helper()
	base, name := PostgresServer(t), "dbmutex_test_"+strings.ToLower(rand.Text())
	if err := runPostgres(base, `CREATE DATABASE `+name+` TEMPLATE template0 ENCODING 'UTF8' `+locale); err != nil {
		t.Fatalf("testdb: %v", err)
	}
	t.Cleanup(func() {
		if err := runPostgres(base, `DROP DATABASE `+name); err != nil {
			t.Errorf("testdb: %v", err)
		}
	})
	if u, err := url.Parse(base); err == nil && u.Host != "" {
		u.Path = "/" + name
		return PostgresAt(u.String())
	}
	return PostgresAt(base + " dbname=" + name)
}
