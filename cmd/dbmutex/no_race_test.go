//go:build !race

package main

const race = "-race=false"
