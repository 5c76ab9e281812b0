package kms_test

import (
	"context"
	"errors"
	"maps"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/rotation"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

// about is the key that a call at the door is about.
type about struct {
	kms.Ref
	id keyring.KeyID
}

// call calls a method and returns what it answers but the error, to be compared with nothing.
type call func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (answer any, err error)

// doors has a call of every method of Service that takes a caller. The arguments are ill-formed or of another purpose wherever that is
// possible, as a stranger must not learn that either.
func doors() map[string]call {
	big := make([]byte, kms.MaxMessage+1)
	wrap := func(k about) envelope.Wrap {
		return envelope.Wrap{Type: envelope.WrapKeyFile, KeyID: string(k.id), Version: 9, ProtectTime: time.Unix(1, 0)}
	}
	return map[string]call{
		"Create": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			_, err := s.Create(ctx, c, keyring.Key{Namespace: k.Namespace, Name: k.Name, Purpose: "none"})
			return nil, err
		},
		"Get": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return s.Get(ctx, c, k.Ref)
		},
		"List": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return s.List(ctx, c, k.Namespace)
		},
		"Change": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return s.Change(ctx, c, k.Ref, 9, "no event", "\n")
		},
		"Rotate": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return s.Rotate(ctx, c, k.Ref, 99)
		},
		"RotateTo": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return s.RotateTo(ctx, c, k.Ref, 99, "none")
		},
		"SetSchedule": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return s.SetSchedule(ctx, c, k.Ref, kms.Pace{Schedule: &keyring.Schedule{Every: 1}})
		},
		"Usage": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return s.Usage(ctx, c, k.Ref)
		},
		"Back": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return s.Back(ctx, c, k.Ref, 9, 99)
		},
		"Retire": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return s.Retire(ctx, c, k.Ref, 9, rotation.Census{}, nil, guard.Cond{})
		},
		"Unretire": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return s.Unretire(ctx, c, k.Ref, 9)
		},
		"Approve": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return s.Approve(ctx, c, k.Ref, 9)
		},
		"MayAsk": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return s.MayAsk(ctx, c, policy.ActCampaign, k.Ref)
		},
		"MayStatus": func(ctx context.Context, s *kms.Service, c policy.Caller, _ about) (any, error) {
			return nil, s.MayStatus(ctx, c)
		},
		"Encrypt": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			out, n, err := s.Encrypt(ctx, c, k.Ref, big, nil)
			return [2]any{out, n}, err
		},
		"Decrypt": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			out, n, err := s.Decrypt(ctx, c, k.Ref, nil, nil)
			return [2]any{out, n}, err
		},
		"Sign": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			out, v, err := s.Sign(ctx, c, k.Ref, big)
			return [2]any{out, v}, err
		},
		"SignToken": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			msg, sig, err := s.SignToken(ctx, c, k.Ref, func(keyring.Key, keyring.Version) ([]byte, error) {
				return nil, errors.New("asked for the input of a token")
			})
			return [2]any{msg, sig}, err
		},
		"Verify": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return nil, s.Verify(ctx, c, k.Ref, 9, big, nil)
		},
		"Authenticate": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			out, n, err := s.Authenticate(ctx, c, k.Ref, big)
			return [2]any{out, n}, err
		},
		"MAC": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			out, n, err := s.MAC(ctx, c, k.Ref, big)
			return [2]any{out, n}, err
		},
		"Wrap": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return s.Wrap(ctx, c, k.Ref, secret.Bytes{}, nil)
		},
		"Unwrap": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			dek, err := s.Unwrap(ctx, c, wrap(k), nil)
			return dek.Len(), err
		},
		"DecryptForeign": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return s.DecryptForeign(ctx, c, k.Ref, 9, nil)
		},
		"Encapsulate": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			shared, ct, n, err := s.Encapsulate(ctx, c, k.Ref)
			return [3]any{shared.Len(), ct, n}, err
		},
		"Decapsulate": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			shared, err := s.Decapsulate(ctx, c, k.Ref, 9, nil)
			return shared.Len(), err
		},
		"PrepareImport": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			w, err := s.PrepareImport(ctx, c, k.Ref, "none")
			return w.Public, err
		},
		"Import": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			_, err := s.Import(ctx, c, keyring.Key{Namespace: k.Namespace, Name: k.Name, Purpose: "none"}, kms.Imported{})
			return nil, err
		},
		"ImportVersion": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return s.ImportVersion(ctx, c, k.Ref, kms.Imported{})
		},
		"Export": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return s.Export(ctx, c, k.Ref, 9, "none", nil)
		},
		"Certificate": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			b, err := s.Certificate(ctx, c, k.Ref, 1)
			return b, err
		},
		"DecryptCompromised": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			out, n, is, err := s.DecryptCompromised(ctx, c, k.Ref, nil, nil)
			return [3]any{out, n, is}, err
		},
		"UnwrapCompromised": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			dek, is, err := s.UnwrapCompromised(ctx, c, wrap(k), nil)
			return [2]any{dek.Len(), is}, err
		},
		"Backup": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			b, err := s.Backup(ctx, c, k.Ref, kms.BackupFor{})
			return b.Blob, err
		},
		"Restore": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			r, err := s.Restore(ctx, c, kms.Restore{Namespace: k.Namespace, Name: k.Name, Blob: []byte("none")})
			return r.Key, err
		},
		"TransitCreate": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			_, created, err := s.TransitCreate(ctx, c, kms.TransitSpec{Ref: k.Ref, Algorithm: "none"})
			return created, err
		},
		"TransitGet": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return s.TransitGet(ctx, c, k.Ref)
		},
		"TransitList": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return s.TransitList(ctx, c, k.Namespace, k.Name)
		},
		"TransitConfigure": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return s.TransitConfigure(ctx, c, k.Ref, kms.TransitChange{MinDecryption: new(uint32(9))})
		},
		"TransitTrim": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return s.TransitTrim(ctx, c, k.Ref, 9)
		},
		"TransitRotate": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return s.TransitRotate(ctx, c, k.Ref)
		},
		"TransitSoftDelete": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return s.TransitSoftDelete(ctx, c, k.Ref)
		},
		"TransitUnsoftDelete": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return s.TransitUnsoftDelete(ctx, c, k.Ref)
		},
		"TransitDelete": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return s.TransitDelete(ctx, c, k.Ref)
		},
		"TransitEncrypt": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return s.TransitEncrypt(ctx, c, k.Ref, make([]kms.TransitItem, kms.MaxBatch+1))
		},
		"TransitDecrypt": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return s.TransitDecrypt(ctx, c, k.Ref, make([]kms.TransitItem, 1))
		},
		"TransitRewrap": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return s.TransitRewrap(ctx, c, k.Ref, make([]kms.TransitItem, 1))
		},
		"TransitDataKey": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			plain, ct, n, err := s.TransitDataKey(ctx, c, k.Ref, 9, kms.TransitItem{}, true)
			return [3]any{plain.Len(), ct, n}, err
		},
		"TransitHMAC": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return s.TransitHMAC(ctx, c, k.Ref, make([]kms.TransitMessage, 1))
		},
		"TransitVerifyHMAC": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return s.TransitVerifyHMAC(ctx, c, k.Ref, make([]kms.TransitMessage, 1))
		},
		"TransitSign": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return s.TransitSign(ctx, c, k.Ref, make([]kms.TransitMessage, 1))
		},
		"TransitVerify": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return s.TransitVerify(ctx, c, k.Ref, make([]kms.TransitMessage, 1))
		},
		"TransitPublic": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			m, err := s.TransitPublic(ctx, c, k.Ref, nil)
			return len(m), err
		},
		"TransitCSR": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return s.TransitCSR(ctx, c, k.Ref, 9, "none")
		},
		"TransitSetCertificate": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return s.TransitSetCertificate(ctx, c, k.Ref, 9, "none")
		},
		"TransitDeriveKey": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return s.TransitDeriveKey(ctx, c, kms.Agreement{Base: k.Ref, Version: 9, Caller: c}, kms.TransitSpec{Ref: k.Ref, Algorithm: "none"})
		},
		"TransitWrappingKey": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return s.TransitWrappingKey(ctx, c, k.Namespace, k.Name)
		},
		"TransitImport": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return s.TransitImport(ctx, c, kms.TransitSpec{Ref: k.Ref, Algorithm: "none"}, kms.TransitImported{})
		},
		"TransitImportVersion": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return s.TransitImportVersion(ctx, c, k.Ref, kms.TransitImported{}, 9)
		},
		"TransitExport": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			m, err := s.TransitExport(ctx, c, k.Ref, "none", 9)
			return len(m), err
		},
		"TransitBYOK": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			m, err := s.TransitBYOK(ctx, c, k.Ref, k.Ref, 9, 0)
			return len(m), err
		},
		"TransitBackup": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			b, err := s.TransitBackup(ctx, c, k.Ref)
			return b.Len(), err
		},
		"TransitRestore": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			mount, name, ok := keyring.CutMount(k.Name)
			if !ok {
				mount, name = k.Name, "k" // the right is asked for by the whole name
			}
			return s.TransitRestore(ctx, c, kms.TransitRestoring{Namespace: k.Namespace, Mount: mount, Name: name, Force: true})
		},
		"TransitClear": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return nil, s.TransitClear(ctx, c, k.Namespace, k.Name)
		},
		"TransitMove": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return nil, s.TransitMove(ctx, c, k.Namespace, k.Name, k.Name+"2")
		},
		"TransitUndelete": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			return s.TransitUndelete(ctx, c, k.Ref, "")
		},
		"Rewrap": func(ctx context.Context, s *kms.Service, c policy.Caller, k about) (any, error) {
			_, changed, err := s.Rewrap(ctx, c, wrap(k), nil)
			return changed, err
		},
	}
}

