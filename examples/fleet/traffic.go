package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rotorkms/rotor"
)

// operationTime is T: within it an operation may be tried again after errors of transport, at its end it has failed.
const operationTime = 20 * time.Second

// record is the plaintext of a record on the board. What it says can be checked by every instance.
type record struct {
	ID       string `json:"id"`
	Revision int    `json:"revision"`
	By       string `json:"by"`
	Check    string `json:"check"` // SHA-256 over the rest
	Fill     string `json:"fill"`  // so that a record is about 256 bytes
}

func newRecord(id string, revision int, by string) record {
	return record{id, revision, by, checkOf(id, revision, by), strings.Repeat("x", 96)}
}

func checkOf(id string, revision int, by string) string {
	return fmt.Sprintf("%x", sha256.Sum256([]byte(fmt.Sprint(id, revision, by))))[:32]
}

func recordPart(id string) rotor.Part { return rotor.Part{Label: "record", Value: []byte(id)} }

// tally counts what was finished.
type tally struct {
	mu      sync.Mutex // guards what follows
	counts  map[string]int64
	retries map[string]int64
}

func newTally() *tally { return &tally{counts: map[string]int64{}, retries: map[string]int64{}} }

func (t *tally) did(kind string)    { t.mu.Lock(); t.counts[kind]++; t.mu.Unlock() }
func (t *tally) retried(why string) { t.mu.Lock(); t.retries[why]++; t.mu.Unlock() }

func (t *tally) read() (counts, retries map[string]int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.counts), maps.Clone(t.retries)
}

// again is an error after which the operation may be tried again; why names the reason in the report.
type again struct {
	why string
	err error
}

func (a again) Error() string { return a.why + ": " + a.err.Error() }
func (a again) Unwrap() error { return a.err }

// traffic makes operations at a rate until ctx ends; one that has begun is finished.
func (i *instance) traffic(ctx context.Context, rate float64) {
	s := schedule{every: time.Duration(float64(time.Second) / rate), next: time.Now()}
	journal, err := os.OpenFile(filepath.Join(i.work, "journal", fmt.Sprintf("%s.%d", i.name, os.Getpid())), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		i.say(line{Kind: "failed", What: "journal", Reason: err.Error()})
		return
	}
	defer func() { _ = journal.Close() }() // each line was written by itself
	w := &writer{instance: i, journal: journal}
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-i.rest:
			i.say(line{Kind: "resting"})
			<-ctx.Done()
			return
		case <-time.After(s.wait(time.Now())):
		}
		if i.plant && n == 4 {
			i.operate(ctx, "planted", w.garbage)
		}
		switch n % 4 {
		case 0:
			i.operate(ctx, "write", w.create)
		case 1:
			i.operate(ctx, "read", w.read)
		case 2:
			i.operate(ctx, "infer", i.ask)
		case 3:
			i.operate(ctx, "update", w.update)
		}
	}
}

// schedule is an open loop: operations are due at fixed times, whatever the earlier ones took, so that a slow one is made up for.
type schedule struct {
	every time.Duration
	next  time.Time
}

// maxBehind is how far a schedule may fall behind; what a frozen instance missed it does not make up for.
const maxBehind = 2 * time.Second

// wait is how long it is until the next operation is due.
func (s *schedule) wait(now time.Time) time.Duration {
	if s.next = s.next.Add(s.every); now.Sub(s.next) > maxBehind {
		s.next = now
	}
	return max(0, s.next.Sub(now))
}

// probeEvery is how often an instance makes sure that it can use its key in fence mode. It is shorter than joining again takes, so that
// a thawed instance finds out that it may not.
const probeEvery = 25 * time.Millisecond

