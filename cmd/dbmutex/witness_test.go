//go:build unix

package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// witness is a command that must be alone, or one of a few: it holds a lock of the system's on a file while it runs, or on
// one of as many files as there may be of it.
func witness(name string) int {
	files := []string{name}
	if many, err := strconv.Atoi(os.Getenv(asWitness + "_MANY")); err == nil {
		for i := 1; i < many; i++ {
			files = append(files, fmt.Sprint(name, i))
		}
	}
	if !slices.ContainsFunc(files, lock) {
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

// lock locks a file until the process ends, unless another has.
func lock(name string) bool {
	fd, err := syscall.Open(name, syscall.O_CREAT|syscall.O_RDWR, 0o600)
	return err == nil && syscall.Flock(fd, syscall.LOCK_EX|syscall.LOCK_NB) == nil
}
