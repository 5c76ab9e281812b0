//go:build services

// Package deploy_test has the machine's own tools look at what is deployed. Like all tests with the tag services it fails where they are missing.
package deploy_test

import (
	"os/exec"
	"testing"
)

// TestUnit: systemd finds little that the unit leaves open. The threshold is 2.0 of 10.
func TestUnit(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "systemd-analyze", "security", "--offline=true", "--threshold=20", "systemd/rotor.service").CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestAlerts: Prometheus takes the alert rules.
func TestAlerts(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "promtool", "check", "rules", "prometheus/rotor.rules.yaml").CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
