package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hashicorp/hcl"
	"github.com/hashicorp/hcl/hcl/ast"
	"github.com/hashicorp/hcl/hcl/scanner"
	hclstrconv "github.com/hashicorp/hcl/hcl/strconv"
	"github.com/hashicorp/hcl/hcl/token"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/lenient"
)

// Bounds of a policy about paths.
const (
	MaxPolicy  = 128 << 10 // bytes of its text
	maxStanzas = 1000
	maxPath    = 512 // bytes
	maxDepth   = 8   // of brackets in brackets
)

// ParsePathPolicy reads a policy in HCL 1 or JSON, as clients of Vault write it. What would be enforced there and is not here is refused: templates in
// paths, control groups, methods of a second factor. fault.Invalid, TooLarge.
func ParsePathPolicy(name, text string) (PathPolicy, error) {
	if len(text) > MaxPolicy {
		return PathPolicy{}, fault.New(fault.TooLarge, "policy").WithHint("at most %d bytes", MaxPolicy)
	}
	out := PathPolicy{Name: name}
	root, err := parseHCL(text)
	if err == nil {
		out.Stanzas, err = stanzas(root)
	}
	if err != nil {
		return PathPolicy{}, fault.New(fault.Invalid, "policy").WithHint("failed to parse policy: %s", err.Error())
	}
	return out, nil
}

// parseHCL makes a tree of a text that is no deeper than a policy can be.
func parseHCL(text string) (root *ast.ObjectList, err error) {
	if !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
		return nil, errors.New("it is no UTF-8 text")
	}
	if err := shallow(text); err != nil {
		return nil, err
	}
	defer func() { // the library panics at some texts that it takes for literals
		if recover() != nil {
			root, err = nil, errors.New("it is no HCL")
		}
	}()
	f, err := hcl.Parse(text)
	if err != nil {
		return nil, err
	}
	root, ok := f.Node.(*ast.ObjectList)
	if !ok {
		return nil, errors.New("does not contain a root object")
	}
	return root, nil
}

// shallow refuses brackets in brackets beyond a bound, before the parser, which is recursive, sees them.
func shallow(text string) error {
	depth := 0
	step := func(d int) error {
		if depth += d; depth > maxDepth {
			return fmt.Errorf("more than %d brackets in brackets", maxDepth)
		}
		return nil
	}
	if strings.HasPrefix(strings.TrimSpace(text), "{") {
		d := json.NewDecoder(strings.NewReader(text))
		for {
			t, err := d.Token()
			if errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
			if b, ok := t.(json.Delim); ok {
				if err := step(map[bool]int{true: 1, false: -1}[b == '{' || b == '[']); err != nil {
					return err
				}
			}
		}
	}
	s := scanner.New(bytes.ReplaceAll([]byte(text), []byte("\r\n"), []byte("\n")))
	var failed error
	s.Error = func(pos token.Pos, msg string) { failed = fmt.Errorf("At %d:%d: %s", pos.Line, pos.Column, msg) } //nolint:staticcheck // in Vault's words
	for failed == nil {
		d := 0
		switch s.Scan().Type {
		case token.EOF:
			return failed
		case token.HEREDOC:
			return errors.New("a text of several lines has no place in a policy")
		case token.LBRACE, token.LBRACK:
			d = 1
		case token.RBRACE, token.RBRACK:
			d = -1
		}
		if err := step(d); err != nil {
			return err
		}
	}
	return failed
}

// field is one name of an object, with what it is set to.
type field struct {
	name string
	line int
	item *ast.ObjectItem // without that name
}

// fields splits the items of an object by their first name.
func fields(list *ast.ObjectList) ([]field, error) {
	var out []field
	for _, i := range list.Items {
		if len(i.Keys) == 0 {
			return nil, errors.New("a value without a name")
		}
		name, err := literal(i.Keys[0].Token)
		if err != nil {
			return nil, err
		}
		text, ok := name.(string)
		if !ok {
			return nil, fmt.Errorf("line %d: a name is no number", i.Pos().Line)
		}
		rest := *i
		rest.Keys = i.Keys[1:]
		out = append(out, field{text, i.Pos().Line, &rest})
	}
	return out, nil
}

