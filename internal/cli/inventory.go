package cli

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/spf13/cobra"

	"github.com/rotorkms/rotor/internal/suite"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// itemView is one key version of an inventory.
type itemView struct {
	Namespace  string `json:"namespace"`
	Key        string `json:"key"`
	KeyID      string `json:"key_id"`
	Version    uint32 `json:"version"`
	State      string `json:"state"`
	Phase      string `json:"phase"`
	Purpose    string `json:"purpose"`
	Custody    string `json:"custody"`
	Algorithm  string `json:"algorithm"`
	Origin     string `json:"origin"`
	Exportable bool   `json:"exportable"`          // versions may leave sealed to a recipient, where rules allow it
	BackedUp   string `json:"backed_up,omitempty"` // the last backup of this key alone
	Created    string `json:"created"`
	Activated  string `json:"activated,omitempty"`
	Originated string `json:"originated,omitempty"`
	Deprecated string `json:"deprecated_after,omitempty"`
	Disallowed string `json:"disallowed_after,omitempty"`
}

// ownView is what rotor uses for itself.
type ownView struct {
	Use        string `json:"use"`
	Algorithm  string `json:"algorithm"`
	Quantum    int    `json:"quantum_category"`
	Disallowed string `json:"disallowed_after,omitempty"`
	Standard   string `json:"standard"`
}

// inventoryView is everything.
type inventoryView struct {
	Keys       []itemView      `json:"keys"`
	Algorithms []algorithmView `json:"algorithms"` // of those keys
	Own        []ownView       `json:"own"`
}

func newInventory(a *app) *cobra.Command {
	var format string
	c := &cobra.Command{
		Use:   "inventory",
		Short: "List every key version and algorithm in use, and until when each is good",
		Long: `List every version of every key that you may see, with its algorithm, its origin, and from when on the algorithm is deprecated or disallowed by the source that
rotor key algorithms names; then what rotor uses for itself. With --format cyclonedx it is a cryptography bill of materials, CycloneDX 1.6 in JSON.`,
		Example: "  rotor inventory\n  rotor inventory --format cyclonedx > cbom.json",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if format != "" && format != "cyclonedx" {
				return usage("--format", "cyclonedx")
			}
			s, err := a.connect()
			if err != nil {
				return err
			}
			defer s.close()
			keys, err := s.listKeys(c.Context(), a.namespace)
			if err != nil {
				return err
			}
			for _, k := range keys {
				if err := s.whole(c.Context(), k); err != nil {
					return err
				}
			}
			v := inventory(keys)
			if format == "cyclonedx" {
				return a.cbom(v)
			}
			return a.showInventory(v)
		},
	}
	c.Flags().StringVar(&format, "format", "", "cyclonedx: a cryptography bill of materials")
	return c
}

func inventory(keys []*rotorv1.Key) (v inventoryView) {
	used := map[suite.Algorithm]bool{}
	for _, k := range keys {
		for _, n := range k.GetVersions() {
			spec, _ := suite.Lookup(suite.Algorithm(n.GetAlgorithm())) // of a newer server it may be unknown; its name stays
			used[spec.ID] = true
			v.Keys = append(v.Keys, itemView{
				Namespace: k.GetNamespace(), Key: k.GetName(), KeyID: k.GetId(), Version: n.GetNumber(), State: n.GetState(), Phase: n.GetPhase(), Purpose: k.GetPurpose(),
				Custody: k.GetCustody(), Algorithm: n.GetAlgorithm(), Origin: or(n.GetOrigin(), "generated"), Exportable: k.GetExportable(), BackedUp: moment(k.GetBackedUp()), Created: moment(n.GetCreated()), Activated: moment(n.GetActivated()),
				Originated: moment(n.GetOriginated()), Deprecated: spec.Sunset.Deprecated, Disallowed: spec.Sunset.Disallowed,
			})
		}
	}
	for _, s := range suite.All() {
		if used[s.ID] {
			v.Algorithms = append(v.Algorithms, viewAlgorithm(s))
		}
	}
	for _, o := range suite.Owns() {
		v.Own = append(v.Own, ownView{o.Use, o.Algorithm, o.Quantum, o.Sunset.Disallowed, o.Source})
	}
	return v
}

