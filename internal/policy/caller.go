// Package policy decides: default deny, and rules that name callers, actions and keys. It knows no store and no network.
package policy

// Kind says how a caller was authenticated.
type Kind string

// The kinds of callers.
const (
	KindInstance Kind = "instance" // certificate of a joined instance (SPIFFE X.509-SVID)
	KindAdmin    Kind = "admin"    // certificate of an operator, made at init
	KindSystem   Kind = "system"   // a loop of the server itself
)

// Caller is who asks, as authn established it. The zero Caller is nobody and is denied everything.
type Caller struct {
	Kind     Kind
	Name     string // unique: the SPIFFE ID of instances, "admin/NAME", "system/NAME"
	SPIFFEID string // spiffe://TRUST-DOMAIN/…, empty for others
	Instance string // the instance's name, empty for others
}

// IsZero says whether nobody was authenticated.
func (c Caller) IsZero() bool { return c.Name == "" }

// Action is what a caller wants to do. Rules name actions.
type Action string

// The actions. Deliver is not implied by Encrypt or Decrypt: it lets the material leave the server.
const (
	ActCreate     Action = "key.create"
	ActShow       Action = "key.show"
	ActEncrypt    Action = "encrypt"
	ActDecrypt    Action = "decrypt"
	ActWrap       Action = "wrap"
	ActUnwrap     Action = "unwrap"
	ActRewrap     Action = "rewrap"
	ActSign       Action = "sign"
	ActVerify     Action = "verify"
	ActMAC        Action = "mac"
	ActDeliver    Action = "deliver"
	ActRotate     Action = "rotate"
	ActRollback   Action = "rollback"
	ActSuspend    Action = "suspend"
	ActCompromise Action = "compromise"
	ActRetire     Action = "retire"
	ActDestroy    Action = "destroy"
	ActCampaign   Action = "campaign"
	ActDataset    Action = "dataset"
	ActCensus     Action = "census"
	ActInstances  Action = "instance.list"
	ActInvite     Action = "instance.invite"
	ActRemove     Action = "instance.remove"
	ActIssue      Action = "token.issue"
	ActAudit      Action = "audit.read"
	ActStatus     Action = "status"
	ActSeal       Action = "seal.change"
	ActMetrics    Action = "server.metrics"
	ActProfile    Action = "server.profile"
)

// Resource is what an action is about. Key is empty for actions that are about no key.
type Resource struct {
	Namespace string
	Key       string
	Labels    map[string]string
}
