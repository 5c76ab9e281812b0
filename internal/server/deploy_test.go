package server_test

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// TestDashboardAndAlertsAreOfThisServer: every metric that the dashboard and the alert rules ask for is shown by a running server.
func TestDashboardAndAlertsAreOfThisServer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	body := busy(t, w)
	var exprs []string
	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert       string            `yaml:"alert"`
				Expr        string            `yaml:"expr"`
				For         string            `yaml:"for"`
				Labels      map[string]string `yaml:"labels"`
				Annotations map[string]string `yaml:"annotations"`
			} `yaml:"rules"`
			Name string `yaml:"name"`
		} `yaml:"groups"`
	}
	b, err := os.ReadFile("../../deploy/prometheus/rotor.rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	d := yaml.NewDecoder(strings.NewReader(string(b)))
	d.KnownFields(true)
	if err := d.Decode(&rules); err != nil {
		t.Fatal(err)
	}
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			if r.Alert == "" || r.Expr == "" || r.Annotations["summary"] == "" || r.Labels["severity"] != "page" && r.Labels["severity"] != "ticket" {
				t.Errorf("%+v", r)
			}
			exprs = append(exprs, r.Expr)
		}
	}
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if b, err = os.ReadFile("../../deploy/grafana/rotor.json"); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &board); err != nil {
		t.Fatal(err)
	}
	for _, p := range board.Panels {
		if p.Title == "" || len(p.Targets) == 0 {
			t.Errorf("%+v", p)
		}
		for _, q := range p.Targets {
			exprs = append(exprs, q.Expr)
		}
	}
	if len(exprs) < 30 {
		t.Fatalf("only %d expressions", len(exprs))
	}
	for _, e := range exprs {
		names := regexp.MustCompile(`rotor_[a-z_]+`).FindAllString(e, -1)
		if len(names) == 0 {
			t.Errorf("%s asks for nothing", e)
		}
		for _, name := range names {
			if !regexp.MustCompile(`(?m)^`+name+`[{ ]`).MatchString(body) && !slices.Contains(unwell(), name) {
				t.Errorf("%s: no %s", e, name)
			}
		}
	}
}