func (a *app) showInventory(v inventoryView) error {
	keys := table{header: []string{"key", "version", "algorithm", "state", "phase", "origin", "exportable", "backed up", "deprecated after", "disallowed after"}}
	for _, i := range v.Keys {
		keys.add(i.Key, number(i.Version), i.Algorithm, i.State, i.Phase, i.Origin, yesNo(i.Exportable), or(i.BackedUp, "-"), or(i.Deprecated, "-"), or(i.Disallowed, "-"))
	}
	own := table{header: []string{"rotor's own", "algorithm", "quantum", "disallowed after"}}
	for _, o := range v.Own {
		own.add(o.Use, o.Algorithm, number(o.Quantum), or(o.Disallowed, "-"))
	}
	return a.show(v, keys, own)
}

// cbom prints a bill of materials: a component for each algorithm and for each key version. It has no time and no serial number, so that the same
// inventory is the same document.
func (a *app) cbom(v inventoryView) error {
	b := cdx.NewBOM()
	b.Metadata = &cdx.Metadata{Component: &cdx.Component{Type: cdx.ComponentTypeApplication, BOMRef: "rotor", Name: "rotor"}}
	var parts []cdx.Component
	refs := map[string]bool{}
	for _, s := range v.Algorithms {
		refs[s.ID] = true
		parts = append(parts, algorithmComponent(s))
	}
	for _, o := range v.Own {
		if !refs[o.Algorithm] {
			refs[o.Algorithm] = true
			parts = append(parts, ownComponent(o))
		}
	}
	for _, i := range v.Keys {
		parts = append(parts, keyComponent(i, refs[i.Algorithm]))
	}
	b.Components = &parts
	e := cdx.NewBOMEncoder(a.out, cdx.BOMFileFormatJSON).SetPretty(true)
	if err := e.EncodeVersion(b, cdx.SpecVersion1_6); err != nil {
		return fmt.Errorf("print bill of materials: %w", err)
	}
	return nil
}

func algorithmRef(id string) string { return "algorithm/" + strings.ReplaceAll(id, " ", "-") }

func algorithmComponent(s algorithmView) cdx.Component {
	properties := &cdx.CryptoAlgorithmProperties{
		Primitive: primitive(s), ExecutionEnvironment: cdx.CryptoExecutionEnvironmentSoftwarePlainRAM, ClassicalSecurityLevel: &s.Bits, NistQuantumSecurityLevel: &s.Quantum,
		CryptoFunctions: functions(s),
	}
	facts := []cdx.Property{{Name: "rotor:standard", Value: s.Standard}, {Name: "rotor:status", Value: s.Status}}
	for name, date := range map[string]string{"rotor:deprecated_after": s.Deprecated, "rotor:disallowed_after": s.Disallowed} {
		if date != "" {
			facts = append(facts, cdx.Property{Name: name, Value: date})
		}
	}
	slices.SortFunc(facts, func(a, b cdx.Property) int { return strings.Compare(a.Name, b.Name) })
	return cdx.Component{
		Type: cdx.ComponentTypeCryptographicAsset, BOMRef: algorithmRef(s.ID), Name: s.ID, Properties: &facts,
		CryptoProperties: &cdx.CryptoProperties{AssetType: cdx.CryptoAssetTypeAlgorithm, AlgorithmProperties: properties},
	}
}

func ownComponent(o ownView) cdx.Component {
	properties := &cdx.CryptoAlgorithmProperties{Primitive: cdx.CryptoPrimitiveOther, ExecutionEnvironment: cdx.CryptoExecutionEnvironmentSoftwarePlainRAM, NistQuantumSecurityLevel: &o.Quantum}
	return cdx.Component{
		Type: cdx.ComponentTypeCryptographicAsset, BOMRef: algorithmRef(o.Algorithm), Name: o.Algorithm, Description: o.Use,
		CryptoProperties: &cdx.CryptoProperties{AssetType: cdx.CryptoAssetTypeAlgorithm, AlgorithmProperties: properties},
	}
}

