package report

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strings"
)

// Machine is the one this runs on, without its name.
func Machine() string {
	parts := []string{fmt.Sprintf("%d CPUs", runtime.NumCPU())}
	if model := valueIn("/proc/cpuinfo", "model name"); model != "" {
		parts = append(parts, model)
	}
	var kB int64
	if _, err := fmt.Sscan(valueIn("/proc/meminfo", "MemTotal"), &kB); err == nil {
		parts = append(parts, fmt.Sprintf("%d GiB of memory", kB>>20))
	}
	if system := strings.Trim(valueIn("/etc/os-release", "PRETTY_NAME"), `"`); system != "" {
		parts = append(parts, system)
	}
	return strings.Join(append(parts, runtime.GOOS+"/"+runtime.GOARCH), ", ")
}

// valueIn is what a file says of a name, "" if nothing.
func valueIn(path, name string) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for lines := bufio.NewScanner(bytes.NewReader(content)); lines.Scan(); {
		key, value, found := strings.Cut(strings.Replace(lines.Text(), "=", ":", 1), ":")
		if found && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
