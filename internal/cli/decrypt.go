package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/internal/fault"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// decryptFlags are the flags of decrypt.
type decryptFlags struct {
	out   string
	force bool
	parts []string

	compromised bool
}

func newDecrypt(a *app) *cobra.Command {
	var f decryptFlags
	c := &cobra.Command{
		Use:   "decrypt FILE --out DST | decrypt KEY",
		Short: "Decrypt a file, or a message from standard input",
		Long: `With a FILE: decrypt it to DST, which appears whole and verified or not at all; "-" is standard output, where each piece is verified
before it is written. The file itself says which key it needs.

With a KEY: decrypt the message ("rk1.…") on standard input to standard output.

With --compromised it goes on under a version that was marked as compromised, for whoever has the right decrypt.compromised besides, and says so on standard
error: whoever has that version's key may have made what is read.

An argument that has a slash in it or ends in ` + fileSuffix + ` is a file, everything else a key; ./name is always a file.`,
		Example: "  rotor decrypt model.onnx.rotor --out model.onnx\n  rotor decrypt records --part id=7 < message",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if isFile(args[0]) {
				return a.decryptFile(c.Context(), args[0], f)
			}
			return a.decryptMessage(c, args[0], f)
		},
	}
	c.Flags().StringVar(&f.out, "out", "", `file to make; "-" is standard output`)
	c.Flags().BoolVar(&f.force, "force", false, "replace an existing file")
	c.Flags().BoolVar(&f.compromised, "compromised", false, "also under a compromised version; the origin of what is read is unproven then")
	c.Flags().StringArrayVar(&f.parts, "part", nil, "name=value that the message is bound to; may be repeated")
	return c
}

func isFile(arg string) bool {
	return strings.ContainsRune(arg, filepath.Separator) || strings.HasSuffix(arg, fileSuffix)
}

func (a *app) decryptMessage(c *cobra.Command, key string, f decryptFlags) error {
	if f.out != "" || f.force {
		return usage("--out", "a message goes to standard output; a file's name has a slash in it or ends in %s", fileSuffix)
	}
	parts, err := parseParts(f.parts)
	if err != nil {
		return err
	}
	text, err := readAll(a.in, 2*maxText, "standard input")
	if err != nil {
		return err
	}
	ciphertext, err := envelope.DecodeText(strings.TrimSpace(string(text)))
	if err != nil {
		return err
	}
	s, err := a.connect()
	if err != nil {
		return err
	}
	defer s.close()
	m, err := message(s.keys.Decrypt(c.Context(), request(&rotorv1.DecryptRequest{Key: a.ref(key), Ciphertext: ciphertext, Parts: parts, AllowCompromised: f.compromised})))
	if err != nil {
		return err
	}
	defer clear(m.GetPlaintext())
	if m.GetCompromised() {
		a.suspect(fmt.Sprintf("version %d of key %s", m.GetVersion(), key))
	}
	if a.format == "json" || a.format == "yaml" {
		return a.show(struct {
			Plaintext []byte `json:"plaintext"` // base64
			Version   uint32 `json:"version"`

			Compromised bool `json:"compromised,omitempty"`
		}{m.GetPlaintext(), m.GetVersion(), m.GetCompromised()})
	}
	if _, err := a.out.Write(m.GetPlaintext()); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

func (a *app) decryptFile(ctx context.Context, path string, f decryptFlags) error {
	if f.out == "" {
		return usage("--out", `name the file for the plaintext, or "-" for standard output`)
	}
	if len(f.parts) > 0 {
		return usage("--part", "parts are for messages; a file carries its context")
	}
	client, err := a.dial(ctx)
	if err != nil {
		return err
	}
	return errors.Join(a.decryptWith(ctx, client, path, f), client.Close())
}

func (a *app) decryptWith(ctx context.Context, client *rotor.Client, path string, f decryptFlags) error {
	open := func() (*rotor.File, bool, error) {
		f, err := client.OpenFile(ctx, path)
		return f, false, err
	}
	if f.compromised {
		open = func() (*rotor.File, bool, error) { return client.OpenCompromisedFile(ctx, path) }
	}
	file, suspect, err := open()
	if err != nil {
		return err
	}
	if suspect {
		a.suspect("the version that " + path + " is under")
	}
	defer func() { _ = file.Close() }() // only read
	copyTo := func(w io.Writer) error {
		plain := io.NewSectionReader(file, 0, file.Size())
		_, err := io.CopyBuffer(struct{ io.Writer }{w}, interruptedBy{ctx, plain}, make([]byte, copySize))
		return err
	}
	if f.out == "-" {
		return copyTo(a.out)
	}
	return writeFile(f.out, f.force, copyTo)
}

// suspect warns of what was read under a compromised version.
func (a *app) suspect(version string) {
	fmt.Fprintf(a.err, "warning: %s is compromised: whoever has its key may have made this\n", version)
}

// interruptedBy ends a copy of what never blocks when ctx ends.
type interruptedBy struct {
	ctx context.Context
	r   io.Reader
}

// Read implements io.Reader.
func (i interruptedBy) Read(b []byte) (int, error) {
	if i.ctx.Err() != nil {
		return 0, fault.New(fault.Canceled, "").WithHint("nothing was written; repeat the command")
	}
	return i.r.Read(b)
}

// copySize is how much is decrypted at a time, in bytes: many chunks, little memory.
const copySize = 1 << 20

// writeFile makes a file with mode 0600 that appears whole or not at all. fault.Exists without force.
func writeFile(path string, force bool, write func(io.Writer) error) (err error) {
	if _, err := os.Lstat(path); err == nil && !force {
		return fault.New(fault.Exists, path)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".rotor-*")
	if err != nil {
		return fmt.Errorf("make %s: %w", path, err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // gone already after the rename
	if err := errors.Join(write(tmp), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if force {
		return os.Rename(tmp.Name(), path)
	}
	if err := os.Link(tmp.Name(), path); err != nil { // never replaces what appeared meanwhile
		if errors.Is(err, fs.ErrExist) {
			return fault.New(fault.Exists, path)
		}
		return fmt.Errorf("make %s: %w", path, err)
	}
	return nil
}
