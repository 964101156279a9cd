//go:build unix

package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"syscall"
	"time"
)

// witness is a command that must be alone: it holds a lock of the system's on a file while it runs.
func witness(name string) int {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return 99
	}
	if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		_ = os.WriteFile(name+".overlap", nil, 0o600)
		return 98
	}
	fmt.Println(os.Getpid())
	time.Sleep(time.Duration(rand.IntN(200)) * time.Millisecond)
	if os.Getenv(asWitness+"_STAYS") != "" {
		time.Sleep(limit)
	}
	return 0
}
