package server

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/rotorkms/rotor/internal/fault"
)

// maxFile bounds a configuration file, in bytes.
const maxFile = 1 << 20

// ReadFile reads a configuration file: YAML with the keys of Config, nothing else. Paths in it are relative to the file.
// fault.NotFound, Invalid, TooLarge.
func ReadFile(path string) (Config, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Config{}, fault.New(fault.NotFound, "configuration "+path).WithHint("check the path of --config")
	}
	if err != nil {
		return Config{}, fmt.Errorf("open configuration: %w", err)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return Config{}, fmt.Errorf("read configuration: %w", err)
	}
	c, err := ParseFile(path, data)
	if err != nil {
		return Config{}, err
	}
	for _, p := range c.paths() {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(filepath.Dir(path), *p)
		}
	}
	for i, p := range c.SandboxPaths {
		if !filepath.IsAbs(p) {
			c.SandboxPaths[i] = filepath.Join(filepath.Dir(path), p)
		}
	}
	c.File = path
	return c, nil
}

// ParseFile parses what ReadFile reads; name is what errors call it.
func ParseFile(name string, data []byte) (Config, error) {
	var c Config
	if len(data) > maxFile {
		return c, fault.New(fault.TooLarge, name).WithHint("at most %d bytes", maxFile)
	}
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.KnownFields(true)
	if err := d.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return Config{}, fault.New(fault.Invalid, name).WithHint("%s", strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return Config{}, fault.New(fault.Invalid, name).WithHint("one document")
	}
	return c, nil
}
