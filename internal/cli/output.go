package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
	"golang.org/x/term"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// table is what people and line-based scripts see of a result. The header is printed on terminals alone.
type table struct {
	header []string
	rows   [][]string
}

// add appends a row.
func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

func (a *app) checkFormat() error {
	switch a.format {
	case "", "table", "json", "yaml":
		return nil
	}
	return usage("--output", "table, json or yaml")
}

// show prints a result: value for programs, tables for everybody else.
func (a *app) show(value any, tables ...table) error {
	switch a.format {
	case "json":
		return printJSON(a.out, value)
	case "yaml":
		return printYAML(a.out, value)
	case "":
		if !terminal(a.out) {
			return printLines(a.out, tables)
		}
	}
	return printTables(a.out, tables)
}

func printJSON(w io.Writer, value any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(value); err != nil {
		return fmt.Errorf("print JSON: %w", err)
	}
	return nil
}

// printYAML prints the JSON form as YAML, so that fields have one name and one order.
func printYAML(w io.Writer, value any) error {
	b, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("print YAML: %w", err)
	}
	var n yaml.Node
	if err := yaml.Unmarshal(b, &n); err != nil {
		return fmt.Errorf("print YAML: %w", err)
	}
	block(&n)
	e := yaml.NewEncoder(w)
	e.SetIndent(2)
	if err := e.Encode(&n); err != nil {
		return fmt.Errorf("print YAML: %w", err)
	}
	return e.Close()
}

// block takes JSON's style off a YAML tree.
func block(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		block(c)
	}
}

func printLines(w io.Writer, tables []table) error {
	for _, t := range tables {
		for _, row := range t.rows {
			if _, err := fmt.Fprintln(w, strings.Join(printables(row), "\t")); err != nil {
				return fmt.Errorf("print: %w", err)
			}
		}
	}
	return nil
}

func printTables(w io.Writer, tables []table) error {
	for i, t := range tables {
		if i > 0 {
			fmt.Fprintln(w)
		}
		tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		if len(t.header) > 0 {
			fmt.Fprintln(tw, strings.ToUpper(strings.Join(t.header, "\t")))
		}
		for _, row := range t.rows {
			fmt.Fprintln(tw, strings.Join(printables(row), "\t"))
		}
		if err := tw.Flush(); err != nil {
			return fmt.Errorf("print: %w", err)
		}
	}
	return nil
}

func printables(row []string) []string {
	out := make([]string, len(row))
	for i, s := range row {
		out[i] = printable(s)
	}
	return out
}

// printable quotes text that could move the cursor or break the line: headers of files and names come from strangers.
func printable(s string) string {
	if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}

// terminal says whether a stream is a terminal.
func terminal(stream any) bool {
	if i, ok := stream.(interruptible); ok {
		stream = i.r
	}
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// progress shows where a long command is: one line that changes on a terminal, a line for each change elsewhere.
type progress struct {
	w    io.Writer
	last string
}

// at shows a state.
func (p *progress) at(state string) {
	state = printable(state)
	if state == p.last {
		return
	}
	p.last = state
	if terminal(p.w) {
		fmt.Fprintf(p.w, "\r\x1b[K%s", state)
		return
	}
	fmt.Fprintln(p.w, state)
}

// end leaves the last state standing.
func (p *progress) end() {
	if p.last != "" && terminal(p.w) {
		fmt.Fprintln(p.w)
	}
	p.last = ""
}

// moment is a time as people read it, empty for none.
func moment(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().UTC().Format(time.RFC3339)
}

// list is never null in JSON.
func list(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

func number[T ~uint32 | ~uint64 | ~int64 | ~int](n T) string { return fmt.Sprint(n) }
