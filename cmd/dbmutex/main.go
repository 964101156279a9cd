// Command dbmutex runs commands under a mutex that is kept in a database, so that one of them runs at a time on all the
// machines that use the database. README.md says how.
package main

import (
	"os"
	"runtime"
)

func main() {
	runtime.LockOSThread() // Linux ends the command when the thread that began it ends
	os.Exit(execute(os.Args[1:]))
}
