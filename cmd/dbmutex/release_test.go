//go:build unix

package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

func TestReleaseEndsTheLeaseThatWasSeen(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, db *dbmutex.DB) {
		held(t, db)
		lease := testdb.Row(t, db, "job").LeaseID
		code, stdout, stderr := run(t, d, "release", "job", "--lease", lease+"x")
		require.Equal(t, 1, code)
		require.Empty(t, stdout)
		require.Equal(t, "dbmutex: that lease had ended: nothing was released\n", stderr)
		testdb.RequireHeld(t, db, "job")
		code, _, stderr = run(t, d, "release", "job", "--lease", lease)
		require.Zero(t, code, stderr)
		require.Equal(t, "dbmutex: released \"job\"\n", stderr)
		successor := testdb.Acquire(t, db, "job")
		code, _, _ = run(t, d, "release", "job", "--lease", lease)
		require.Equal(t, 1, code)
		testdb.RequireHeld(t, db, "job")
		require.NoError(t, successor.Release())
	})
}

func TestReleaseByForceEndsAnyLease(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, db *dbmutex.DB) {
		code, _, stderr := run(t, d, "release", "job", "--force", "--yes")
		require.Equal(t, 1, code)
		require.Equal(t, "dbmutex: \"job\" is not held: nothing was released\n", stderr)
		testdb.Acquire(t, db, "job", dbmutex.WithHolder("anna"), dbmutex.WithoutTTL())
		code, _, stderr = run(t, d, "release", "job", "--force")
		require.Equal(t, 2, code)
		require.Contains(t, stderr, "--yes")
		testdb.RequireHeld(t, db, "job")
		code, _, stderr = run(t, d, "release", "job", "--force", "--yes")
		require.Zero(t, code)
		require.Equal(t, "dbmutex: released \"job\", which anna had\n", stderr)
		testdb.RequireFree(t, db, "job")
	})
}

func TestPruneRemovesWhatRanOut(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, db *dbmutex.DB) {
		for i := range 3 {
			testdb.Acquire(t, db, fmt.Sprint("old ", i))
			testdb.Expire(t, db, fmt.Sprint("old ", i))
		}
		held(t, db)
		for _, want := range []string{"removed 3 rows\n", "removed 0 rows\n"} {
			code, stdout, stderr := run(t, d, "prune")
			require.Zero(t, code, stderr)
			require.Equal(t, want, stdout)
		}
		testdb.RequireHeld(t, db, "job")
	})
}

func TestTheSQLOfSchemaMakesTheTable(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, db *dbmutex.DB) {
		code, stdout, stderr := run(t, d, "schema", d.Name, "--table", "others")
		require.Zero(t, code, stderr)
		for _, statement := range strings.SplitAfter(stdout, ";\n") { // MySQL's driver takes one at a time
			if strings.TrimSpace(statement) != "" {
				require.NoError(t, db.Exec(statement).Error)
			}
		}
		code, _, stderr = run(t, d, "run", "--table", "others", "--once-per", period, "job", "--", "true")
		require.Zero(t, code, stderr)
		require.True(t, db.Migrator().HasTable("others_onces"))
		code, _, stderr = run(t, d, "run", "--table", "others", "job", "--", "true")
		require.Zero(t, code, stderr)
		code, _, stderr = run(t, d, "migrate", "--table", "others")
		require.Zero(t, code, stderr)
	})
}

func TestSchemaAsksNoDatabase(t *testing.T) {
	d, _ := file(t)
	cmd := program(t, d, "schema", "postgres", "--table", "locks.db_mutexes")
	cmd.Env = append(cmd.Env, "DBMUTEX_DSN=")
	p := begin(t, cmd)
	code, stdout := p.code()
	require.Zero(t, code, p.stderr)
	require.Contains(t, stdout, "CREATE TABLE locks.db_mutexes (")
	require.Contains(t, stdout, "idx_locks_db_mutexes_lock_id ON locks.db_mutexes")
	require.Contains(t, stdout, "CREATE TABLE locks.db_onces (")
	require.Contains(t, stdout, "idx_locks_db_onces_expires_at ON locks.db_onces")
	for _, args := range []string{"schema", "schema oracle", "schema postgres mysql", "schema postgres --table a-b"} {
		code, stdout, _ := run(t, d, strings.Fields(args)...)
		require.Equal(t, 2, code)
		require.Empty(t, stdout)
	}
}

