package server_test

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/server"
)

func TestReadFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "rotor.yaml")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("dir: data\nlisten: 127.0.0.1:1\nhosts: [a, b]\nrules: /etc/rules.yaml\nlease_ttl: 3s\n")
	got, err := server.ReadFile(path)
	want := server.Config{Dir: filepath.Join(dir, "data"), Listen: "127.0.0.1:1", Hosts: []string{"a", "b"}, Rules: "/etc/rules.yaml", LeaseTTL: 3 * time.Second, File: path}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(server.Config{}, "Log", "Now", "Source"), cmpopts.IgnoreUnexported(server.Config{})); err != nil || diff != "" {
		t.Fatalf("%v\n%s", err, diff)
	}
	for _, bad := range []string{"dri: x\n", "dir: [\n", "dir: a\n---\ndir: b\n", "lease_ttl: soon\n", "hosts: {a: b}\n", "- dir\n"} {
		write(bad)
		if _, err := server.ReadFile(path); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := server.ReadFile(filepath.Join(dir, "none")); fault.CodeOf(err) != fault.NotFound {
		t.Error(err)
	}
}

// TestConfigurationPage: every key of the file is in the reference, and nothing else.
func TestConfigurationPage(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/reference/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_.]+)` \\|").FindAllSubmatch(page, -1) {
		told = append(told, string(m[1]))
	}
	keys := yamlKeys(reflect.TypeFor[server.Config](), "")
	slices.Sort(told)
	slices.Sort(keys)
	if diff := cmp.Diff(keys, told); diff != "" {
		t.Errorf("keys of the file (-) and of the page (+):\n%s", diff)
	}
}

// yamlKeys lists the keys of a configuration; those of a section, or of the entries of a list, with its name before them.
func yamlKeys(t reflect.Type, prefix string) []string {
	var out []string
	for f := range t.Fields() {
		name := f.Tag.Get("yaml")
		if name == "-" {
			continue
		}
		inner := f.Type
		for inner.Kind() == reflect.Slice || inner.Kind() == reflect.Pointer {
			inner = inner.Elem()
		}
		if inner.Kind() == reflect.Struct {
			out = append(out, yamlKeys(inner, prefix+name+".")...)
			continue
		}
		out = append(out, prefix+name)
	}
	return out
}

func FuzzParseFile(f *testing.F) {
	f.Add([]byte("dir: x\nlisten: 127.0.0.1:1\n"))
	f.Add([]byte("hosts: [a]\nlease_ttl: 1s\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := server.ParseFile("f", data)
		if err != nil && !reflect.DeepEqual(c, server.Config{}) {
			t.Errorf("refused with something in it: %+v", c)
		}
	})
}
