package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// stranger has nothing but a Go toolchain, this machine's build cache, and the proxies.
type stranger struct {
	folder  string
	env     []string
	version string
}

func newStranger(folder, proxy, version string) (*stranger, error) {
	out, err := exec.Command("go", "env", "GOMODCACHE", "GOPROXY").Output()
	if err != nil {
		return nil, fmt.Errorf("go env: %w", err)
	}
	cache, others, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return &stranger{folder: folder, version: version, env: append(os.Environ(),
		"GOPROXY=file://"+proxy+",file://"+filepath.Join(cache, "cache", "download")+","+others,
		"GOMODCACHE="+filepath.Join(folder, "cache"),
		"GOBIN="+filepath.Join(folder, "bin"),
		"GOWORK=off",
		"CGO_ENABLED=0", // nothing of the tree is in C, and what others have takes long to compile
		"GOSUMDB=off",   // it does not know the modules of the tree, and the others have been checked when they came
		// Without the paths of the new module cache in it, what is built is found in the build cache the next time.
		"GOFLAGS=-trimpath -modcacherw",
	)}, nil
}

// use gets a module, builds a program that imports its packages, and installs its commands. It then compiles
// everything else that is in the module, with the tests.
func (s *stranger) use(m *aModule) error {
	folder, err := os.MkdirTemp(s.folder, "stranger-")
	if err != nil {
		return err
	}
	run := func(args ...string) (string, error) {
		cmd := exec.Command("go", args...)
		cmd.Dir, cmd.Env = folder, s.env
		out, err := cmd.CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
		}
		return string(out), nil
	}
	if _, err := run("mod", "init", "example.com/stranger"); err != nil {
		return err
	}
	if _, err := run("get", m.path+"@"+s.version); err != nil {
		return err
	}
	packages, err := run("list", "-e", "-f", "{{if .GoFiles}}{{.Name}} {{.ImportPath}}{{end}}", m.path+"/...")
	if err != nil {
		return err
	}
	program := "package main\n\n"
	get := []string{"get"}
	for line := range strings.Lines(packages) {
		name, path, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch {
		case name != "main" && !strings.Contains(path+"/", "/internal/"):
			program += fmt.Sprintf("import _ %q\n", path)
			get = append(get, path)
		case name == "main" && isCommand(path):
			if _, err := run("install", path+"@"+s.version); err != nil {
				return err
			}
		}
	}
	if len(get) > 1 {
		if _, err := run(get...); err != nil {
			return err
		}
		program += "\nfunc main() {}\n"
		if err := os.WriteFile(filepath.Join(folder, "main.go"), []byte(program), 0o644); err != nil {
			return err
		}
		if _, err := run("build"); err != nil {
			return err
		}
	}
	if _, err := run("get", "-t", m.path+"/...@"+s.version); err != nil {
		return err
	}
	_, err = run("vet", m.path+"/...")
	return err
}

// isCommand says that people install the program. Its module must have no replace directive: go install refuses those.
func isCommand(path string) bool {
	for _, folder := range []string{"/examples/", "/bench/", "/internal/"} {
		if strings.Contains(path, folder) {
			return false
		}
	}
	return true
}
