package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const generated = "<!-- Generated: go test ./internal/cli -run TestReference -update -->\n\n"

// CommandReference is docs/reference/cli.md: every command with its flags, in the order of the help.
func CommandReference() string {
	var b strings.Builder
	root := newRoot(&app{})
	b.WriteString("# Command line\n\n" + generated + root.Long + "\n\n## Flags of every command\n\n")
	flagTable(&b, root.PersistentFlags())
	for _, c := range root.Commands() {
		command(&b, c)
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}

func command(b *strings.Builder, c *cobra.Command) {
	if c.HasSubCommands() {
		fmt.Fprintf(b, "## %s\n\n%s.\n\n", c.CommandPath(), c.Short)
		for _, verb := range c.Commands() {
			command(b, verb)
		}
		return
	}
	depth := "##"
	if c.Parent().HasParent() {
		depth = "###"
	}
	fmt.Fprintf(b, "%s %s\n\n", depth, c.CommandPath())
	about := c.Long
	if about == "" {
		about = c.Short + "."
	}
	fmt.Fprintf(b, "%s\n\n```\n%s\n```\n\n", about, c.UseLine())
	if c.Example != "" {
		fmt.Fprintf(b, "```sh\n%s\n```\n\n", strings.ReplaceAll(strings.TrimPrefix(c.Example, "  "), "\n  ", "\n"))
	}
	flagTable(b, c.LocalNonPersistentFlags())
}

func flagTable(b *strings.Builder, flags *pflag.FlagSet) {
	if !flags.HasFlags() {
		return
	}
	b.WriteString("| flag | meaning |\n|---|---|\n")
	flags.VisitAll(func(f *pflag.Flag) {
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		if kind := f.Value.Type(); kind != "bool" {
			name += " " + kind
		}
		meaning := f.Usage
		if value := f.DefValue; value != "" && value != "false" && value != "0" && value != "[]" {
			meaning += " (default " + value + ")"
		}
		fmt.Fprintf(b, "| `%s` | %s |\n", name, strings.ReplaceAll(meaning, "|", "\\|"))
	})
	b.WriteString("\n")
}

// ErrorReference is docs/reference/errors.md: every error code, by name.
func ErrorReference() string {
	var b strings.Builder
	b.WriteString("# Error codes\n\n" + generated)
	b.WriteString("Every error of rotor has one of these codes, on each wire and in the SDK. Codes are never renamed or reused. The exit status is the command\n" +
		"line's: 1 failed, 2 usage, 4 not authenticated or authorised, 5 integrity failure.\n\n")
	b.WriteString("| code | meaning | what to do | exit |\n|---|---|---|---|\n")
	for _, c := range allCodes() {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %d |\n", c.Code, c.Meaning, c.Hint, c.Exit)
	}
	return b.String()
}