// probe uses the key in fence mode all the time and tells when it is refused.
func (i *instance) probe(ctx context.Context) {
	t := time.NewTicker(probeEvery)
	defer t.Stop()
	var last rotor.Code
	for ctx.Err() == nil {
		_, err := i.client.Key(keyPrompts).Encrypt(ctx, nil)
		if code := rotor.CodeOf(err); code != last {
			last = code
			if err != nil {
				i.say(line{Kind: "refused", What: "encrypt", Reason: string(code)})
			}
		}
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
}

// operate runs one operation to its end.
func (i *instance) operate(ctx context.Context, kind string, f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	i.limit = time.AfterFunc(operationTime, cancel)
	defer i.limit.Stop()
	for {
		err := f(ctx)
		var a again
		switch {
		case err == nil:
			i.tally.did(kind)
			return
		case errors.As(err, &a) && ctx.Err() == nil:
			i.tally.retried(a.why)
		case i.refused(ctx, err):
			i.say(line{Kind: "refused", What: kind, Reason: string(rotor.CodeOf(err))})
			i.tally.retried(string(rotor.CodeOf(err)))
		default:
			i.say(line{Kind: "failed", What: kind, Reason: err.Error()})
			return
		}
		pause(ctx, 20*time.Millisecond)
	}
}

// refused says that this instance has lost its lease, which the demo expects of those that it froze and of no other. The instance
// is ready again once it has joined again.
func (i *instance) refused(ctx context.Context, err error) bool {
	code := rotor.CodeOf(err)
	return (code == "lease_over" || code == "stale") && ctx.Err() == nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// promptText begins every prompt; it stands in no log.
const promptText = "prompt of "

// ask sends an encrypted prompt to a neighbour and checks its answer.
func (i *instance) ask(ctx context.Context) error {
	name, address, err := i.neighbour()
	if err != nil {
		return again{"no_neighbour", err}
	}
	token, err := i.token(ctx)
	if err != nil {
		return err
	}
	key, prompt := i.client.Key(keyPrompts), fmt.Appendf(nil, promptText+"%s at %d", i.name, time.Now().UnixNano())
	sealed, err := key.Encrypt(ctx, prompt, promptPart(i.name, name))
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+address+"/infer", bytes.NewReader(sealed))
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+token)
	body, status, _, err := send(i.to(name), r)
	switch {
	case err != nil:
		return again{"neighbour_unreachable", err}
	case status == http.StatusServiceUnavailable:
		return again{"neighbour_not_ready", errors.New(string(body))}
	case status != http.StatusOK:
		return fmt.Errorf("neighbour %s answered %d %s", name, status, body)
	}
	answer, err := key.Decrypt(ctx, body, promptPart(name, i.name))
	if err != nil {
		return fmt.Errorf("answer of %s: %w", name, err)
	}
	if !bytes.Equal(answer, i.predict(prompt)) {
		return fmt.Errorf("%s answered something else", name)
	}
	return nil
}

// neighbour picks another instance from the list that the demo keeps.
func (i *instance) neighbour() (name, address string, err error) {
	b, err := os.ReadFile(filepath.Join(i.work, "neighbours.json"))
	if err != nil {
		return "", "", err
	}
	all := map[string]string{}
	if err := json.Unmarshal(b, &all); err != nil {
		return "", "", err
	}
	delete(all, i.name)
	if len(all) == 0 {
		return "", "", errors.New("alone")
	}
	n := rand.IntN(len(all))
	for name, address = range all {
		if n == 0 {
			break
		}
		n--
	}
	return name, address, nil
}

// tokenCache keeps the instance's own access token until a third of its life is left.
type tokenCache struct {
	text    string
	renew   time.Time
	expires time.Time
}

const tokenTTL = 30 * time.Second

func (i *instance) token(ctx context.Context) (string, error) {
	now := time.Now()
	if i.tokens.text != "" && now.Before(i.tokens.renew) {
		return i.tokens.text, nil
	}
	text, err := i.client.Token(ctx, rotor.TokenRequest{Key: keyTokens, Audience: "inference", TTL: tokenTTL})
	switch {
	case err == nil:
		i.tokens = tokenCache{text, now.Add(tokenTTL * 2 / 3), now.Add(tokenTTL)}
		return text, i.issued(text)
	case rotor.CodeOf(err) != "unavailable" && rotor.CodeOf(err) != "canceled":
		return "", err
	case i.tokens.text != "" && now.Before(i.tokens.expires.Add(-time.Second)):
		return i.tokens.text, nil // the server is away; the token is still good
	}
	return "", again{"server_unreachable", err}
}

// issued keeps a token for the demo, which looks for it in the logs.
func (i *instance) issued(token string) error {
	f, err := os.OpenFile(filepath.Join(i.work, "issued", i.name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, token)
	return errors.Join(err, f.Close())
}

// send does a request and reads the whole answer.
func send(c *http.Client, r *http.Request) (body []byte, status int, etag string, err error) {
	resp, err := c.Do(r)
	if err != nil {
		return nil, 0, "", err
	}
	body, err = io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return body, resp.StatusCode, resp.Header.Get("ETag"), errors.Join(err, resp.Body.Close())
}

// writer is the instance's work on the board. Every write that the board acknowledged is noted in a journal, which outlives a kill.
type writer struct {
	*instance
	journal *os.File
	serial  int
	own     []string // the last records that this process made
}

const ownRecords = 16

// create encrypts a new record and puts it on the board.
func (w *writer) create(ctx context.Context) error {
	id := fmt.Sprintf("%s-%d-%d", w.name, os.Getpid(), w.serial)
	if err := w.put(ctx, newRecord(id, 1, w.name), ""); err != nil {
		return err
	}
	w.serial++
	w.own = append(w.own, id)
	if len(w.own) > ownRecords {
		w.own = w.own[1:]
	}
	return nil
}

// garbage is an operation that fails, planted to show that the demo notices.
func (w *writer) garbage(ctx context.Context) error {
	sealed, err := w.client.Key(keyRecords).Encrypt(ctx, []byte("x"), recordPart("here"))
	if err != nil {
		return err
	}
	_, err = w.client.Key(keyRecords).Decrypt(ctx, sealed, recordPart("elsewhere"))
	return err
}

// put encrypts and writes one revision. With an ETag it replaces that state of the record alone; without, it makes the record.
func (w *writer) put(ctx context.Context, r record, etag string) error {
	plain, err := json.Marshal(r)
	if err != nil {
		return err
	}
	sealed, err := w.client.Key(keyRecords).Encrypt(ctx, plain, recordPart(r.ID))
	if err != nil {
		return err
	}
	w.held(r)
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, w.url(r.ID), bytes.NewReader(sealed))
	if err != nil {
		return err
	}
	if etag == "" {
		req.Header.Set("If-None-Match", "*")
	} else {
		req.Header.Set("If-Match", etag)
	}
	body, status, _, err := send(w.to("board"), req)
	switch {
	case err != nil:
		return again{"board_unreachable", err}
	case status == http.StatusConflict && bytes.Contains(body, []byte("below_floor")):
		return again{"below_floor", errors.New("encrypt again")}
	case status == http.StatusPreconditionFailed:
		return w.conflict(ctx, r)
	case status/100 != 2:
		return fmt.Errorf("board answered %d %s", status, body)
	}
	return w.note(r)
}

