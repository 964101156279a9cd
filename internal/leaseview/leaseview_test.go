package leaseview_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/leaseview"
)

// lease is one that ran out, if left is not positive.
func lease(id string, slot int, left time.Duration) dbmutex.LeaseInfo {
	now := time.Date(2026, 11, 27, 3, 0, 0, 0, time.FixedZone("", 3600))
	until := now.Add(left)
	return dbmutex.LeaseInfo{
		DBMutex: dbmutex.DBMutex{LockID: id, LeaseID: "lease", CreationTime: now.Add(-time.Minute), ExpiresAt: &until},
		Now:     now, Left: left, Slot: slot,
	}
}

func TestLeasesOfASemaphoreAreAGroup(t *testing.T) {
	groups := leaseview.Groups([]dbmutex.LeaseInfo{
		lease("b", 10, 1), lease("a", 0, 1), lease("b", 2, 1), lease("b", 0, 1), lease("b", 1, 1),
	})
	type place struct {
		id   string
		slot int
	}
	var got [][]place
	for _, group := range groups {
		var places []place
		for _, info := range group {
			places = append(places, place{info.LockID, info.Slot})
		}
		got = append(got, places)
	}
	require.Equal(t, [][]place{{{"b", 1}, {"b", 2}, {"b", 10}}, {{"a", 0}}, {{"b", 0}}}, got)
	require.Empty(t, leaseview.Groups(nil))
}

func TestHoldersAreCounted(t *testing.T) {
	for want, lefts := range map[string][]time.Duration{
		"1 holder": {1}, "2 holders": {1, 1}, "1 ran out": {0}, "1 holder, 2 ran out": {1, 0, -1},
		"2 holders, 1 ran out": {1, 0, 1},
	} {
		var group []dbmutex.LeaseInfo
		for i, left := range lefts {
			group = append(group, lease("job", i+1, left))
		}
		require.Equal(t, want, leaseview.Holders(group))
	}
}

func TestAPageIsOneLineOfJSON(t *testing.T) {
	done := lease("job@1\u202e", 0, time.Hour)
	done.LeaseID = "done"
	line, err := leaseview.Line(leaseview.NewPage(done.Now, []dbmutex.LeaseInfo{done, lease("s", 3, -time.Second)}, true))
	require.NoError(t, err)
	require.Equal(t, `{"now":"2026-11-27T02:00:00Z","leases":[`+
		`{"lock_id":"job@1\u202e","holder":"","lease_id":"done","creation_time":"2026-11-27T01:59:00Z",`+
		`"expires_at":"2026-11-27T03:00:00Z","state":"done","held_seconds":60,"left_seconds":3600},`+
		`{"lock_id":"s","slot":3,"holder":"","lease_id":"lease","creation_time":"2026-11-27T01:59:00Z",`+
		`"expires_at":"2026-11-27T01:59:59Z","state":"expired","held_seconds":60,"left_seconds":-1}],`+
		`"next":"s","next_slot":3}`+"\n", line)
	line, err = leaseview.Line(leaseview.NewPage(done.Now, nil, false))
	require.NoError(t, err)
	require.Equal(t, `{"now":"2026-11-27T02:00:00Z","leases":[],"next":null}`+"\n", line)
}
