package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
	"golang.org/x/mod/zip"
)

// aModule is one module of the tree.
type aModule struct {
	path  string
	goMod []byte
	files []zip.File
}

// file is a file of a module, as its zip knows it.
type file struct{ name, path string }

// Path is the file's name in the module.
func (f file) Path() string { return f.name }

// Lstat describes the file on the disk.
func (f file) Lstat() (os.FileInfo, error) { return os.Lstat(f.path) }

// Open opens the file on the disk.
func (f file) Open() (io.ReadCloser, error) { return os.Open(f.path) }

// findModules returns the modules of the tree with the files that a commit of everything would have. It refuses a
// module that requires another of the tree at a version other than the one that is to be tagged: the replace directive that
// helps in the clone is ignored when the module is a dependency.
func findModules(root, version string) ([]*aModule, error) {
	names, err := committed(root)
	if err != nil {
		return nil, err
	}
	goMod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		return nil, err
	}
	rootPath := modfile.ModulePath(goMod)
	inFolder := map[string]*aModule{}
	requires := map[string][]*modfile.Require{}
	for _, name := range names {
		folder, base := path.Split(name)
		if base != "go.mod" || slices.Contains(strings.Split(name, "/"), "testdata") {
			continue
		}
		goMod, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			return nil, err
		}
		parsed, err := modfile.Parse(name, goMod, nil)
		if err != nil {
			return nil, err
		}
		m := &aModule{path: path.Join(rootPath, folder), goMod: goMod} // as a tag's folder says, whatever go.mod does
		inFolder[folder] = m
		requires[m.path] = parsed.Require
	}
	for _, name := range names {
		folder, _ := path.Split(name)
		for inFolder[folder] == nil {
			folder, _ = path.Split(strings.TrimSuffix(folder, "/"))
		}
		m := inFolder[folder]
		m.files = append(m.files, file{strings.TrimPrefix(name, folder), filepath.Join(root, name)})
	}

	modules := slices.SortedFunc(maps.Values(inFolder), func(a, b *aModule) int { return strings.Compare(a.path, b.path) })
	var errs []error
	for _, m := range modules {
		for _, required := range requires[m.path] {
			if _, ours := requires[required.Mod.Path]; ours && required.Mod.Version != version {
				errs = append(errs, fmt.Errorf("%s requires %s, but %s is to be tagged", m.path, required.Mod, version))
			}
		}
	}
	return modules, errors.Join(errs...)
}

// committed lists the files that a commit of everything would have.
func committed(root string) ([]string, error) {
	git := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate")
	git.Dir, git.Stderr = root, os.Stderr
	out, err := git.Output()
	if err != nil {
		return nil, fmt.Errorf("git ls-files: %w", err)
	}
	names := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
	return slices.DeleteFunc(names, func(name string) bool {
		_, err := os.Lstat(filepath.Join(root, name))
		return errors.Is(err, os.ErrNotExist)
	}), nil
}

// publish writes the module into the folder of a proxy, laid out as https://go.dev/ref/mod#goproxy-protocol says. It refuses
// a module whose zip would lack some of its files.
func (m *aModule) publish(proxy, version string) error {
	checked, err := zip.CheckFiles(m.files)
	if err != nil {
		return err
	}
	if len(checked.Omitted) > 0 {
		return fmt.Errorf("files would be missing from the module: %v", checked.Omitted)
	}
	escaped, err := module.EscapePath(m.path)
	if err != nil {
		return err
	}
	versions := filepath.Join(proxy, escaped, "@v")
	if err := os.MkdirAll(versions, 0o755); err != nil {
		return err
	}
	info, err := json.Marshal(map[string]string{"Version": version})
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		"list": []byte(version + "\n"), version + ".info": info, version + ".mod": m.goMod,
	} {
		if err := os.WriteFile(filepath.Join(versions, name), content, 0o644); err != nil {
			return err
		}
	}
	archive, err := os.Create(filepath.Join(versions, version+".zip"))
	if err != nil {
		return err
	}
	return errors.Join(zip.Create(archive, module.Version{Path: m.path, Version: version}, m.files), archive.Close())
}
