package dbmutex

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/gorm-dbmutex/dbmutex/internal/locktable"
)

// DefaultTTL is how long a lease lasts under DefaultSettings: 30 minutes, as in django-db-mutex.
const DefaultTTL = 30 * time.Minute

// Forever is the Settings.Wait, or the WithWait, that waits until the context is done.
const Forever time.Duration = -1

// ttlVariable is the environment variable that SettingsFromEnv reads.
const ttlVariable = "DB_MUTEX_TTL_SECONDS"

// Settings are what New gives to every mutex of an application; an Option changes them for one mutex. Start from
// DefaultSettings: the zero value means leases that never expire.
type Settings struct {
	// TTL is how long a lease lasts without renewal, at least a millisecond. It is rounded up to what the database's clock
	// counts (microseconds; milliseconds on SQLite). nil means that leases never expire; beware, a holder that
	// crashes then keeps its lock until Mutex.ForceRelease. DefaultSettings has DefaultTTL.
	TTL *time.Duration

	// Wait is how long to wait for a mutex that is held: 0, the default, not at all; Forever until the context is
	// done. It bounds the wait for the mutex alone, neither a statement that hangs nor the work. A waiter that gives up may
	// need a second more to say who holds the mutex, or to tell other processes that it waits no more. Nor does it bound the
	// wait for a connection of the pool. On SQLite a free mutex is also waited for while another connection writes to the
	// file: for 5 seconds, or for Wait and up to 5 seconds more if that is longer.
	Wait time.Duration

	// Renew keeps the lease alive while the work runs, with a renewal every TTL/3. Each renewal needs a connection of the
	// pool: if the work keeps the only one, the lease runs out. Defaults to false. It has no effect without a TTL.
	Renew bool

	// MinHold keeps the mutex taken for at least this long from its acquisition, even if the work ends sooner, for
	// schedulers whose clocks differ. It may not be greater than the TTL. Defaults to 0.
	MinHold time.Duration

	// SkipHeld makes Do and Decorate's function return nil without running the work, and log a warning through GORM's
	// logger, if the mutex is held. It is django-db-mutex's suppress_acquisition_exceptions. Acquire, Transaction
	// and DoValue then give ErrInvalidSettings, as they would have nothing to return. Defaults to false.
	SkipHeld bool

	// Holder is who holds the lease, for people who look at the table or at a HeldError. "" means host/pid.
	Holder string

	// Observer is told what happens to mutexes, for logs, metrics and traces. Defaults to nil: nobody is told.
	Observer Observer
}

// DefaultSettings has a TTL of DefaultTTL, does not wait and does not renew.
func DefaultSettings() Settings {
	ttl := DefaultTTL
	return Settings{TTL: &ttl}
}

// SettingsFromEnv is DefaultSettings with the TTL of the environment variable DB_MUTEX_TTL_SECONDS: a number of
// seconds, fractions allowed, or "none" for leases that never expire. Unset or empty, it changes nothing. Anything
// else is ErrInvalidSettings, beside settings that are DefaultSettings.
func SettingsFromEnv() (Settings, error) {
	s := DefaultSettings()
	value := strings.TrimSpace(os.Getenv(ttlVariable))
	switch {
	case value == "":
		return s, nil
	case strings.EqualFold(value, "none"):
		s.TTL = nil
		return s, nil
	}
	seconds, err := strconv.ParseFloat(value, 64)
	ttl := math.Round(seconds * float64(time.Second))
	if err != nil || !(ttl >= float64(time.Millisecond) && ttl < math.MaxInt64) {
		return s, fmt.Errorf(`%w: %s=%q: want a number of seconds, at least 0.001, or "none"`,
			ErrInvalidSettings, ttlVariable, value)
	}
	*s.TTL = time.Duration(ttl)
	return s, nil
}

// Option changes the plugin's settings for one mutex.
type Option func(*Settings)

