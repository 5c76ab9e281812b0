package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"crypto/tls"

	"github.com/rotorkms/rotor"
)

// instance is one process of the fleet: it serves inferences to its neighbours and makes traffic of its own.
type instance struct {
	*talker
	name   string
	work   string
	board  string
	client *rotor.Client
	http   map[string]*http.Client // by the name of the peer
	httpMu sync.Mutex              // guards http
	model  []byte                  // decrypted, in memory alone
	digest [32]byte
	tally  *tally
	tokens tokenCache
	hold   chan struct{} // SIGUSR1: stop after the next encryption
	resume chan struct{} // SIGUSR2: go on
	plant  bool          // one operation fails
	limit  *time.Timer   // ends the operation that is under way; used by the traffic alone
	rest   chan struct{} // SIGHUP: begin no more operations, but answer neighbours
}

func instanceCommand(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("instance", flag.ContinueOnError)
	name := f.String("name", "", "name of the instance")
	work := f.String("work", "", "directory of the demo")
	board := f.String("board", "", "host:port of the board")
	model := f.String("model", "", "encrypted model file")
	want := f.String("digest", "", "SHA-256 of the model, in hex")
	rate := f.Float64("rate", 10, "operations a second")
	probe := f.Bool("probe", true, "use the key in fence mode all the time, to tell when it is refused")
	plant := f.Bool("plant", false, "let one operation fail, to show that the demo notices")
	if err := f.Parse(args); err != nil {
		return err
	}
	i := &instance{
		plant:  *plant,
		talker: &talker{out: os.Stdout}, name: *name, work: *work, board: *board, http: map[string]*http.Client{}, tally: newTally(),
		hold: make(chan struct{}, 1), resume: make(chan struct{}, 1), rest: make(chan struct{}, 1),
	}
	go i.signals()
	if err := i.join(ctx); err != nil {
		return fmt.Errorf("join: %w", err)
	}
	err := errors.Join(i.serve(ctx, *model, *want, *rate, *probe), i.client.Close())
	i.count()
	return err
}

// signals lets the demo stop this instance between encryption and write.
func (i *instance) signals() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGHUP)
	for s := range c {
		to := map[os.Signal]chan struct{}{syscall.SIGUSR1: i.hold, syscall.SIGUSR2: i.resume, syscall.SIGHUP: i.rest}[s]
		select {
		case to <- struct{}{}:
		default:
		}
	}
}

func (i *instance) join(ctx context.Context) error {
	path := filepath.Join(i.work, "tokens", i.name)
	token, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	for {
		i.client, err = rotor.Dial(ctx, rotor.Config{
			Identity: filepath.Join(i.work, "identities", i.name), JoinToken: string(token), Keys: []string{keyRecords, keyPrompts}, Log: log,
		})
		if code := rotor.CodeOf(err); code != "unavailable" && code != "identity_in_use" || ctx.Err() != nil {
			return err
		}
	}
}

// serve opens the model, answers neighbours and makes traffic until ctx ends.
func (i *instance) serve(ctx context.Context, model, want string, rate float64, probe bool) error {
	if err := i.openModel(ctx, model, want); err != nil {
		return fmt.Errorf("open model: %w", err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", i.client.ServerTLS(nil))
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /infer", i.infer)
	mux.HandleFunc("POST /open", i.open)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }() // ends with Shutdown, below
	i.say(line{Kind: "ready", Address: l.Addr().String()})
	go i.report(ctx)
	if probe {
		go i.probe(ctx)
	}
	i.traffic(ctx, rate)
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	_ = server.Shutdown(end) // neighbours that still wait try another
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (i *instance) openModel(ctx context.Context, path, want string) error {
	f, err := i.client.OpenFile(ctx, path)
	if err != nil {
		return err
	}
	i.model, err = f.ReadAll(ctx)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if i.digest = sha256.Sum256(i.model); fmt.Sprintf("%x", i.digest) != want {
		return errors.New("the model is not the one that was encrypted")
	}
	return nil
}

func (i *instance) report(ctx context.Context) {
	t := time.NewTicker(250 * time.Millisecond)
	defer t.Stop()
	for ctx.Err() == nil {
		select {
		case <-t.C:
			i.count()
		case <-ctx.Done():
		}
	}
}

func (i *instance) count() {
	counts, retries := i.tally.read()
	versions := map[string]uint32{}
	for _, k := range []string{keyRecords, keyPrompts} {
		versions[k], _ = i.client.Key(k).Version()
	}
	i.say(line{Kind: "count", Counts: counts, Retries: retries, Version: versions})
}

// promptPart binds a prompt or an answer to who sends it to whom.
func promptPart(from, to string) rotor.Part {
	return rotor.Part{Label: "prompt", Value: []byte(from + ">" + to)}
}

// infer answers a neighbour: its certificate says who it is, its token that it may, and only the fleet's key opens its prompt.
func (i *instance) infer(w http.ResponseWriter, r *http.Request) {
	from, _, ok := i.client.PeerName(r.TLS)
	text, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	claims, err := i.client.VerifyToken(r.Context(), text, "inference")
	if err != nil || !ok || !strings.HasSuffix(claims.Subject, "/instance/"+from) {
		answerError(w, "token", err)
		return
	}
	sealed, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 64<<10))
	if err != nil {
		answerError(w, "body", err)
		return
	}
	key := i.client.Key(keyPrompts)
	prompt, err := key.Decrypt(r.Context(), sealed, promptPart(from, i.name))
	if err != nil {
		answerError(w, "prompt", err)
		return
	}
	out, err := key.Encrypt(r.Context(), i.predict(prompt), promptPart(i.name, from))
	if err != nil {
		answerError(w, "answer", err)
		return
	}
	_, _ = w.Write(out) // a neighbour that is gone tries another
}

// open tries to open a record's ciphertext for the demo and tells the code, never the content.
func (i *instance) open(w http.ResponseWriter, r *http.Request) {
	if from, _, ok := i.client.PeerName(r.TLS); !ok || from != deskName {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	sealed, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 64<<10))
	if err == nil {
		_, err = i.client.Key(keyRecords).Decrypt(r.Context(), sealed, recordPart(r.URL.Query().Get("id")))
	}
	if err != nil {
		answerError(w, "record", err)
	}
}

// predict stands for the model's work: it reads model and prompt. Rotor's part of the job is that both were readable here.
func (i *instance) predict(prompt []byte) []byte {
	sum := sha256.Sum256(append(i.digest[:], prompt...))
	return sum[:]
}

// answerError tells the neighbour the code, and nothing else. An instance whose lease is over is not ready, which is no failure of the
// operation: another neighbour can answer.
func answerError(w http.ResponseWriter, what string, err error) {
	code := rotor.CodeOf(err)
	status := http.StatusForbidden
	switch code {
	case "lease_over", "stale", "unavailable":
		status = http.StatusServiceUnavailable
	}
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"code": string(code), "what": what}) // a neighbour that is gone tries another
}

// to is the HTTP client for a peer.
func (i *instance) to(peer string) *http.Client {
	i.httpMu.Lock()
	defer i.httpMu.Unlock()
	if i.http[peer] == nil {
		i.http[peer] = i.client.PeerHTTP(peer)
		i.http[peer].Timeout = 3 * time.Second
	}
	return i.http[peer]
}
