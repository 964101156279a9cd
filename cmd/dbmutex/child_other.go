//go:build unix && !linux

package main

import "syscall"

const platform = `
On this system a kill -9 of dbmutex does not end the command, as it does on Linux: it runs on, and the lease runs out.`

func attributes(own bool) *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: own} }