// object is what a field is set to, if that is an object. An item with more names is one whose only field has them.
func (f field) object() (*ast.ObjectList, bool) {
	if len(f.item.Keys) > 0 {
		return &ast.ObjectList{Items: []*ast.ObjectItem{f.item}}, true
	}
	o, ok := f.item.Val.(*ast.ObjectType)
	if !ok {
		return nil, false
	}
	return o.List, true
}

// literal is the value of a token that stands for one.
func literal(t token.Token) (any, error) {
	switch t.Type {
	case token.IDENT:
		return t.Text, nil
	case token.BOOL:
		return t.Text == "true", nil
	case token.NUMBER:
		n, err := strconv.ParseInt(t.Text, 0, 64)
		if err != nil {
			return nil, fmt.Errorf("line %d: %s is no number", t.Pos.Line, t.Text)
		}
		return n, nil
	case token.FLOAT:
		n, err := strconv.ParseFloat(t.Text, 64)
		if err != nil {
			return nil, fmt.Errorf("line %d: %s is no number", t.Pos.Line, t.Text)
		}
		return n, nil
	case token.STRING:
		unquote := hclstrconv.Unquote
		if t.JSON {
			unquote = strconv.Unquote
		}
		if t.Text == "" { // null in JSON
			return "", nil
		}
		s, err := unquote(t.Text)
		if err != nil {
			return nil, fmt.Errorf("line %d: a text that does not end well", t.Pos.Line)
		}
		return s, nil
	}
	return nil, fmt.Errorf("line %d: %s has no place here", t.Pos.Line, t.Type)
}

// value is a literal, or a list of values.
func value(n ast.Node) (any, error) {
	switch n := n.(type) {
	case *ast.LiteralType:
		return literal(n.Token)
	case *ast.ListType:
		return list(n)
	}
	return nil, fmt.Errorf("line %d: a value or a list is needed", n.Pos().Line)
}

