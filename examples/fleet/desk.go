package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"

	"github.com/rotorkms/rotor"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// The demo is an instance itself, the desk, because only instances may read the board.

const deskName = "node-desk"

// openDesk joins, and keeps one ciphertext of the first version of records for later.
func (d *demo) openDesk(ctx context.Context) error {
	if err := d.invite(ctx, deskName); err != nil {
		return err
	}
	token, err := os.ReadFile(filepath.Join(d.work, "tokens", deskName))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	d.desk, err = rotor.Dial(ctx, rotor.Config{
		Identity: filepath.Join(d.work, "identities", deskName), JoinToken: string(token), Keys: []string{keyRecords},
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return fmt.Errorf("join as %s: %w", deskName, err)
	}
	w := &writer{instance: &instance{client: d.desk, name: deskName, board: d.boardAddr, http: map[string]*http.Client{}}}
	d.reader = w
	plain, err := json.Marshal(newRecord("kept", 1, deskName))
	if err != nil {
		return err
	}
	d.kept, err = d.desk.Key(keyRecords).Encrypt(ctx, plain, recordPart("kept"))
	return err
}

// onBoard reads and checks a record.
func (d *demo) onBoard(ctx context.Context, id string) (record, error) {
	r, _, err := d.reader.get(ctx, id)
	return r, err
}

func keptParts() []*rotorv1.Part {
	p := recordPart("kept")
	return []*rotorv1.Part{{Label: p.Label, Value: p.Value}}
}

// nobodyReads asks every live instance to open the ciphertext that was kept, and expects a refusal with this code.
func (d *demo) nobodyReads(ctx context.Context, code string) (asked int, err error) {
	d.mu.Lock()
	all := maps.Clone(d.addresses)
	d.mu.Unlock()
	for name, address := range all {
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+address+"/open?id=kept", bytes.NewReader(d.kept))
		if err != nil {
			return asked, err
		}
		body, status, _, err := send(d.reader.to(name), r)
		if err != nil {
			return asked, fmt.Errorf("ask %s: %w", name, err)
		}
		var out struct{ Code string }
		if err := json.Unmarshal(body, &out); err != nil || status == http.StatusOK || out.Code != code {
			return asked, fmt.Errorf("%s answered %d %s instead of %s", name, status, body, code)
		}
		asked++
	}
	return asked, nil
}
