package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

// connections is how many clients there are at a time, each with a connection of its own.
const connections = 16

// target is a server that clients of Vault talk to, and the token that they show.
type target struct {
	address string
	token   string
}

// request is what is sent again and again, whole, so that the clients take as little of the machine as they can.
func (t target) request(path string, body []byte) []byte {
	return append(fmt.Appendf(nil, "POST /v1/%s HTTP/1.1\r\nHost: %s\r\nX-Vault-Token: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n",
		path, t.address, t.token, len(body)), body...)
}

// traffic is what came of sending requests for a while.
type traffic struct {
	took    time.Duration
	times   []time.Duration // of each request, sorted
	failed  int             // answers other than 200
	failure string          // one of them
}

func (l traffic) rate() float64 { return float64(len(l.times)) / l.took.Seconds() }

// at is a quantile in milliseconds.
func (l traffic) at(q float64) float64 {
	return l.times[min(len(l.times)-1, int(q*float64(len(l.times))))].Seconds() * 1000
}

// send has each connection send a request until the time is over.
func (t target) send(ctx context.Context, request []byte, lasting time.Duration) (traffic, error) {
	ctx, stop := context.WithTimeout(ctx, lasting)
	defer stop()
	parts, errs := make([]traffic, connections), make([]error, connections)
	conns := make([]*tls.Conn, connections)
	for i := range conns {
		c, err := t.dial(ctx)
		if err != nil {
			return traffic{}, err
		}
		defer c.Close()
		conns[i] = c
	}
	start := time.Now()
	var all sync.WaitGroup
	for i := range parts {
		all.Go(func() { parts[i], errs[i] = again(ctx, conns[i], request) })
	}
	all.Wait()
	sum := traffic{took: time.Since(start)}
	for _, p := range parts {
		sum.times, sum.failed = append(sum.times, p.times...), sum.failed+p.failed
		sum.failure += p.failure
	}
	slices.Sort(sum.times)
	if err := errors.Join(errs...); err != nil {
		return sum, err
	}
	if len(sum.times) == 0 {
		return sum, errors.New("nothing was answered")
	}
	return sum, nil
}

func (t target) dial(ctx context.Context) (*tls.Conn, error) {
	d := tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}} //nolint:gosec // it talks to its own child
	c, err := d.DialContext(ctx, "tcp", t.address)
	if err != nil {
		return nil, err
	}
	return c.(*tls.Conn), nil
}

// again sends a request over one connection until ctx ends.
func again(ctx context.Context, c *tls.Conn, request []byte) (l traffic, err error) {
	r := bufio.NewReaderSize(c, 32<<10)
	for ctx.Err() == nil {
		start := time.Now()
		if _, err := c.Write(request); err != nil {
			return l, err
		}
		status, body, err := answer(r)
		if err != nil {
			return l, err
		}
		l.times = append(l.times, time.Since(start))
		if status != http.StatusOK {
			l.failed++
			l.failure = fmt.Sprintf("%d: %.200s", status, body)
		}
	}
	return l, nil
}

var (
	contentLength = []byte("content-length:")
	chunkedCoding = []byte("transfer-encoding: chunked")
)

// answer reads an answer of HTTP/1.1. The body is valid until the next one.
func answer(r *bufio.Reader) (status int, body []byte, err error) {
	line, err := r.ReadSlice('\n')
	if err != nil {
		return 0, nil, err
	}
	if len(line) < 12 {
		return 0, nil, fmt.Errorf("answer %q", line)
	}
	if status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return 0, nil, err
	}
	length, chunked := 0, false
	for {
		if line, err = r.ReadSlice('\n'); err != nil {
			return 0, nil, err
		}
		line = bytes.TrimRight(line, "\r\n")
		switch {
		case len(line) == 0 && chunked:
			body, err = chunks(r)
			return status, body, err
		case len(line) == 0:
			body = make([]byte, length)
			_, err = io.ReadFull(r, body)
			return status, body, err
		case len(line) > len(contentLength) && bytes.EqualFold(line[:len(contentLength)], contentLength):
			if length, err = strconv.Atoi(string(bytes.TrimSpace(line[len(contentLength):]))); err != nil {
				return 0, nil, err
			}
		case bytes.EqualFold(line, chunkedCoding):
			chunked = true
		}
	}
}

func chunks(r *bufio.Reader) (body []byte, err error) {
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return nil, err
		}
		n, err := strconv.ParseUint(string(bytes.TrimSpace(line)), 16, 31)
		if err != nil {
			return nil, err
		}
		part := make([]byte, n+2)
		if _, err := io.ReadFull(r, part); err != nil {
			return nil, err
		}
		if n == 0 {
			return body, nil
		}
		body = append(body, part[:n]...)
	}
}
