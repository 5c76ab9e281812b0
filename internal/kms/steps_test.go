package kms_test

import (
	"time"

	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/rotation"
)

// The steps of rollout, for keys that nobody holds.

var distribute = rotation.Distribute

func promote(k keyring.Key, now time.Time) (keyring.Key, error) {
	return rotation.Promote(k, nil, now, rotation.Emergency(k))
}

func settle(k keyring.Key, now time.Time) (keyring.Key, error) {
	next, _ := rotation.Settle(k, now)
	return next, nil
}