// conflict finds out whether a write whose answer was lost is there after all.
func (w *writer) conflict(ctx context.Context, r record) error {
	there, _, err := w.get(ctx, r.ID)
	if err == nil && there.Revision == r.Revision && there.By == r.By {
		return w.note(r)
	}
	if err != nil {
		return err
	}
	return again{"write_conflict", fmt.Errorf("record %s is at revision %d", r.ID, there.Revision)}
}

func (w *writer) note(r record) error {
	_, err := fmt.Fprintf(w.journal, "%s %d\n", r.ID, r.Revision)
	return err
}

// held stops here when the demo asked for it: between encryption and write.
func (w *writer) held(r record) {
	select {
	case <-w.hold:
	default:
		return
	}
	if !w.limit.Stop() {
		return
	}
	defer w.limit.Reset(operationTime) // the demo's pause is not the operation's
	w.say(line{Kind: "encrypted", What: r.ID, Number: r.Revision})
	<-w.resume
}

func (w *writer) url(id string) string {
	return "https://" + w.board + "/records/" + url.PathEscape(id)
}

var errNotFound = errors.New("no such record")

// get reads and checks a record. errNotFound.
func (w *writer) get(ctx context.Context, id string) (record, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.url(id), nil)
	if err != nil {
		return record{}, "", err
	}
	sealed, status, etag, err := send(w.to("board"), req)
	switch {
	case err != nil:
		return record{}, "", again{"board_unreachable", err}
	case status == http.StatusNotFound:
		return record{}, "", errNotFound
	case status != http.StatusOK:
		return record{}, "", fmt.Errorf("board answered %d %s to a read of %s", status, sealed, id)
	}
	plain, err := w.client.Key(keyRecords).Decrypt(ctx, sealed, recordPart(id))
	if err != nil {
		return record{}, "", fmt.Errorf("record %s: %w", id, err)
	}
	var r record
	if err := json.Unmarshal(plain, &r); err != nil || r.ID != id || r.Check != checkOf(id, r.Revision, r.By) {
		return record{}, "", fmt.Errorf("record %s has a wrong content", id)
	}
	return r, etag, nil
}

// read opens a record that somebody else wrote.
func (w *writer) read(ctx context.Context) error {
	id, err := w.other(ctx)
	if err != nil {
		return err
	}
	r, _, err := w.get(ctx, id)
	if err == nil && r.By == w.name {
		err = fmt.Errorf("record %s is this instance's own", id)
	}
	return err
}

// other finds a record of another instance.
func (w *writer) other(ctx context.Context) (string, error) {
	name, _, err := w.neighbour()
	if err != nil {
		return "", again{"no_neighbour", err}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+w.board+"/records?limit=20&after="+url.QueryEscape(name+"-"), nil)
	if err != nil {
		return "", err
	}
	body, status, _, err := send(w.to("board"), req)
	if err != nil {
		return "", again{"board_unreachable", err}
	}
	var list struct {
		IDs []string `json:"ids"`
	}
	if status != http.StatusOK || json.Unmarshal(body, &list) != nil {
		return "", fmt.Errorf("board answered %d to a list", status)
	}
	theirs := slices.DeleteFunc(list.IDs, func(id string) bool { return !strings.HasPrefix(id, name+"-") })
	if len(theirs) == 0 {
		return "", again{"no_record_yet", errors.New(name)}
	}
	return theirs[rand.IntN(len(theirs))], nil
}

// update raises the revision of one of its own records, if nobody else did meanwhile.
func (w *writer) update(ctx context.Context) error {
	if len(w.own) == 0 {
		return w.create(ctx)
	}
	id := w.own[rand.IntN(len(w.own))]
	r, etag, err := w.get(ctx, id)
	if err != nil {
		return err
	}
	return w.put(ctx, newRecord(id, r.Revision+1, w.name), etag)
}
