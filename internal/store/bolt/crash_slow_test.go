//go:build slow

package bolt_test

import "testing"

func TestCrashRounds(t *testing.T) { crash(t, 1000) }

func TestDamageEverywhere(t *testing.T) { damage(t, 1) }
