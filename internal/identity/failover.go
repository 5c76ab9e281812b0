package identity

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"

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

// Failover sends requests to one of several servers of a cluster, the one that answered last, whatever host their URLs name. When it cannot be reached
// the next is tried: with every request that was not sent, and with those that were and may be repeated.
type Failover struct {
	Base      http.RoundTripper
	Addresses []string
	Repeat    func(path string) bool // whether a request that a server may have done may be sent again
	at        atomic.Int64           // index into Addresses, ever growing
}

// RoundTrip implements http.RoundTripper.
func (f *Failover) RoundTrip(r *http.Request) (*http.Response, error) {
	for tried := 1; ; tried++ {
		at := f.at.Load()
		to := f.Addresses[int(at)%len(f.Addresses)]
		next := r.Clone(r.Context())
		next.URL.Host, next.Host = to, to
		resp, err := f.Base.RoundTrip(next)
		if err == nil && f.Repeat(r.URL.Path) {
			err = whole(resp)
		}
		busy := err == nil && resp.StatusCode == http.StatusServiceUnavailable
		if err == nil && !busy {
			return resp, nil
		}
		f.at.CompareAndSwap(at, at+1) // also when this request is given up: the next one goes elsewhere
		if r.Context().Err() != nil {
			return answered(resp, err)
		}
		again := f.Repeat(r.URL.Path) || err != nil && unsent(err)
		if tried >= len(f.Addresses) || !again {
			return answered(resp, err)
		}
		if r.Body != nil && r.Body != http.NoBody {
			if r.GetBody == nil {
				return answered(resp, err)
			}
			body, berr := r.GetBody()
			if berr != nil {
				return answered(resp, err)
			}
			r.Body = body
		}
		if busy {
			_ = resp.Body.Close() // another server's answer takes its place
		}
	}
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

// unsent says whether a request failed before any of it was sent: there was no connection.
func unsent(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// Repeatable says whether a request may be sent again to another server although one may have done it already: it changes nothing, or what it
// makes nobody keeps.
func Repeatable(path string) bool {
	_, method, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	switch method {
	case "Get", "List", "Progress", "Encrypt", "Decrypt", "Wrap", "Unwrap", "Rewrap", "Sign", "Verify", "Instances", "DataSets", "Census", "GetCampaign", "Status", "Join", "Renew":
		return true
	}
	return !strings.HasPrefix(path, "/rotor.v1.") // health and key sets
}