func TestDoctorFindsNothing(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, db *dbmutex.DB) {
		held(t, db)
		code, stdout, stderr := run(t, d, "doctor")
		require.Zero(t, code, stdout)
		require.Empty(t, stderr)
		require.Regexp(t, `^connection  ok: `+d.Name+`
table       ok: db_mutexes
columns     ok
index       ok
sequence    ok
rights      ok
once        ok: db_onces
clock       ok: this machine is [0-9]+ m?s (ahead of|behind) the database
leases      ok: all expire
$`, stdout)
		var rows int64
		require.NoError(t, db.Model(&dbmutex.DBMutex{}).Where("lock_id = ?", doctorsID).Count(&rows).Error)
		require.Zero(t, rows)
	})
}

func TestTwoDoctorsDoNotQuarrel(t *testing.T) {
	d, db := file(t)
	testdb.Acquire(t, db, doctorsID)
	code, stdout, _ := run(t, d, "doctor", "--timeout", "4s")
	require.Zero(t, code)
	require.Contains(t, stdout, "\nrights      ok: not tried, as another doctor holds dbmutex.doctor\n")
}

func TestDoctorFindsLeasesThatNeverExpire(t *testing.T) {
	d, db := file(t)
	testdb.Acquire(t, db, "job", dbmutex.WithoutTTL())
	code, stdout, _ := run(t, d, "doctor")
	require.Equal(t, 1, code)
	require.Contains(t, stdout, "\nleases      1 lease never expires: look ")
	testdb.Acquire(t, db, "job 2", dbmutex.WithoutTTL())
	_, stdout, _ = run(t, d, "doctor")
	require.Contains(t, stdout, "\nleases      2 leases never expire: look ")
}

func TestDoctorFindsWhatIsWrongWithATable(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		code, stdout, _ := run(t, d, "doctor")
		require.Equal(t, 1, code)
		require.Regexp(t, `^connection  ok: `+d.Name+`\ntable       db_mutexes is missing: run dbmutex migrate\n$`, stdout)
		parts := map[string]bool{}
		for name, made := range d.Unusable {
			d := d.Another(t)
			require.NoError(t, d.Open(t).Exec(made[0]).Error)
			code, stdout, stderr := run(t, d, "doctor")
			require.Equal(t, 1, code, "%s: %s%s", name, stdout, stderr)
			lines := strings.Split(strings.TrimSpace(stdout), "\n")
			require.Len(t, lines, 2)
			require.Contains(t, strings.Replace(lines[1], "dbmutex migrate does", "Migrate does", 1), made[1])
			part, _, _ := strings.Cut(lines[1], " ")
			parts[part] = true
		}
		for _, part := range []string{"columns", "index", "sequence"} {
			require.Contains(t, parts, part)
		}
	})
}

func TestDoctorFindsMissingRights(t *testing.T) {
	t.Parallel()
	testdb.EachOf(t, testdb.Remote, func(t *testing.T, d *testdb.Database) {
		for _, missing := range []string{"none", "SELECT", "INSERT", "UPDATE", "DELETE"} {
			d := d.Another(t)
			d.Mutexes(t, dbmutex.DefaultSettings())
			rights := make([]string, len(d.LeastRights))
			for i, right := range d.LeastRights {
				rights[i] = strings.NewReplacer(missing+", ", "", ", "+missing+" ", " ").Replace(right)
			}
			code, stdout, stderr := run(t, d.Granted(t, rights...), "doctor")
			if missing == "none" {
				require.Zero(t, code, stdout+stderr)
				continue
			}
			require.NotEqual(t, d.LeastRights, rights)
			require.Equal(t, 1, code, missing)
			require.Regexp(t, `(?m)^rights .* denied.* a program needs SELECT`, stdout, missing)
		}
	})
}

func TestDoctorComparesClocks(t *testing.T) {
	for ahead, found := range map[time.Duration]bool{
		0: false, time.Second: false, -time.Second: false, 3 * time.Second: true, -3 * time.Second: true,
	} {
		d := &doctor{}
		d.compare(ahead, time.Second)
		require.Equal(t, found, d.found)
	}
}
