package native

import (
	"bytes"
	"errors"
	"runtime"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/rotorkms/rotor/internal/wire"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// TestNoRequestGrowsInMemory: the smallest elements that a request has room for take little more than its length, whatever list they are in.
func TestNoRequestGrowsInMemory(t *testing.T) {
	empty := func(field protowire.Number) []byte {
		one := protowire.AppendBytes(protowire.AppendTag(nil, field, protowire.BytesType), nil)
		return bytes.Repeat(one, wire.MaxMessage/len(one)-16)
	}
	parts := (&rotorv1.EncryptRequest{}).ProtoReflect().Descriptor().Fields().ByName("parts").Number()
	versions := (&rotorv1.Key{}).ProtoReflect().Descriptor().Fields().ByName("versions").Number()
	key := (&rotorv1.CreateRequest{}).ProtoReflect().Descriptor().Fields().ByName("key").Number()
	for what, c := range map[string]struct {
		codec interface{ Unmarshal([]byte, any) error }
		to    proto.Message
		b     []byte
	}{
		"parts":    {boundedProto{}, &rotorv1.EncryptRequest{}, empty(parts)},
		"versions": {boundedProto{}, &rotorv1.CreateRequest{}, protowire.AppendBytes(protowire.AppendTag(nil, key, protowire.BytesType), empty(versions))},
		"JSON":     {strictJSON{"json"}, &rotorv1.CreateRequest{}, []byte(`{"key":{"versions":[` + strings.Repeat("{},", wire.MaxMessage/3-20) + `{}]}}`)},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := c.codec.Unmarshal(c.b, c.to)
		runtime.ReadMemStats(&after)
		if grown := (after.TotalAlloc - before.TotalAlloc) >> 20; err == nil || grown > 16 {
			t.Errorf("%s: %d MiB for a request of %d MiB: %v", what, grown, len(c.b)>>20, err)
		}
	}
	text := `{"a":"` + strings.Repeat(`{,[\"`, maxElements) + `","b":[1,2]}`
	if err := countJSON([]byte(text)); err != nil {
		t.Errorf("what stands in a text: %v", err)
	}
	most := &rotorv1.EncryptRequest{Plaintext: make([]byte, 1<<20)}
	for range 1000 {
		most.Parts = append(most.Parts, &rotorv1.Part{Label: "a", Value: []byte("b")})
	}
	b, err := proto.Marshal(most)
	if err != nil {
		t.Fatal(err)
	}
	var got rotorv1.EncryptRequest
	if err := (boundedProto{}).Unmarshal(b, &got); err != nil || !proto.Equal(most, &got) {
		t.Errorf("a large request in order: %v", err)
	}
}

// FuzzBounded: what is let through decodes as it does without a bound, and nothing else is refused but what has too many elements.
func FuzzBounded(f *testing.F) {
	b, err := proto.Marshal(&rotorv1.CreateRequest{Key: &rotorv1.Key{Name: "a", Labels: map[string]string{"b": "c"}, Versions: []*rotorv1.Version{{Number: 1}}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{0x0b, 0x0c})
	f.Fuzz(func(t *testing.T, b []byte) {
		var bounded, plain rotorv1.CreateRequest
		got, want := boundedProto{}.Unmarshal(b, &bounded), proto.Unmarshal(b, &plain)
		if errors.Is(got, errElements) {
			return
		}
		if (got == nil) != (want == nil) || got == nil && !proto.Equal(&bounded, &plain) {
			t.Errorf("%v, without a bound %v", got, want)
		}
	})
}