// empty says whether an answer tells nothing.
func empty(answer any) bool {
	v := reflect.ValueOf(answer)
	switch {
	case answer == nil:
		return true
	case v.Kind() == reflect.Array:
		for i := range v.Len() {
			if !empty(v.Index(i).Interface()) {
				return false
			}
		}
		return true
	case v.Kind() == reflect.Slice:
		return v.Len() == 0
	}
	return v.IsZero()
}

func TestEveryMethodWithACallerIsInTheTable(t *testing.T) {
	calls, caller := doors(), reflect.TypeFor[policy.Caller]()
	for m := range reflect.TypeFor[*kms.Service]().Methods() {
		for in := range m.Type.Ins() {
			if in == caller && calls[m.Name] == nil {
				t.Errorf("%s takes a caller and is in no test of the door", m.Name)
			}
		}
	}
}

func TestDoor(t *testing.T) {
	w := newWorld(t)
	purposes := []suite.Purpose{suite.Encrypt, suite.Sign, suite.MAC, suite.Wrap, suite.Transit}
	missing := about{kms.Ref{Namespace: "default", Name: "missing"}, keyring.KeyID(strings.Repeat("0", 32))}
	for _, p := range purposes {
		name := "forbidden-" + string(p)
		if p == suite.Transit {
			name = "mount/forbidden"
		}
		forbid := w.create(name, p)
		forbidden := about{w.ref(forbid), forbid.ID}
		for name, call := range doors() {
			t.Run(name+" "+string(p), func(t *testing.T) {
				before := w.raw()
				answer, err := call(t.Context(), w.Service, policy.Caller{}, forbidden)
				wantCode(t, err, fault.Unauthenticated)
				if !empty(answer) {
					t.Errorf("nobody learns %v", answer)
				}
				refusals := w.refused()
				for _, c := range []policy.Caller{mallory, dave} {
					answer, err := call(t.Context(), w.Service, c, forbidden)
					if !empty(answer) {
						t.Errorf("%s learns %v", c.Name, answer)
					}
					if name == "List" {
						wantCode(t, err, "")
						continue
					}
					wantCode(t, err, fault.Denied)
					_, other := call(t.Context(), w.Service, c, missing)
					if got, want := seen(err, forbidden.asked(name)), seen(other, missing.asked(name)); got != want {
						t.Errorf("%s sees %q of a forbidden key, %q of a missing one", c.Name, got, want)
					}
				}
				if !maps.Equal(before, w.raw()) {
					t.Error("a refused call changed the store")
				}
				if name != "List" && name != "TransitList" && name != "TransitWrappingKey" && name != "TransitClear" && name != "TransitMove" && name != "TransitRestore" && name != "MayStatus" && !w.noted(refusals, forbidden.Name) {
					t.Error("no entry tells of the refusal")
				}
			})
		}
	}
}

