package fault_test

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rotorkms/rotor/internal/fault"
)

// declared reads the codes that codes.go declares.
func declared(t *testing.T) []fault.Code {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "codes.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var all []fault.Code
	ast.Inspect(f, func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if id, ok := v.Type.(*ast.Ident); !ok || id.Name != "Code" {
			return true
		}
		for _, value := range v.Values {
			text, err := strconv.Unquote(value.(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, fault.Code(text))
		}
		return true
	})
	return all
}

// TestCodes: each declared code is unique, well-formed and has a text, and the table has no other.
func TestCodes(t *testing.T) {
	codes, table := declared(t), fault.Codes()
	if len(codes) < 40 || len(codes) != len(table) {
		t.Errorf("%d codes are declared, %d have a text", len(codes), len(table))
	}
	form, seen, meanings := regexp.MustCompile(`^[a-z][a-z_]*[a-z]$`), map[fault.Code]bool{}, map[string]fault.Code{}
	for _, c := range codes {
		text := fault.Explain(c)
		switch {
		case seen[c]:
			t.Errorf("%s is declared twice", c)
		case !form.MatchString(string(c)):
			t.Errorf("%q is not written like a code", c)
		case !slices.Contains(table, c) || text.Meaning == "" || text.Hint == "":
			t.Errorf("%s has no text", c)
		case !slices.Contains([]int{1, 2, 4, 5}, text.Exit):
			t.Errorf("%s ends with status %d", c, text.Exit)
		case meanings[text.Meaning] != "":
			t.Errorf("%s means the same as %s", c, meanings[text.Meaning])
		case strings.HasSuffix(text.Meaning, ".") || strings.Contains(text.Meaning+text.Hint, "\n"):
			t.Errorf("%s: not a line", c)
		}
		seen[c] = true
		meanings[text.Meaning] = c
	}
	if fault.Explain("no such code") != (fault.Text{}) {
		t.Error("an unknown code has a text")
	}
}

func TestError(t *testing.T) {
	f := fault.Wrap(fault.Denied, "key records", io.ErrUnexpectedEOF)
	if got := f.Error(); got != "denied (key records): no rule allows this: unexpected EOF" {
		t.Errorf("%q", got)
	}
	if got := fault.New("odd", "").Error(); got != "odd" {
		t.Errorf("%q", got)
	}
	if f.HintText() != fault.Explain(fault.Denied).Hint {
		t.Errorf("hint %q", f.HintText())
	}
	hinted := f.WithHint("ask %s", "Ada")
	if hinted.HintText() != "ask Ada" || f.Hint != "" || !errors.Is(hinted, io.ErrUnexpectedEOF) || hinted.Resource != f.Resource {
		t.Errorf("%+v from %+v", hinted, f)
	}
}

func TestIsAndCodeOf(t *testing.T) {
	inner := fault.Wrap(fault.NotFound, "version 3", io.EOF)
	outer := fault.Wrap(fault.Denied, "key k", fmt.Errorf("look up: %w", inner))
	for _, c := range []struct {
		err    error
		target error
		is     bool
	}{
		{outer, fault.New(fault.Denied, ""), true},
		{outer, fault.New(fault.NotFound, "another"), true},
		{outer, fault.New(fault.Conflict, "key k"), false},
		{outer, io.EOF, true},
		{fmt.Errorf("wrapped: %w", outer), fault.New(fault.Denied, ""), true},
		{errors.Join(io.ErrClosedPipe, inner), fault.New(fault.NotFound, ""), true},
		{io.EOF, fault.New(fault.Internal, ""), false},
		{inner, errors.New("not_found"), false},
	} {
		if errors.Is(c.err, c.target) != c.is {
			t.Errorf("errors.Is(%v, %v) = %t", c.err, c.target, !c.is)
		}
	}
	for _, c := range []struct {
		err  error
		code fault.Code
	}{
		{nil, ""}, {io.EOF, fault.Internal}, {inner, fault.NotFound}, {outer, fault.Denied}, {fmt.Errorf("w: %w", inner), fault.NotFound},
		{errors.Join(io.EOF, inner), fault.NotFound},
	} {
		if got := fault.CodeOf(c.err); got != c.code {
			t.Errorf("CodeOf(%v) = %q", c.err, got)
		}
	}
}
