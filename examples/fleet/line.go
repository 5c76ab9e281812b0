package main

import (
	"encoding/json"
	"io"
	"sync"
)

// Names of the keys that the fleet uses.
const (
	keyModels  = "models"  // wraps the data key of the model file; stays at the server
	keyRecords = "records" // encrypts records in every instance; a rotation waits for silent instances
	keyPrompts = "prompts" // encrypts prompts between instances; silent instances are fenced
	keyTokens  = "tokens"  // signs access tokens; stays at the server
)

// line is what a process tells the one that started it, one JSON object a line on standard output.
type line struct {
	Kind    string            `json:"kind"` // ready, count, refused, failed, encrypted, resting
	Address string            `json:"address,omitempty"`
	Counts  map[string]int64  `json:"counts,omitempty"`  // operations that were finished, by kind, since the process started
	Retries map[string]int64  `json:"retries,omitempty"` // by reason
	What    string            `json:"what,omitempty"`    // operation; of "encrypted" the record
	Number  int               `json:"number,omitempty"`  // revision of the record
	Reason  string            `json:"reason,omitempty"`
	Version map[string]uint32 `json:"version,omitempty"` // primary version of each key that it holds
}

// talker writes lines.
type talker struct {
	mu  sync.Mutex // guards out
	out io.Writer
}

func (t *talker) say(l line) {
	b, _ := json.Marshal(l) // strings and numbers always encode
	t.mu.Lock()
	defer t.mu.Unlock()
	_, _ = t.out.Write(append(b, '\n')) // nobody is left to tell when this fails
}
