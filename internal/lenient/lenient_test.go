package lenient_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/lenient"
)

// TestValues: what a real Vault takes of each type, and shows (TestVaultPeerValues asks one), and what it refuses.
func TestValues(t *testing.T) {
	const refused = "refused"
	for kind, values := range map[string]map[string]string{
		"int":      {`3`: `3`, `"3"`: `3`, `""`: `0`, `-1`: `-1`, `"0x10"`: `16`, `"010"`: `8`, `true`: `1`, `false`: `0`, `1.0`: refused, `1e2`: refused, `"x"`: refused, `null`: `0`, `" 3 "`: refused, `[3]`: refused, `{}`: refused, `99999999999999999999`: refused},
		"bool":     {`true`: `true`, `"T"`: `true`, `1`: `true`, `"0"`: `false`, `""`: `false`, `2`: refused, `1.0`: refused, `"yes"`: refused, `[true]`: refused},
		"duration": {`60`: `60`, `"1h30m"`: `5400`, `"2d"`: `172800`, `""`: `0`, `"1.5h"`: `5400`, `1.5`: refused, `" 60 "`: refused, `-1`: refused, `"-1h"`: refused, `"1d1h"`: refused, `"d"`: refused, `true`: refused, `"NaN"`: refused, `3153600000`: `3153600000`, `3153600001`: refused, `"36501d"`: refused, `18446744074`: refused, `9223372036854775807`: refused, `"106751991167300d"`: refused},
		"text":     {`"a"`: `"a"`, `1.0`: `"1.0"`, `true`: `"1"`, `[]`: refused, `{}`: refused},
		"list":     {`"a, b"`: `["a","b"]`, `["a,b"," c "]`: `["a,b","c"]`, `"a,,b"`: `["a","","b"]`, `[1,true,null]`: `["1","1",""]`, `""`: `[]`, `null`: `[]`, `7`: `["7"]`, `{}`: refused, `[["a"]]`: refused, `"` + strings.Repeat(",", 10_000) + `"`: refused},
		"map":      {`{"a":1,"b":true}`: `{"a":"1","b":"1"}`, `"{\"a\":\"b\"}"`: `{"a":"b"}`, `"a=b,c=d=e"`: `{"a":"b","c":"d=e"}`, `["a=b,c"]`: `{"a":"b,c"}`, `""`: `{}`, `null`: `{}`, `"a"`: refused, `{"a":["b"]}`: refused, `7`: refused},
	} {
		for in, want := range values {
			v := newOf(kind)
			err := json.Unmarshal([]byte(in), v)
			b, _ := json.Marshal(v)
			if got := string(b); err == nil && got != want || (err != nil) != (want == refused) {
				t.Errorf("%s %.40s: %.40s, %v", kind, in, got, err)
			}
		}
	}
}

// newOf is a value of a type, with another null than it is read from.
func newOf(kind string) any {
	return map[string]any{"int": new(lenient.Int), "bool": new(lenient.Bool), "duration": new(lenient.Duration), "text": new(lenient.Text), "list": new(lenient.List), "map": new(lenient.Map)}[kind]
}

// FuzzValues: what is read is read again from how it is shown; a time is within its bounds; and a text that stands for a value is alike to how that is written, so that
// a policy that denies it cannot be got around by another spelling.
func FuzzValues(f *testing.F) {
	for _, s := range []string{`60`, `"1h"`, `"0x10"`, `true`, `"a,b"`, `["a", 1]`, `{"a":"b"}`, `"{\"a\":1}"`, `"a=b"`, `null`, `"-0"`, `1e9`, `""`, `"1_0"`, `"t"`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, kind := range []string{"int", "bool", "duration", "text", "list", "map"} {
			v, again := newOf(kind), newOf(kind)
			if json.Unmarshal(b, v) != nil {
				continue
			}
			if d, ok := v.(*lenient.Duration); ok && (*d < 0 || time.Duration(*d) > lenient.MaxTime) {
				t.Fatalf("%q is %v", b, *d)
			} else if ok {
				*d -= *d % lenient.Duration(time.Second) // it is shown in seconds
			}
			shown, err := json.Marshal(v)
			if err != nil || json.Unmarshal(shown, again) != nil || !reflect.DeepEqual(v, again) {
				t.Fatalf("%s %q: %s (%v) is %v again", kind, b, shown, err, again)
			}
			var s string
			if json.Unmarshal(b, &s) != nil || s == "" || strings.HasPrefix(string(b), "null") {
				continue
			}
			switch v := v.(type) {
			case *lenient.Int, *lenient.Bool:
				if !lenient.Alike(string(shown), s) {
					t.Errorf("%q is %s, and not alike", s, shown)
				}
			case *lenient.Duration:
				if whole, err := lenient.ParseDuration(s); err == nil && whole == time.Duration(*v) && !lenient.Alike(string(shown), s) {
					t.Errorf("%q is %s s, and not alike", s, shown)
				}
			}
		}
	})
}
