package cli

import (
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rotorkms/rotor/envelope"
)

func newFile(a *app) *cobra.Command {
	return newNoun("file", "Look at encrypted files and move them to other key versions", newFileShow(a), newFileRewrap(a), newFileScrub(a))
}

// fileView is a file's header as programs see it. Nothing in it is verified: that takes the data key.
type fileView struct {
	File        string            `json:"file"`
	ID          string            `json:"id"`
	Suite       byte              `json:"suite"`
	ContentType string            `json:"content_type,omitempty"`
	Context     map[string]string `json:"context,omitempty"`
	Generation  uint64            `json:"generation"`
	Wraps       []wrapView        `json:"wraps"`
	OlderWraps  []wrapView        `json:"older_wraps,omitempty"` // that a rewrap left in the other slot
	Torn        bool              `json:"torn"`                  // one of the two slots is damaged; the other one serves
	Bytes       int64             `json:"bytes"`
}

type wrapView struct {
	Type      string `json:"type"`
	KeyID     string `json:"key_id"`
	Version   uint32 `json:"version"`
	Algorithm string `json:"algorithm"`
	Protected string `json:"protected"`
}

func newFileShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "show FILE",
		Short: "Show a file's header: its keys, versions and context",
		Long: `Show a file's header: its keys, versions and context. It needs neither server nor identity, and verifies nothing: what is in a header
can be believed once the file is opened.`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			v, err := viewFile(args[0])
			if err != nil {
				return err
			}
			facts := table{rows: [][]string{
				{"file", v.File}, {"id", v.ID}, {"content type", v.ContentType}, {"context", labelText(v.Context)}, {"generation", number(v.Generation)},
				{"bytes", number(v.Bytes)}, {"slots", map[bool]string{false: "both whole", true: "one torn"}[v.Torn]},
			}}
			wraps := table{header: []string{"slot", "type", "key", "version", "algorithm", "protected"}}
			for i, slot := range [][]wrapView{v.Wraps, v.OlderWraps} {
				for _, w := range slot {
					wraps.add([]string{"newest", "older"}[i], w.Type, w.KeyID, number(w.Version), w.Algorithm, w.Protected)
				}
			}
			return a.show(v, facts, wraps)
		},
	}
}

func viewFile(path string) (fileView, error) {
	f, err := os.Open(path)
	if err != nil {
		return fileView{}, err
	}
	defer func() { _ = f.Close() }() // only read
	info, err := f.Stat()
	if err != nil {
		return fileView{}, fmt.Errorf("size of %s: %w", path, err)
	}
	h, err := envelope.ReadHeader(f, info.Size())
	if err != nil {
		return fileView{}, err
	}
	v := fileView{
		File: path, ID: hex.EncodeToString(h.FileID[:]), Suite: h.Suite, ContentType: h.ContentType, Context: h.Context, Generation: h.Generation,
		Wraps: viewWraps(h.Wraps), Torn: h.Torn[0] || h.Torn[1], Bytes: info.Size(),
	}
	for _, slot := range h.Slots {
		if older := viewWraps(slot); len(older) > 0 && !slices.Equal(older, v.Wraps) {
			v.OlderWraps = older
		}
	}
	return v, nil
}

func viewWraps(in []envelope.Wrap) []wrapView {
	var out []wrapView
	for _, w := range in {
		kind := fmt.Sprintf("type %d", w.Type)
		switch w.Type {
		case envelope.WrapKMS:
			kind = "kms"
		case envelope.WrapKeyFile:
			kind = "keyfile"
		}
		out = append(out, wrapView{kind, w.KeyID, w.Version, string(w.Algorithm), w.ProtectTime.UTC().Format(time.RFC3339)})
	}
	return out
}

// rewrapView is one line of file rewrap.
type rewrapView struct {
	File    string `json:"file"`
	Changed bool   `json:"changed"`
	Read    int64  `json:"bytes_read"`
	Written int64  `json:"bytes_written"`
}

func newFileRewrap(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "rewrap FILE...",
		Short: "Move files to the primary versions of their keys, payload untouched",
		Long: `Move files to the primary versions of their keys. The payload is neither read nor written, whatever its size; a crash leaves the file
with its old or its new wraps. The old wraps stay in the older of the two header slots until the next rewrap or rotor file scrub.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			client, err := a.dial(c.Context())
			if err != nil {
				return err
			}
			views, t, failed := []rewrapView{}, table{header: []string{"file", "outcome", "read", "written"}}, error(nil)
			for _, path := range args {
				changed, stats, err := client.RewrapFile(c.Context(), path)
				if err != nil {
					failed = fmt.Errorf("rewrap %s: %w", path, err)
					break
				}
				views = append(views, rewrapView{path, changed, stats.Read, stats.Written})
				t.add(path, map[bool]string{true: "rewrapped", false: "unchanged"}[changed], number(stats.Read), number(stats.Written))
			}
			return errors.Join(a.show(views, t), failed, client.Close())
		},
	}
}

func newFileScrub(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "scrub FILE...",
		Short: "Remove the older wraps that a rewrap left in the headers",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := a.confirm("remove the older wraps of " + strings.Join(args, ", ") + ": from then on only the newest ones open them"); err != nil {
				return err
			}
			for _, path := range args {
				if _, err := envelope.Scrub(c.Context(), path); err != nil {
					return fmt.Errorf("scrub %s: %w", path, err)
				}
			}
			return nil
		},
	}
	return a.changes(c)
}

func sorted(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