// refused counts the refusals in the log by caller and key.
func (w *world) refused() map[[2]string]int {
	w.t.Helper()
	l := must(w.guard.ReadLog(w.t.Context(), alice))(w.t)
	if err := l.Settled(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	err := l.Tail(w.t.Context(), w.refusals.read, false, func(i int64, b []byte) error {
		e, err := audit.Decode(b)
		if e.Outcome == "refused" {
			w.refusals.by[[2]string{e.Caller, e.Key}]++
		}
		w.refusals.read = i + 1
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return maps.Clone(w.refusals.by)
}

// noted says whether refusals of mallory and dave on a key came to the log since. Authenticate is Sign to those who may not, and what
// was refused within the minute before is only counted.
func (w *world) noted(before map[[2]string]int, key string) bool {
	now := w.refused()
	w.pass(time.Minute)
	for _, c := range []policy.Caller{mallory, dave} {
		if now[[2]string{c.Name, key}] <= before[[2]string{c.Name, key}] {
			return false
		}
	}
	return true
}

// asked is what a caller of a method names the key by.
func (k about) asked(method string) string {
	if method == "Unwrap" || method == "Rewrap" {
		return string(k.id)
	}
	if _, _, mounted := keyring.CutMount(k.Name); method == "TransitRestore" && !mounted {
		return k.Name + "/k"
	}
	return k.Name
}

// seen is all that a caller sees of an error, with what it named the key by taken out.
func seen(err error, asked string) string {
	var f *fault.Error
	errors.As(err, &f)
	text := err.Error() + " / " + f.HintText()
	return strings.ReplaceAll(text, asked, "KEY")
}

func TestListShowsOnlyWhatTheCallerMaySee(t *testing.T) {
	w := newWorld(t)
	w.create("b", suite.Encrypt)
	mine := w.create("a", suite.Encrypt, func(k *keyring.Key) { k.Labels = map[string]string{"team": "dave"} })
	w.create("elsewhere", suite.Encrypt, func(k *keyring.Key) { k.Namespace = "other" })
	names := func(c policy.Caller) (out []string) {
		for _, k := range must(w.List(t.Context(), c, "default"))(t) {
			out = append(out, k.Name)
		}
		return out
	}
	if got := names(alice); !reflect.DeepEqual(got, []string{"a", "b"}) {
		t.Errorf("alice sees %v", got)
	}
	if got := names(dave); !reflect.DeepEqual(got, []string{"a"}) {
		t.Errorf("dave sees %v", got)
	}
	if got := must(w.Get(t.Context(), dave, w.ref(mine)))(t); got.ID != mine.ID {
		t.Errorf("dave gets %v", got.ID)
	}
	_, err := w.Get(t.Context(), alice, kms.Ref{Namespace: "default", Name: "none"})
	wantCode(t, err, fault.NotFound)
}
