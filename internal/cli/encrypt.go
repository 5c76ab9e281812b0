package cli

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/internal/fault"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// maxText bounds what is read from standard input as a message, in bytes; the server has its own bound.
const maxText = 4 << 20

// fileSuffix is what encrypt adds to a file's name and decrypt knows a file by.
const fileSuffix = ".rotor"

// encryptFlags are the flags of encrypt.
type encryptFlags struct {
	out, contentType string
	force            bool
	context, parts   []string
}

func newEncrypt(a *app) *cobra.Command {
	var f encryptFlags
	c := &cobra.Command{
		Use:   "encrypt KEY [SRC] [--out DST]",
		Short: "Encrypt a file with a wrap key, or a message with an encrypt key",
		Long: `With SRC: encrypt a file under a key for wrapping. The file gets a data key of its own, and the result appears whole or not at all. SRC
"-" is standard input. DST is SRC` + fileSuffix + ` if it is not named.

Without SRC: encrypt standard input (at most 4 MiB) as one message under a key for encrypting, and print it as text that begins with
"rk1.". What --part names is bound to the message and is not in it: decrypt needs the same parts in the same order.`,
		Example: "  rotor encrypt models model.onnx --out model.onnx.rotor --content-type application/onnx\n" +
			"  echo hello | rotor encrypt records --part id=7 | rotor decrypt records --part id=7",
		Args: cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 1 && f.out == "" {
				return a.encryptMessage(c, args[0], f)
			}
			return a.encryptFile(c, args, f)
		},
	}
	c.Flags().StringVar(&f.out, "out", "", "file to make")
	c.Flags().BoolVar(&f.force, "force", false, "replace an existing file")
	c.Flags().StringVar(&f.contentType, "content-type", "", "what is in the file; readable by all")
	c.Flags().StringArrayVar(&f.context, "context", nil, "name=value, bound to the file and readable by all; may be repeated")
	c.Flags().StringArrayVar(&f.parts, "part", nil, "name=value, bound to the message and not in it; may be repeated")
	return c
}

func (a *app) encryptMessage(c *cobra.Command, key string, f encryptFlags) error {
	parts, err := parseParts(f.parts)
	if err != nil {
		return err
	}
	if len(f.context) > 0 || f.contentType != "" || f.force {
		return usage("command line", "--context, --content-type and --force are for files: name SRC")
	}
	plain, err := readAll(a.in, maxText, "standard input")
	if err != nil {
		return err
	}
	defer clear(plain)
	s, err := a.connect()
	if err != nil {
		return err
	}
	defer s.close()
	m, err := message(s.keys.Encrypt(c.Context(), request(&rotorv1.EncryptRequest{Key: a.ref(key), Plaintext: plain, Parts: parts})))
	if err != nil {
		return err
	}
	text := envelope.EncodeText(m.GetCiphertext())
	return a.showText(text, struct {
		Message string `json:"message"`
		Version uint32 `json:"version"`
	}{text, m.GetVersion()})
}

// showText prints one line of text, or its form for programs.
func (a *app) showText(text string, value any) error {
	if a.format == "json" || a.format == "yaml" {
		return a.show(value)
	}
	if _, err := fmt.Fprintln(a.out, text); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

func (a *app) encryptFile(c *cobra.Command, args []string, f encryptFlags) error {
	if len(args) == 1 {
		return usage("SRC", `name the file to encrypt, or "-" for standard input`)
	}
	if len(f.parts) > 0 {
		return usage("--part", "parts are for messages; a file has --context")
	}
	files, err := parsePairs("context", f.context)
	if err != nil {
		return err
	}
	dst := f.out
	if dst == "" && args[1] != "-" {
		dst = args[1] + fileSuffix
	}
	if dst == "" || dst == "-" {
		return usage("--out", "name the file to make")
	}
	if a.namespace != "" {
		return usage("--namespace", "files are encrypted in the identity's own namespace")
	}
	src, closeSource, err := a.source(args[1])
	if err != nil {
		return err
	}
	defer closeSource()
	client, err := a.dial(c.Context())
	if err != nil {
		return err
	}
	err = client.EncryptFile(c.Context(), args[0], src, dst, rotor.FileOptions{ContentType: f.contentType, Context: files, Force: f.force})
	if err = errors.Join(err, client.Close()); err != nil {
		return err
	}
	return a.showText(dst, struct {
		File string `json:"file"`
	}{dst})
}

// source opens a file to be read, or standard input.
func (a *app) source(path string) (io.Reader, func(), error) {
	if path == "-" {
		return a.in, func() {}, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	if info, err := f.Stat(); err == nil && info.IsDir() {
		_ = f.Close() // nothing was read
		return nil, nil, fault.New(fault.Invalid, path).WithHint("it is a directory")
	}
	return f, func() { _ = f.Close() }, nil // only read
}

// parseParts keeps the order, which counts.
func parseParts(in []string) ([]*rotorv1.Part, error) {
	if _, err := parsePairs("part", in); err != nil {
		return nil, err
	}
	var out []*rotorv1.Part
	for _, s := range in {
		label, value, err := parsePair("part", s)
		if err != nil {
			return nil, err
		}
		out = append(out, &rotorv1.Part{Label: label, Value: []byte(value)})
	}
	return out, nil
}
