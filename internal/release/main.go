// Command release checks that strangers will be able to use every module of this tree once it is tagged. It fills a module
// proxy with all of them, at the version that is to be tagged, and uses each from an empty module, with an empty module
// cache. Modules of others come from this machine's module cache, or from GOPROXY if they are not in it.
package main

import (
	"flag"
	"fmt"
	"log"
	"os"
	"path/filepath"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("release-check: ")
	root := flag.String("root", ".", "the folder of the root module")
	version := flag.String("version", "", "the version that is to be tagged, such as v0.1.0")
	flag.Parse()
	if err := check(*root, *version); err != nil {
		log.Fatal(err)
	}
}

func check(root, version string) error {
	modules, err := findModules(root, version)
	if err != nil {
		return err
	}
	scratch, err := os.MkdirTemp("", "dbmutex-release-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(scratch) }()
	proxy := filepath.Join(scratch, "proxy")
	for _, m := range modules {
		if err := m.publish(proxy, version); err != nil {
			return fmt.Errorf("%s: %w", m.path, err)
		}
	}
	s, err := newStranger(scratch, proxy, version)
	if err != nil {
		return err
	}
	for _, m := range modules {
		if err := s.use(m); err != nil {
			return fmt.Errorf("%s@%s: %w", m.path, version, err)
		}
		fmt.Printf("ok  \t%s@%s\n", m.path, version)
	}
	return nil
}
