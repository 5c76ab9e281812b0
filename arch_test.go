package rotor_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/rotorkms/rotor"

// floors is the house (docs/decisions/0001): a package imports lower floors only, never a neighbour. Tests are exempt. "*" stands for
// one path element. The first pattern that matches counts.
var floors = []struct {
	floor int
	rooms []string
}{
	{0, []string{"internal/secret", "internal/fault", "internal/lenient", "internal/testenv", "proto/rotor/v1"}},
	{1, []string{"internal/suite", "internal/store", "internal/seal", "internal/policy", "internal/rpc", "internal/sandbox", "internal/hsm", "internal/pack"}},
	{2, []string{"envelope", "internal/keyring", "internal/token", "internal/identity", "internal/audit", "internal/replica", "internal/store/*", "internal/seal/*", "internal/telemetry", "internal/doctor", "internal/custody", "internal/transit"}},
	{3, []string{"internal/rotation", "internal/holder", "internal/guard", "internal/delivery", "internal/oidc", "internal/keybackup", "internal/movein"}},
	{4, []string{"internal/kms", "internal/backup", "internal/sealing", "internal/fleet", "internal/authn", "internal/mounts", "."}},
	{5, []string{"internal/campaign", "internal/issuer", "internal/recovery", "internal/acl"}},
	{6, []string{"internal/rollout", "internal/wire"}},
	{7, []string{"internal/wire/*"}},
	{8, []string{"internal/server"}},
	{9, []string{"internal/cli", "examples/fleet/board"}},
	{10, []string{"cmd/rotor", "examples/*", "python/interop", "internal/server/testdata/member"}},
}

func floorOf(room string) (int, bool) {
	for _, f := range floors {
		for _, pattern := range f.rooms {
			if ok, _ := filepath.Match(pattern, room); ok {
				return f.floor, true
			}
		}
	}
	return 0, false
}

// sources parses every Go file that is not a test, by room.
func sources(t *testing.T) map[string][]*ast.File {
	t.Helper()
	rooms := map[string][]*ast.File{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if _, err := os.Stat(filepath.Join(path, "go.mod")); path != "." && (err == nil || strings.HasPrefix(d.Name(), ".")) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		room := filepath.ToSlash(filepath.Dir(path))
		rooms[room] = append(rooms[room], f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return rooms
}

func imports(files []*ast.File) []string {
	seen := map[string]bool{}
	for _, f := range files {
		for _, i := range f.Imports {
			path, _ := strconv.Unquote(i.Path.Value) // the parser has checked it
			seen[path] = true
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

func TestFloors(t *testing.T) {
	rooms := sources(t)
	if len(rooms) < 20 {
		t.Fatalf("only %d rooms were found", len(rooms))
	}
	for room, files := range rooms {
		floor, ok := floorOf(room)
		if !ok {
			t.Errorf("%s stands on no floor: add it to the table, with a decision record", room)
			continue
		}
		for _, path := range imports(files) {
			rest, own := strings.CutPrefix(path, module)
			if !own {
				continue
			}
			below, ok := floorOf(strings.TrimPrefix(rest, "/") + dotIfEmpty(rest))
			if !ok || below >= floor {
				t.Errorf("%s (floor %d) imports %s (floor %d)", room, floor, path, below)
			}
		}
	}
}

func dotIfEmpty(rest string) string {
	if rest == "" {
		return "."
	}
	return ""
}

// forbidden are imports that a room must not have, whatever the floors say: packages, and what lies below them after "/*".
var forbidden = map[string][]string{
	"internal/wire/*":  {module + "/internal/store", module + "/internal/store/*", module + "/internal/seal", module + "/internal/seal/*"},
	"internal/kms":     {module + "/internal/store/*"},
	"internal/store/*": {module + "/internal/keyring", module + "/internal/secret"},
	"examples/*":       {module + "/internal/server", module + "/internal/kms", module + "/internal/guard", module + "/internal/fault"},
}

func TestForbiddenImports(t *testing.T) {
	for room, files := range sources(t) {
		for pattern, bad := range forbidden {
			if ok, _ := filepath.Match(pattern, room); !ok {
				continue
			}
			for _, path := range imports(files) {
				if slices.ContainsFunc(bad, func(pattern string) bool { ok, _ := filepath.Match(pattern, path); return ok }) {
					t.Errorf("%s imports %s", room, path)
				}
			}
		}
	}
}

// TestExamplesUseThePublicPackages keeps examples on what users have: no internal package at all.
func TestExamplesUseThePublicPackages(t *testing.T) {
	for room, files := range sources(t) {
		if !strings.HasPrefix(room, "examples/") {
			continue
		}
		for _, path := range imports(files) {
			if strings.HasPrefix(path, module+"/internal/") {
				t.Errorf("%s imports %s", room, path)
			}
		}
	}
}

// revealers are the rooms that may look at secret bytes: cryptography, sealed storage, and the encoders of answers.
var revealers = []string{
	"internal/suite", "internal/guard", "internal/keybackup", "internal/audit", "internal/seal/local", "internal/seal/shamir", "internal/seal/every", "internal/seal/transit", "internal/hsm", "internal/custody", "internal/delivery", "internal/authn", "internal/transit", "internal/movein", "internal/acl",
	"internal/issuer", "envelope", "internal/wire/native", "internal/wire/vault", ".",
}

func TestRevealers(t *testing.T) {
	for room, files := range sources(t) {
		if room == "internal/secret" || slices.Contains(revealers, room) {
			continue
		}
		for _, f := range files {
			ast.Inspect(f, func(n ast.Node) bool {
				if s, ok := n.(*ast.SelectorExpr); ok && s.Sel.Name == "Reveal" {
					t.Errorf("%s calls Reveal", room)
				}
				return true
			})
		}
	}
}

func TestEveryPackageHasOneComment(t *testing.T) {
	for room, files := range sources(t) {
		n := 0
		for _, f := range files {
			if f.Doc != nil && !strings.HasPrefix(f.Doc.Text(), "Code generated") {
				n++
			}
		}
		if n != 1 && !strings.HasPrefix(room, "proto/") {
			t.Errorf("%s has %d package comments", room, n)
		}
	}
}

func TestNoInitNoRegistries(t *testing.T) {
	for room, files := range sources(t) {
		if strings.HasPrefix(room, "proto/") {
			continue // generated
		}
		for _, f := range files {
			for _, d := range f.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
					t.Errorf("%s has an init function", room)
				}
			}
		}
	}
}
