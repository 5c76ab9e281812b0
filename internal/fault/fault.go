// Package fault is the one typed error that crosses rotor's wires: a code from a fixed list, the resource it is about and a
// hint what to do. Front ends translate codes to their protocol; anything that is not a fault is "internal" to the outside.
package fault

import (
	"errors"
	"fmt"
)

// Error is a fault. Cause is for logs of the process where it arose and never crosses a wire.
type Error struct {
	Code     Code
	Resource string // what it is about, for example "key records" or "version 3"; never secret
	Hint     string // what the caller can do; empty means the code's own hint
	Cause    error
}

// New makes a fault without a cause.
func New(code Code, resource string) *Error { return &Error{Code: code, Resource: resource} }

// Wrap makes a fault with a cause.
func Wrap(code Code, resource string, cause error) *Error {
	return &Error{Code: code, Resource: resource, Cause: cause}
}

// WithHint returns a copy with another hint.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}

// Error gives code, resource and what the code means.
func (e *Error) Error() string {
	s := string(e.Code)
	if e.Resource != "" {
		s += " (" + e.Resource + ")"
	}
	if t := Explain(e.Code); t.Meaning != "" {
		s += ": " + t.Meaning
	}
	if e.Cause != nil {
		s += ": " + e.Cause.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// Is matches another fault by its code alone, so that errors.Is(err, fault.New(fault.Denied, "")) works.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// HintText is the error's own hint or else its code's.
func (e *Error) HintText() string {
	if e.Hint != "" {
		return e.Hint
	}
	return Explain(e.Code).Hint
}

// CodeOf returns the code of the first fault in err's chain, Internal for any other error, and "" for nil.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	var f *Error
	if errors.As(err, &f) {
		return f.Code
	}
	return Internal
}
