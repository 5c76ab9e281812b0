//go:build slow

package bolt_test

import "testing"

func TestCrashRounds(t *testing.T) { crash(t, 300) }

func TestDamageEverywhere(t *testing.T) { damage(t, 1) }