func keyComponent(i itemView, known bool) cdx.Component {
	kind := cdx.RelatedCryptoMaterialTypeSecretKey
	if s, err := suite.Lookup(suite.Algorithm(i.Algorithm)); err == nil && s.KeyBytes == 0 {
		kind = cdx.RelatedCryptoMaterialTypePrivateKey
	}
	name := fmt.Sprintf("%s/%s, version %d", i.Namespace, i.Key, i.Version)
	material := &cdx.RelatedCryptoMaterialProperties{
		Type: kind, ID: fmt.Sprintf("%s/%d", i.KeyID, i.Version), State: cdx.CryptoKeyState(strings.ReplaceAll(i.State, "_", "-")), CreationDate: i.Created, ActivationDate: i.Activated,
	}
	if known {
		material.AlgorithmRef = cdx.BOMReference(algorithmRef(i.Algorithm))
	}
	facts := []cdx.Property{{Name: "rotor:custody", Value: i.Custody}, {Name: "rotor:exportable", Value: yesNo(i.Exportable)}, {Name: "rotor:origin", Value: i.Origin}, {Name: "rotor:phase", Value: i.Phase}, {Name: "rotor:purpose", Value: i.Purpose}}
	sum := sha256.Sum256([]byte(material.ID))
	return cdx.Component{
		Type: cdx.ComponentTypeCryptographicAsset, BOMRef: "key/" + hex.EncodeToString(sum[:8]), Name: name, Properties: &facts,
		CryptoProperties: &cdx.CryptoProperties{AssetType: cdx.CryptoAssetTypeRelatedCryptoMaterial, RelatedCryptoMaterialProperties: material},
	}
}

func primitive(s algorithmView) cdx.CryptoPrimitive {
	switch suite.Purpose(s.Purposes[0]) {
	case suite.Encrypt, suite.Wrap:
		return cdx.CryptoPrimitiveAE
	case suite.Sign:
		return cdx.CryptoPrimitiveSignature
	case suite.MAC:
		return cdx.CryptoPrimitiveMAC
	case suite.Decrypt:
		return cdx.CryptoPrimitivePKE
	case suite.Decapsulate:
		return cdx.CryptoPrimitiveKEM
	case suite.Transit:
		if s.ID == string(suite.HMAC) {
			return cdx.CryptoPrimitiveMAC
		}
		return cdx.CryptoPrimitivePKE
	}
	return cdx.CryptoPrimitiveUnknown
}

func functions(s algorithmView) *[]cdx.CryptoFunction {
	switch suite.Purpose(s.Purposes[0]) {
	case suite.Transit:
		if s.ID == string(suite.HMAC) {
			return &[]cdx.CryptoFunction{cdx.CryptoFunctionKeygen, cdx.CryptoFunctionTag, cdx.CryptoFunctionVerify}
		}
		return &[]cdx.CryptoFunction{cdx.CryptoFunctionKeygen, cdx.CryptoFunctionEncrypt, cdx.CryptoFunctionDecrypt, cdx.CryptoFunctionSign, cdx.CryptoFunctionVerify}
	case suite.Sign:
		return &[]cdx.CryptoFunction{cdx.CryptoFunctionKeygen, cdx.CryptoFunctionSign, cdx.CryptoFunctionVerify}
	case suite.MAC:
		return &[]cdx.CryptoFunction{cdx.CryptoFunctionKeygen, cdx.CryptoFunctionTag, cdx.CryptoFunctionVerify}
	case suite.Decapsulate:
		return &[]cdx.CryptoFunction{cdx.CryptoFunctionKeygen, cdx.CryptoFunctionEncapsulate, cdx.CryptoFunctionDecapsulate}
	}
	return &[]cdx.CryptoFunction{cdx.CryptoFunctionKeygen, cdx.CryptoFunctionEncrypt, cdx.CryptoFunctionDecrypt}
}
