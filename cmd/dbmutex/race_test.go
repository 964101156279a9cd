//go:build race

package main

const race = "-race=true"
