package native

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// maxElements bounds the messages and list elements of one request, at all depths. An empty one is two bytes long and takes a hundred times that in
// memory, before anybody has asked whether the caller may do anything.
const maxElements = 20_000

var errElements = fmt.Errorf("more than %d elements in one message", maxElements)

// boundedProto is Connect's binary codec, which counts before it decodes.
type boundedProto struct{}

// Name implements connect.Codec.
func (boundedProto) Name() string { return "proto" }

// Marshal implements connect.Codec.
func (c boundedProto) Marshal(m any) ([]byte, error) { return c.MarshalAppend(nil, m) }

// MarshalAppend lets Connect use its buffers again.
func (boundedProto) MarshalAppend(dst []byte, m any) ([]byte, error) {
	p, ok := m.(proto.Message)
	if !ok {
		return nil, errors.New("not a message")
	}
	return proto.MarshalOptions{}.MarshalAppend(dst, p)
}

// Unmarshal implements connect.Codec.
func (boundedProto) Unmarshal(b []byte, m any) error {
	p, ok := m.(proto.Message)
	if !ok {
		return errors.New("not a message")
	}
	left := maxElements
	if err := count(b, p.ProtoReflect().Descriptor(), &left); err != nil {
		return err
	}
	return proto.Unmarshal(b, p)
}

// count takes the elements of a message off what is left. It goes no deeper than messages of this protocol nest.
func count(b []byte, d protoreflect.MessageDescriptor, left *int) error {
	for len(b) > 0 {
		n, kind, size := protowire.ConsumeTag(b)
		if size < 0 {
			return protowire.ParseError(size)
		}
		value := protowire.ConsumeFieldValue(n, kind, b[size:])
		if value < 0 {
			return protowire.ParseError(value)
		}
		f := d.Fields().ByNumber(n)
		if *left--; *left < 0 {
			return errElements
		}
		if f != nil && f.Message() != nil && kind == protowire.BytesType {
			inner, _ := protowire.ConsumeBytes(b[size:])
			if err := count(inner, f.Message(), left); err != nil {
				return err
			}
		}
		b = b[size+value:]
	}
	return nil
}

// countJSON refuses a text with more members and elements, without decoding it.
func countJSON(b []byte) error {
	left, quoted := maxElements, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case quoted && c == '\\':
			i++ // what it escapes ends no string
		case c == '"':
			quoted = !quoted
		case !quoted && (c == '{' || c == '[' || c == ','):
			if left--; left < 0 {
				return errElements
			}
		}
	}
	return nil
}
