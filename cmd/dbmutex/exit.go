package main

// The codes with which the program ends.
const (
	exitNo            = 1 // of every command but run: the answer is no
	exitFailure       = 2 // of every command but run: usage, or the database
	exitHeld          = 75
	exitLost          = 124
	exitRunFailure    = 125 // of run, before the command ran
	exitNotExecutable = 126
	exitNotFound      = 127
	exitSignal        = 128 // and the signal's number
)

// exitError is an error with the code to end with. Without an err all has been said.
type exitError struct {
	code int
	err  error
}

// Error is what there is to say, or "".
func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

// Unwrap returns what there is to say.
func (e *exitError) Unwrap() error { return e.err }