func list(n *ast.ListType) ([]any, error) {
	out := []any{}
	for _, e := range n.List {
		v, err := value(e)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// values are what a field is set to: the elements of a list, or the one value.
func (f field) values() ([]any, error) {
	if len(f.item.Keys) > 0 {
		return nil, fmt.Errorf("line %d: %s is no object", f.line, f.name)
	}
	if l, ok := f.item.Val.(*ast.ListType); ok {
		return list(l)
	}
	v, err := value(f.item.Val)
	return []any{v}, err
}

func (f field) texts() ([]string, error) {
	all, err := f.values()
	if err != nil {
		return nil, err
	}
	out := make([]string, 0, len(all))
	for _, v := range all {
		s, ok := v.(string)
		if !ok {
			return nil, fmt.Errorf("line %d: %s is a list of texts", f.line, f.name)
		}
		out = append(out, s)
	}
	return out, nil
}

// stanzas reads the paths of a policy.
func stanzas(root *ast.ObjectList) ([]Stanza, error) {
	top, err := fields(root)
	if err != nil {
		return nil, err
	}
	var out []Stanza
	for _, f := range top {
		switch f.name {
		case "name":
			continue
		case "path":
		default:
			return nil, fmt.Errorf("invalid key %q on line %d", f.name, f.line)
		}
		o, ok := f.object()
		if !ok {
			return nil, fmt.Errorf("line %d: path needs a name and braces", f.line)
		}
		paths, err := fields(o)
		if err != nil {
			return nil, err
		}
		for _, p := range paths {
			s, err := stanza(p)
			if err != nil {
				return nil, fmt.Errorf("path %q: %w", p.name, err)
			}
			out = append(out, s)
		}
		if len(out) > maxStanzas {
			return nil, fmt.Errorf("at most %d paths", maxStanzas)
		}
	}
	return out, nil
}

// stanza reads one path.
func stanza(p field) (Stanza, error) {
	s := Stanza{Path: strings.TrimPrefix(p.name, "/")}
	switch {
	case len(s.Path) > maxPath:
		return s, fmt.Errorf("at most %d bytes", maxPath)
	case strings.Contains(s.Path, "{{") || strings.Contains(s.Path, "}}"):
		return s, errors.New("templates such as {{identity.entity.id}} are not supported: write the path of each caller")
	case strings.Contains(s.Path, "+*"):
		return s, errors.New("invalid use of wildcards ('+*' is forbidden)")
	}
	o, ok := p.object()
	if !ok {
		return s, errors.New("it needs braces")
	}
	all, err := fields(o)
	if err != nil {
		return s, err
	}
	seen := map[string]bool{}
	for _, f := range all {
		if seen[f.name] {
			return s, fmt.Errorf("%s stands twice", f.name)
		}
		seen[f.name] = true
		if err := s.set(f); err != nil {
			return s, err
		}
	}
	if s.MinWrap > 0 && s.MaxWrap > 0 && s.MaxWrap < s.MinWrap {
		return s, errors.New("max_wrapping_ttl cannot be less than min_wrapping_ttl")
	}
	return s, nil
}

// set takes one field of a stanza.
func (s *Stanza) set(f field) (err error) {
	switch f.name {
	case "comment":
	case "policy", "capabilities":
		var names []string
		if names, err = f.texts(); err != nil {
			return err
		}
		if f.name == "policy" {
			names, err = oldPolicy(names)
		}
		if err == nil {
			err = s.capabilities(names)
		}
	case "allowed_parameters":
		s.Allowed, err = f.parameters()
	case "denied_parameters":
		s.Denied, err = f.parameters()
	case "required_parameters":
		s.Required, err = f.texts()
	case "min_wrapping_ttl":
		s.MinWrap, err = f.duration()
	case "max_wrapping_ttl":
		s.MaxWrap, err = f.duration()
	case "mfa_methods", "control_group", "expiration":
		return fmt.Errorf("%s is not supported, and leaving it out would allow more than it says", f.name)
	default:
		return fmt.Errorf("invalid key %q on line %d", f.name, f.line)
	}
	return err
}

// oldPolicy is what was written before there were capabilities.
func oldPolicy(names []string) ([]string, error) {
	sets := map[string]string{
		"deny": "deny", "read": "read list", "write": "create read update delete list", "sudo": "create read update delete list sudo",
	}
	if len(names) != 1 || sets[names[0]] == "" {
		return nil, errors.New("invalid policy: deny, read, write or sudo")
	}
	return strings.Fields(sets[names[0]]), nil
}

// unused are capabilities that others know and no request here needs.
var unused = []string{"subscribe", "recover", "scan"}

func (s *Stanza) capabilities(names []string) error {
	for _, name := range names {
		switch c := Operation(name); {
		case slices.Contains(Capabilities(), c):
			if !slices.Contains(s.Capabilities, c) {
				s.Capabilities = append(s.Capabilities, c)
			}
		case !slices.Contains(unused, name):
			return fmt.Errorf("invalid capability %q", name)
		}
	}
	return nil
}

// parameters are values by the names of parameters, which count in whatever letters.
func (f field) parameters() (map[string][]any, error) {
	o, ok := f.object()
	if !ok {
		return nil, fmt.Errorf("line %d: %s has names and lists of values", f.line, f.name)
	}
	all, err := fields(o)
	if err != nil {
		return nil, err
	}
	out := map[string][]any{}
	for _, p := range all {
		name := foldName(p.name)
		if _, there := out[name]; there {
			return nil, fmt.Errorf("line %d: %s stands twice", p.line, p.name)
		}
		if out[name], err = p.values(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (f field) duration() (time.Duration, error) {
	all, err := f.values()
	if err != nil || len(all) != 1 {
		return 0, errors.Join(err, fmt.Errorf("line %d: %s is a time", f.line, f.name))
	}
	text, _ := scalar(all[0])
	d, err := lenient.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("error parsing %s: %w", f.name, err)
	}
	return d, nil
}
