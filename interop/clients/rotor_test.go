package clients_test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestRotor has them done at rotor.
func TestRotor(t *testing.T) {
	t.Parallel()
	all(t, startRotor(t))
}

// startRotor builds rotor and starts a server for development as the README does, with an empty home.
func startRotor(t *testing.T) *server {
	t.Helper()
	dir := t.TempDir()
	rotor := filepath.Join(dir, "bin", "rotor")
	build := exec.Command("go", "build", "-o", rotor, "./cmd/rotor")
	build.Dir = tree(t, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build rotor: %v\n%s", err, out)
	}
	address := freeAddress(t)
	cmd := exec.Command(rotor, "dev", "--listen", address)
	cmd.Dir, cmd.Env = dir, []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}
	p := start(t, cmd)
	p.await(t, func(context.Context) bool { return strings.Contains(p.out.String(), "ROTOR_ADDRESS") })
	login := exec.Command(rotor, "login", "--vault", "-o", "json")
	login.Dir, login.Env = cmd.Dir, cmd.Env
	out, err := login.Output()
	if err != nil {
		t.Fatalf("log in: %v\n%s", err, out)
	}
	var v struct {
		Address string `json:"address"`
		CA      string `json:"ca_file"`
		Token   string `json:"token"`
	}
	if err := json.Unmarshal(out, &v); err != nil {
		t.Fatal(err)
	}
	s := &server{name: "rotor", address: v.Address, ca: v.CA, token: v.Token}
	s.ready(t, p)
	return s
}