// WithTTL makes leases last ttl, which must be at least a millisecond. The default is DefaultTTL.
func WithTTL(ttl time.Duration) Option {
	return func(s *Settings) {
		own := ttl // another option may write to it
		s.TTL = &own
	}
}

// WithoutTTL makes leases that never expire. Beware: a holder that crashes keeps its lock until Mutex.ForceRelease.
func WithoutTTL() Option { return func(s *Settings) { s.TTL = nil } }

// WithWait waits up to wait for a mutex that is held, or, with Forever, until the context is done. The default is 0.
func WithWait(wait time.Duration) Option { return func(s *Settings) { s.Wait = wait } }

// WithRenewal renews the lease every TTL/3 while the work runs. The default is not to. Without a TTL it has no effect.
func WithRenewal() Option { return func(s *Settings) { s.Renew = true } }

// WithMinHold keeps the mutex taken for at least d from its acquisition; it may not be greater than the TTL.
func WithMinHold(d time.Duration) Option { return func(s *Settings) { s.MinHold = d } }

// WithSkipHeld makes Do and Decorate's function return nil, and log, if the mutex is held. So does Do of a Semaphore and of
// a Once. The default is ErrNotAcquired.
func WithSkipHeld() Option { return func(s *Settings) { s.SkipHeld = true } }

// WithHolder names the holder, for people; "" means host/pid.
func WithHolder(holder string) Option { return func(s *Settings) { s.Holder = holder } }

// WithObserver tells o, rather than Settings.Observer, what happens to the mutex. nil: nobody is told.
func WithObserver(o Observer) Option { return func(s *Settings) { s.Observer = o } }

// clone shares nothing with s.
func (s Settings) clone() Settings {
	if s.TTL != nil {
		ttl := *s.TTL
		s.TTL = &ttl
	}
	return s
}

func (s Settings) validate() error {
	var problem error
	switch {
	case s.TTL != nil && *s.TTL <= 0:
		problem = fmt.Errorf("a TTL of %v: it must be positive, or nil for leases that never expire", *s.TTL)
	case s.TTL != nil && *s.TTL < time.Millisecond:
		problem = fmt.Errorf("a TTL of %v: it must be at least 1ms (was the unit forgotten?)", *s.TTL)
	case s.Wait < 0 && s.Wait != Forever:
		problem = fmt.Errorf("a wait of %v: it must be 0, positive, or Forever", s.Wait)
	case s.MinHold < 0:
		problem = fmt.Errorf("a MinHold of %v: it may not be negative", s.MinHold)
	case s.TTL != nil && s.MinHold > *s.TTL:
		problem = fmt.Errorf("a MinHold of %v is greater than the TTL of %v", s.MinHold, *s.TTL)
	case !utf8.ValidString(s.Holder) || strings.ContainsRune(s.Holder, 0):
		problem = errors.New("the holder must be valid UTF-8 without NUL characters")
	default:
		return nil
	}
	return fmt.Errorf("%w: %w", ErrInvalidSettings, problem)
}

func validateLockID(id string) error {
	switch {
	case id == "":
		return fmt.Errorf("%w: it is empty", ErrInvalidLockID)
	case !utf8.ValidString(id):
		return fmt.Errorf("%w %q: it is not valid UTF-8", ErrInvalidLockID, id)
	case strings.ContainsRune(id, 0):
		return fmt.Errorf("%w %q: it has a NUL character", ErrInvalidLockID, id)
	case strings.Contains(id, locktable.SlotMark):
		return fmt.Errorf("%w %q: it has the character U+001F, which marks the slots of semaphores", ErrInvalidLockID, id)
	case utf8.RuneCountInString(id) > MaxLockIDLength:
		return fmt.Errorf("%w: it has %d characters and may have %d",
			ErrInvalidLockID, utf8.RuneCountInString(id), MaxLockIDLength)
	}
	return nil
}

// thisProcess is the default holder.
var thisProcess = func() string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "unknown"
	}
	return strings.ToValidUTF8(host, "?") + "/" + strconv.Itoa(os.Getpid())
}()
