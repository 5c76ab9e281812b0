package identity

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
)

// maxAddresses bounds the servers that one list names.
const maxAddresses = 16

// Addresses takes a list of servers apart: host:port, several with commas between. fault.Invalid.
func Addresses(list string) ([]string, error) {
	all := strings.Split(list, ",")
	for i, a := range all {
		all[i] = strings.TrimSpace(a)
		host, port, err := net.SplitHostPort(all[i])
		if err != nil || host == "" || port == "" || strings.ContainsAny(all[i], "/\\?#@% \t\r\n") || len(all) > maxAddresses {
			return nil, fault.New(fault.Invalid, "address").WithHint("host:port, or several with commas between, at most %d", maxAddresses)
		}
	}
	return all, nil
}

// patience is how long a server may be without any answer before a quick request goes to the next one as well.
const patience = time.Second

// Failover sends requests to one of several servers of a cluster, the one that answered last, whatever host their URLs name. When it cannot be reached
// the next is tried: with every request that was not sent, and with those that were and may be repeated. These also go on to the next server, while the
// first may still answer, when their share of the time until their deadline is over; and those that are quick when the server has answered nothing at
// all for a second: one that is slow answers others meanwhile, and is not made slower by being asked twice.
type Failover struct {
	Base      http.RoundTripper
	Addresses []string
	Repeat    func(path string) bool // whether a request that a server may have done may be sent again
	Quick     func(path string) bool // whether such a request is answered within moments; nil: none is

	at    atomic.Int64                            // index into Addresses, ever growing
	heard [maxAddresses]atomic.Pointer[time.Time] // of each address: when it answered last; nil: never
}

// Among sends requests to one of several servers (Addresses), as rotor's own clients do.
func Among(base http.RoundTripper, addresses []string) *Failover {
	return &Failover{Base: base, Addresses: addresses, Repeat: Repeatable, Quick: Quick}
}

// RoundTrip implements http.RoundTripper.
func (f *Failover) RoundTrip(r *http.Request) (*http.Response, error) {
	empty := r.Body == nil || r.Body == http.NoBody
	if f.Repeat(r.URL.Path) && (empty || r.GetBody != nil) {
		return f.race(r)
	}
	for tried := 1; ; tried++ {
		at := f.at.Load()
		var sent atomic.Bool
		ctx := httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { sent.Store(true) }})
		resp, err := f.send(ctx, r, at)
		if err == nil && resp.StatusCode != http.StatusServiceUnavailable {
			return resp, nil
		}
		f.at.CompareAndSwap(at, at+1) // also when this request is given up: the next one goes elsewhere
		if err == nil || sent.Load() || tried >= len(f.Addresses) || r.Context().Err() != nil {
			return answered(resp, err)
		}
		next, ok := again(r) // without a connection nothing was sent
		if !ok {
			return nil, err
		}
		r = next
	}
}

// again is a request whose body was closed by a try that sent nothing.
func again(r *http.Request) (next *http.Request, ok bool) {
	next = r.Clone(r.Context())
	if r.Body == nil || r.Body == http.NoBody {
		return next, true
	}
	if r.GetBody == nil {
		return nil, false
	}
	var err error
	next.Body, err = r.GetBody()
	return next, err == nil
}

// send sends a request to one address.
func (f *Failover) send(ctx context.Context, r *http.Request, at int64) (*http.Response, error) {
	i := int(at) % len(f.Addresses)
	next := r.Clone(ctx)
	next.URL.Host, next.Host = f.Addresses[i], f.Addresses[i]
	resp, err := f.Base.RoundTrip(next)
	if err == nil {
		now := time.Now()
		f.heard[i].Store(&now)
	}
	return resp, err
}

// quiet is for how long an attempt's address has answered nothing while it had it.
func (f *Failover) quiet(a attempt) time.Duration {
	quiet := time.Since(a.began)
	if heard := f.heard[int(a.at)%len(f.Addresses)].Load(); heard != nil {
		quiet = min(quiet, time.Since(*heard))
	}
	return quiet
}

// attempt is a request at one address.
type attempt struct {
	at    int64
	began time.Time
	end   context.CancelFunc
	resp  *http.Response
	err   error
}

func (a attempt) good() bool {
	return a.err == nil && a.resp.StatusCode != http.StatusServiceUnavailable
}

// drop ends an attempt whose answer is not wanted.
func (a attempt) drop() {
	a.end()
	if a.err == nil {
		_ = a.resp.Body.Close() // nobody reads it
	}
}

