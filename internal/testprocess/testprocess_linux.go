package testprocess

import (
	"os/exec"
	"syscall"
)

// endWithParent keeps a child that is stopped from staying when this process dies.
func endWithParent(child *exec.Cmd) {
	child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
