package store

import "fmt"

// Check enforces the bounds of a commit and that each key is written once. ErrTooLarge.
func Check(conds []Cond, ops []Op) error {
	if len(conds)+len(ops) > MaxItems || len(ops) == 0 {
		return fmt.Errorf("%w: %d conditions, %d operations", ErrTooLarge, len(conds), len(ops))
	}
	size := 0
	seen := make(map[string]bool, len(ops))
	for _, c := range conds {
		if c.Key == "" || len(c.Key) > MaxKeyBytes {
			return fmt.Errorf("%w: key of %d bytes", ErrTooLarge, len(c.Key))
		}
		size += len(c.Key)
	}
	for _, o := range ops {
		if o.Key == "" || len(o.Key) > MaxKeyBytes || seen[o.Key] {
			return fmt.Errorf("%w: key of %d bytes, or written twice", ErrTooLarge, len(o.Key))
		}
		seen[o.Key] = true
		size += len(o.Key) + len(o.Value)
	}
	if size > MaxBytes {
		return fmt.Errorf("%w: %d bytes", ErrTooLarge, size)
	}
	return nil
}
