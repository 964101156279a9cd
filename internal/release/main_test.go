package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// tree makes a tree of a library and a command that uses it, of which every file may be replaced.
func tree(t *testing.T, replaced map[string]string) string {
	root := t.TempDir()
	require.NoError(t, exec.Command("git", "init", "--quiet", root).Run())
	files := map[string]string{
		"go.mod":              "module example.com/tree\n\ngo 1.25.0\n",
		"tree.go":             "package tree\n",
		"tree_test.go":        "package tree\n\nvar Tested = 1\n",
		"cmd/command/go.mod":  "module example.com/tree/cmd/command\n\ngo 1.25.0\n\nrequire example.com/tree v0.1.0\n",
		"cmd/command/main.go": "package main\n\nimport _ \"example.com/tree\"\n\nfunc main() {}\n",
	}
	for name, content := range replaced {
		files[name] = content
	}
	for name, content := range files {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(root, name), []byte(content), 0o644))
	}
	return root
}

func TestATreeThatStrangersCanUse(t *testing.T) {
	require.NoError(t, check(tree(t, nil), "v0.1.0"))
}

func TestWhatStrangersCannotUseIsRefused(t *testing.T) {
	command := "module example.com/tree/cmd/command\n\ngo 1.25.0\n\n"
	for name, tc := range map[string]struct{ file, content, err string }{
		"a version that is not to be tagged": {
			"cmd/command/go.mod", command + "require example.com/tree v0.0.0\n",
			"example.com/tree/cmd/command requires example.com/tree@v0.0.0, but v0.1.0 is to be tagged",
		},
		"a command with a replace directive": {
			"cmd/command/go.mod", command + "require example.com/tree v0.1.0\n\nreplace example.com/tree => ../..\n",
			"more replace directives",
		},
		"a module whose path is not its folder's": {
			"cmd/command/go.mod", "module example.com/tree/command\n\ngo 1.25.0\n\nrequire example.com/tree v0.1.0\n",
			"module declares its path as: example.com/tree/command",
		},
		"a file that is missing from the module": {"testdata/other/go.mod", "module other\n", "files would be missing"},
		"a test that does not compile":           {"tree_test.go", "package tree\n\nvar Tested = missing\n", "undefined: missing"},
	} {
		t.Run(name, func(t *testing.T) {
			require.ErrorContains(t, check(tree(t, map[string]string{tc.file: tc.content}), "v0.1.0"), tc.err)
		})
	}
}