// race is a request that may be repeated, at as many servers as it takes. The first good answer counts.
func (f *Failover) race(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		defer func() { _ = r.Body.Close() }() // each attempt has a body of its own
	}
	answers := make(chan attempt, len(f.Addresses))
	first := f.at.Load()
	var tries []attempt
	pending := 0
	launch := func() {
		ctx, end := context.WithCancel(r.Context())
		a := attempt{at: first + int64(len(tries)), began: time.Now(), end: end}
		tries = append(tries, a)
		pending++
		go func() { answers <- f.attempt(ctx, r, a) }() // ends with ctx
	}
	launch()
	var last attempt
	for {
		latest := tries[len(tries)-1]
		wait := f.wait(r, latest, len(tries))
		select {
		case a := <-answers:
			pending--
			if a.good() || pending == 0 && (len(tries) == len(f.Addresses) || r.Context().Err() != nil) {
				if !a.good() {
					f.at.CompareAndSwap(a.at, a.at+1)
				}
				f.settle(tries, a, last, answers, pending)
				return finish(a)
			}
			f.at.CompareAndSwap(a.at, a.at+1)
			if last.end != nil {
				last.drop()
			}
			last = a
			if len(tries) < len(f.Addresses) && a.at == latest.at && r.Context().Err() == nil {
				launch()
			}
		case <-wait:
			if f.due(r, latest, len(tries)) <= 0 {
				f.at.CompareAndSwap(latest.at, latest.at+1)
				launch()
			}
		}
	}
}

// settle ends all attempts but the one that counts.
func (f *Failover) settle(tries []attempt, won, last attempt, answers <-chan attempt, pending int) {
	for _, a := range tries {
		if a.at != won.at {
			a.end()
		}
	}
	if last.end != nil {
		last.drop()
	}
	if pending > 0 {
		go func() { // ends with the attempts, which were told to end
			for range pending {
				(<-answers).drop()
			}
		}()
	}
}

// finish gives on an answer, whose attempt ends when its body is closed.
func finish(a attempt) (*http.Response, error) {
	if a.err != nil {
		a.end()
		return nil, a.err
	}
	a.resp.Body = ending{a.resp.Body, a.end}
	return a.resp, nil
}

// ending is a body whose end ends its attempt.
type ending struct {
	io.ReadCloser
	end context.CancelFunc
}

// Close implements io.Closer.
func (e ending) Close() error {
	defer e.end()
	return e.ReadCloser.Close()
}

// attempt sends a request with a body of its own, and reads the answer as far as it may be repeated.
func (f *Failover) attempt(ctx context.Context, r *http.Request, a attempt) attempt {
	next := r.Clone(ctx)
	if r.GetBody != nil && r.Body != nil && r.Body != http.NoBody {
		if next.Body, a.err = r.GetBody(); a.err != nil {
			return a
		}
	}
	if a.resp, a.err = f.send(ctx, next, a.at); a.err == nil { //nolint:bodyclose // who takes the attempt closes it
		a.err = whole(a.resp)
	}
	return a
}

// wait gives the moment to look whether the next server is asked; nil: there is none, or nothing to wait for.
func (f *Failover) wait(r *http.Request, latest attempt, tried int) <-chan time.Time {
	if due := f.due(r, latest, tried); due < never {
		return time.After(max(due, 0))
	}
	return nil
}

const never = time.Duration(math.MaxInt64)

// due is how long to wait for the latest attempt before the next server is asked too.
func (f *Failover) due(r *http.Request, latest attempt, tried int) time.Duration {
	left := len(f.Addresses) - tried
	if left == 0 || r.Context().Err() != nil {
		return never
	}
	due := never
	if end, ok := r.Context().Deadline(); ok { // a share for this server, and for each that is left
		due = end.Sub(latest.began)/time.Duration(left+1) - time.Since(latest.began)
	}
	if f.Quick != nil && f.Quick(r.URL.Path) {
		due = min(due, patience-f.quiet(latest))
	}
	return due
}

// maxWhole bounds what is read of an answer before it is given on, in bytes: a server that dies later than that within a larger one is seen by the
// caller.
const maxWhole = 1 << 20

// whole reads an answer, so that one whose server dies in the middle is no answer. Trailers are there afterwards.
func whole(resp *http.Response) error {
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxWhole))
	if err != nil {
		return errors.Join(err, resp.Body.Close())
	}
	resp.Body = rest{io.MultiReader(bytes.NewReader(b), resp.Body), resp.Body}
	return nil
}

// rest is an answer whose beginning was read already.
type rest struct {
	io.Reader
	io.Closer
}

// answered is what RoundTrip returns: an answer or an error, never both.
func answered(resp *http.Response, err error) (*http.Response, error) {
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// CloseIdleConnections is called by http.Client.
func (f *Failover) CloseIdleConnections() {
	if c, ok := f.Base.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// Repeatable says whether a request may be sent again to another server although one may have done it already: it changes nothing, or what it
// makes nobody keeps.
func Repeatable(path string) bool {
	_, method, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	switch method {
	case "Get", "List", "Progress", "Instances", "DataSets", "Census", "GetCampaign", "Status", "Show", "Backups", "Whoami", "Sessions", "Credentials", "Grants", "Admins",
		"Encrypt", "Decrypt", "Wrap", "Unwrap", "Rewrap", "Sign", "Verify", "Encapsulate", "Decapsulate", "Join", "Renew":
		return true
	}
	return !strings.HasPrefix(path, "/rotor.v1.") // health and key sets
}

// Quick says whether a server answers a request within moments, so that one that does not is not there. A census takes as long as there is data, and
// what is committed waits for others who commit.
func Quick(path string) bool {
	_, method, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	switch method {
	case "Census", "Join", "Renew":
		return false
	}
	return Repeatable(path)
}
