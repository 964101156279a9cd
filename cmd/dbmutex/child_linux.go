package main

import "syscall"

const platform = `
The end of dbmutex itself, even by kill -9, ends the command. As process 1 of a container it reaps all processes.`

func attributes(own bool) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: own, Pdeathsig: syscall.SIGKILL}
}
