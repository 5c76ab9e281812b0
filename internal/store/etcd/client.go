package etcd

import (
	"bytes"
	"fmt"
	"os"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// client is a client with what it was made of, of which it reads nothing again: password and authorities. (Our certificate is read at each connection.)
type client struct {
	*clientv3.Client
	watch    pb.WatchClient
	password string
	ca       []byte
}

// connect makes a client of what the files say now.
func (s *Store) connect() (*client, error) {
	c := s.config
	password, ca, err := c.secrets()
	if err != nil {
		return nil, err
	}
	tlsConfig, err := c.tls(ca)
	if err != nil {
		return nil, err
	}
	made, err := clientv3.New(clientv3.Config{
		Endpoints: c.Endpoints, TLS: tlsConfig, Username: c.User, Password: password, DialTimeout: c.Timeout, Logger: zap.NewNop(),
		DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 3 * time.Second, // etcd takes no more than one every 5 s
		MaxUnaryRetries: 1, // the client would repeat a transaction whose context a member gave up, and take its own first try for a conflict
	})
	if err != nil {
		return nil, err
	}
	return &client{made, pb.NewWatchClient(made.ActiveConnection()), password, ca}, nil
}

// secrets reads the files that a client is made of.
func (c Config) secrets() (password string, ca []byte, err error) {
	if password, err = c.password(); err != nil || c.CAFile == "" {
		return password, nil, err
	}
	if ca, err = os.ReadFile(c.CAFile); err != nil {
		return "", nil, fmt.Errorf("read CA file: %w", err)
	}
	return password, ca, nil
}

// renewed says whether there is another client now than the one by which a call failed: the password or the authorities were changed. The old one's
// calls and watches end, and go on by the new one.
func (s *Store) renewed(failed *client) bool {
	s.renew.Lock()
	defer s.renew.Unlock()
	if s.now.Load() != failed {
		return true
	}
	password, ca, err := s.config.secrets()
	if err != nil || s.run.Err() != nil || password == failed.password && bytes.Equal(ca, failed.ca) {
		return false
	}
	next, err := s.connect()
	if err != nil {
		s.config.Log.Warn("new password or authorities of etcd are not taken", "error", err)
		return false
	}
	s.now.Store(next)
	_ = failed.Close() // its connections end, which is all
	s.config.Log.Info("password or authorities of etcd were changed")
	return true
}
