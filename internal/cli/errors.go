package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/rotorkms/rotor/internal/fault"
)

// usage makes an error of how the command was called.
func usage(resource, hint string, args ...any) error {
	return fault.New(fault.Invalid, resource).WithHint("%s", fmt.Sprintf(hint, args...))
}

// usageOf turns what the argument parser says into a usage error.
func usageOf(c *cobra.Command, err error) error {
	var f *fault.Error
	if errors.As(err, &f) {
		return f
	}
	said := strings.Join(strings.Fields(strings.ReplaceAll(err.Error(), "\"", "")), " ") // the parser's suggestions stand on lines of their own
	if c.HasParent() {
		said += "; it is: " + c.UseLine()
	}
	return usage("command line", "%s; --help tells more", said)
}

// report prints an error and returns the exit status that it stands for.
func report(w io.Writer, err error) int {
	f := faultOf(err)
	what := fault.Explain(f.Code).Meaning
	if f.Resource != "" {
		what = f.Resource + ": " + what
	}
	if f.Cause != nil {
		what += ": " + f.Cause.Error()
	}
	fmt.Fprintf(w, "error: %s\nhint: %s\ncode: %s (rotor explain %s)\n", printable(what), printable(f.HintText()), f.Code, f.Code)
	return max(fault.Explain(f.Code).Exit, 1)
}

// faultOf finds the fault in an error, or makes one of what the operating system said.
func faultOf(err error) *fault.Error {
	var f *fault.Error
	if errors.As(err, &f) {
		return f
	}
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fault.New(fault.Canceled, "")
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fault.Wrap(fault.DiskFull, "", err)
	case errors.Is(err, fs.ErrNotExist):
		return fault.Wrap(fault.NotFound, "", err).WithHint("check the path")
	case errors.Is(err, fs.ErrExist):
		return fault.Wrap(fault.Exists, "", err)
	case errors.Is(err, fs.ErrPermission):
		return fault.Wrap(fault.Denied, "", err).WithHint("check owner and mode of the file")
	}
	return fault.Wrap(fault.Internal, "", err).WithHint("this happened in the command itself, not in the server")
}
