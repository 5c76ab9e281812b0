package native

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// strictJSON is Connect's JSON codec, but for unknown fields: a misspelt field is an error, not a request for something else.
type strictJSON struct{ name string }

// Name implements connect.Codec.
func (c strictJSON) Name() string { return c.name }

// Marshal implements connect.Codec.
func (c strictJSON) Marshal(m any) ([]byte, error) {
	p, ok := m.(proto.Message)
	if !ok {
		return nil, errors.New("not a message")
	}
	b, err := protojson.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encode answer: %w", err)
	}
	return b, nil
}

// Unmarshal implements connect.Codec.
func (c strictJSON) Unmarshal(b []byte, m any) error {
	p, ok := m.(proto.Message)
	if !ok {
		return errors.New("not a message")
	}
	if len(b) == 0 {
		return errors.New("empty body; the empty request is {}")
	}
	if err := countJSON(b); err != nil {
		return err
	}
	return protojson.Unmarshal(b, p)
}
