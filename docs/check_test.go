package docs_test

import (
	"errors"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
)

// given is what a snippet without a package clause finds around it.
const given = `package page

import (
	"context"
	"fmt"

	"github.com/rotorkms/rotor"
)

var (
	ctx           context.Context
	client        *rotor.Client
	token         string
	id, plaintext []byte
)

func _() (err error) {
	_, _, _ = client, token, err
`

// checker type-checks snippets against the packages of the module and what they use.
type checker struct {
	mu       sync.Mutex // held while a snippet is checked: importers are not safe for concurrent use
	fset     *token.FileSet
	packages types.Importer
}

// newChecker asks the go command where the compiled packages are.
func newChecker(t *testing.T) *checker {
	t.Helper()
	cmd := exec.Command("go", "list", "-export", "-deps", "-f", "{{with .Export}}{{$.ImportPath}} {{.}}{{end}}", "./examples/worker", "./envelope")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	files := map[string]string{}
	for line := range strings.Lines(string(out)) {
		if path, file, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			files[path] = file
		}
	}
	fset := token.NewFileSet()
	return &checker{fset: fset, packages: importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) {
		if files[path] == "" {
			return nil, errors.New("pages use the module, and what it uses, alone")
		}
		return os.Open(files[path])
	})}
}

// snippet returns what is wrong with a piece of Go: a file, or statements. That a variable is not used is not wrong in statements.
func (c *checker) snippet(code string) (wrong []error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if strings.HasPrefix(code, "func ") {
		code = given[:strings.Index(given, "func _()")] + code
	} else if !strings.Contains(code, "package ") {
		code = given + code + "\nreturn err\n}\n"
	}
	file, err := parser.ParseFile(c.fset, "block.go", code, 0)
	if err != nil {
		return []error{err}
	}
	config := types.Config{Importer: c.packages, Error: func(err error) {
		var e types.Error
		if errors.As(err, &e) && !e.Soft {
			wrong = append(wrong, err)
		}
	}}
	_, _ = config.Check("page", c.fset, []*ast.File{file}, nil) // every error goes to config.Error
	return wrong
}
