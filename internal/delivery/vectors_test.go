package delivery_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"testing"

	"github.com/rotorkms/rotor/internal/delivery"
	"github.com/rotorkms/rotor/internal/identity"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/secret"
)

var updateVectors = flag.Bool("update", false, "write the vectors anew")

const vectorFile = "../../spec/vectors/delivery.json"

// deliveryVectors is spec/vectors/delivery.json; bytes are hex.
type deliveryVectors struct {
	Comment string           `json:"comment"`
	Cases   []deliveryVector `json:"cases"`
}

type deliveryVector struct {
	Name        string            `json:"name"`
	Cluster     string            `json:"cluster"`
	Instance    string            `json:"instance"`
	Incarnation string            `json:"incarnation"`
	Session     string            `json:"session"`
	Key         string            `json:"key_id"`
	Epoch       [2]uint64         `json:"epoch"` // incarnation of the cluster, counter
	Material    []versionMaterial `json:"material"`
	Public      string            `json:"public"`      // delivery key
	HelloInput  string            `json:"hello_input"` // what the instance signs
	ServerInput string            `json:"server_input"`
	Proof       string            `json:"proof"`
}

type versionMaterial struct {
	Version uint32        `json:"version"`
	Phase   keyring.Phase `json:"phase"`
	Bytes   string        `json:"bytes"`
}

func fromHex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// compute fills in what follows from the rest.
func (v deliveryVector) compute(t *testing.T) deliveryVector {
	t.Helper()
	a := delivery.Address{Cluster: v.Cluster, Instance: v.Instance, Incarnation: fromHex(t, v.Incarnation), Session: fromHex(t, v.Session)}
	s := keyring.Snapshot{Key: keyring.KeyID(v.Key), Custody: keyring.CustodyFleet, Epoch: keyring.Epoch{Incarnation: uint32(v.Epoch[0]), Counter: v.Epoch[1]}}
	material := map[uint32][]byte{}
	for _, m := range v.Material {
		s.Versions = append(s.Versions, keyring.SnapshotVersion{Number: m.Version, Handle: m.Version, Phase: m.Phase})
		material[m.Version] = fromHex(t, m.Bytes)
	}
	proof, err := delivery.Proof(a, s, func(n uint32) (secret.Bytes, bool) { return secret.Copy(material[n]), len(material[n]) > 0 })
	if err != nil {
		t.Fatal(err)
	}
	v.Proof = hex.EncodeToString(proof)
	v.HelloInput = hex.EncodeToString(delivery.HelloInput(a, fromHex(t, v.Public)))
	v.ServerInput = hex.EncodeToString(identity.ServerInput(delivery.SnapshotDomain, []byte("body")))
	return v
}

func makeDeliveryVectors(t *testing.T) (all []deliveryVector) {
	base := deliveryVector{
		Cluster: "c1", Instance: "worker-7", Incarnation: hex.EncodeToString(bytes.Repeat([]byte{1}, 16)), Session: hex.EncodeToString(bytes.Repeat([]byte{2}, 16)),
		Key: "000102030405060708090a0b0c0d0e0f", Epoch: [2]uint64{1, 5}, Public: "aabbcc",
	}
	key := func(b byte) string { return hex.EncodeToString(bytes.Repeat([]byte{b}, 32)) }
	add := func(name string, change func(*deliveryVector)) {
		v := base
		v.Name = name
		change(&v)
		all = append(all, v.compute(t))
	}
	add("no material", func(*deliveryVector) {})
	add("one version", func(v *deliveryVector) { v.Material = []versionMaterial{{1, keyring.PhasePrimary, key(7)}} })
	add("three live versions, a retired and a destroyed one", func(v *deliveryVector) {
		v.Material = []versionMaterial{
			{1, keyring.PhaseDestroyed, ""}, {2, keyring.PhaseRetired, ""}, {3, keyring.PhaseDecryptOnly, key(3)}, {4, keyring.PhasePrimary, key(4)},
			{5, keyring.PhaseDistributed, key(5)},
		}
	})
	add("other epoch", func(v *deliveryVector) {
		v.Material, v.Epoch = []versionMaterial{{1, keyring.PhasePrimary, key(7)}}, [2]uint64{2, 1 << 40}
	})
	return all
}

func TestDeliveryVectors(t *testing.T) {
	if *updateVectors {
		b, err := json.MarshalIndent(deliveryVectors{"spec/delivery.md. Bytes in hex; server_input is of the message \"body\" in the domain rotor/snapshot/2.", makeDeliveryVectors(t)}, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(vectorFile, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	var all deliveryVectors
	if err := json.Unmarshal(b, &all); err != nil || len(all.Cases) < 4 {
		t.Fatalf("%d cases, %v", len(all.Cases), err)
	}
	for _, v := range all.Cases {
		got := v.compute(t)
		if got.Proof != v.Proof || got.HelloInput != v.HelloInput || got.ServerInput != v.ServerInput {
			t.Errorf("%s: proof %s, hello %s, server %s", v.Name, got.Proof, got.HelloInput, got.ServerInput)
		}
	}
}
