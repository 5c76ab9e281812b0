package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
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
func (d *demo) onBoard(ctx context.Context, id string) (r record, found bool, err error) {
	r, _, err = d.reader.get(ctx, id)
	if errors.Is(err, errNotFound) {
		return r, false, nil
	}
	return r, err == nil, err
}

// boardIDs are the IDs of all records on the board.
func (d *demo) boardIDs(ctx context.Context) (ids []string, err error) {
	for after := ""; ; {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+d.boardAddr+"/records?limit=1000&after="+url.QueryEscape(after), nil)
		if err != nil {
			return nil, err
		}
		body, status, _, err := send(d.reader.to("board"), req)
		if err != nil {
			return nil, err
		}
		var page struct{ IDs []string }
		if err := json.Unmarshal(body, &page); err != nil || status != http.StatusOK {
			return nil, fmt.Errorf("board answered %d to a list: %w", status, err)
		}
		if len(page.IDs) == 0 {
			return ids, nil
		}
		ids, after = append(ids, page.IDs...), page.IDs[len(page.IDs)-1]
	}
}

// write puts a ciphertext on the board as a new record, or deletes a record.
func (d *demo) write(ctx context.Context, method, id, condition, value string, sealed []byte) (status int, body []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, method, d.reader.url(id), bytes.NewReader(sealed))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set(condition, value)
	body, status, _, err = send(d.reader.to("board"), req)
	return status, body, err
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
