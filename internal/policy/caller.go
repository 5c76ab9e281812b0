// Package policy decides: default deny, and rules that name callers, actions and keys. It knows no store and no network.
package policy

import "strings"

// Kind says how a caller was authenticated.
type Kind string

// The kinds of callers.
const (
	KindInstance Kind = "instance" // certificate of a joined instance (SPIFFE X.509-SVID)
	KindAdmin    Kind = "admin"    // certificate of an operator, made at init
	KindSystem   Kind = "system"   // a loop of the server itself

	KindCertificate Kind = "certificate" // client certificate of a configured authority
	KindToken       Kind = "token"       // JSON Web Token of a configured issuer
	KindCredential  Kind = "credential"  // ID and secret that an administrator made

	KindVault Kind = "vault" // token of the front end for clients of Vault, with policies of its own
)

// Caller is who asks, as authn established it. The zero Caller is nobody and is denied everything.
type Caller struct {
	Kind     Kind
	Name     string // unique: the SPIFFE ID of instances, else "admin/", "system/", "certificate/", "token/", "credential/" or "vault/" and more
	SPIFFEID string // of rotor's own trust domain: spiffe://TRUST-DOMAIN/…, empty for others
	Instance string // the instance's name, empty for others

	// Attributes are what the credential said of the caller besides its name, for example the repository of a CI job. Rules may demand them.
	// Not to be changed.
	Attributes map[string]string
	Generation uint64 // of the name of an instance or administrator: a removal begins the next
	Session    string // ID of the session that the request showed, empty without one

	// Makers are who made the token that the request showed, who made theirs, and so on: what rules deny to one of them is denied to the caller.
	Makers []Maker

	ACL      *ACL     // what the policies of a KindVault's token allow and deny, beside the rules; nil for the others
	Accessor string   // of that token
	Mount    string   // accessor of where the login was that it comes from; empty if there was none
	Request  *Request // what a front end whose rights are about paths was asked for; nil elsewhere
}

// Maker is a caller who made the token of another one.
type Maker struct {
	Name       string            `json:"name"`
	Attributes map[string]string `json:"attributes,omitempty"`
}

// IsZero says whether nobody was authenticated.
func (c Caller) IsZero() bool { return c.Name == "" }

// Nameable says whether a name is one that a caller from outside could have, now or later.
func Nameable(name string) bool {
	for _, prefix := range []string{"spiffe://", "admin/", "certificate/", "token/", "credential/", "vault/"} {
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			return rest != ""
		}
	}
	return false
}

// Action is what a caller wants to do. Rules name actions.
type Action string

// The actions. Deliver is not implied by Encrypt or Decrypt: it lets the material leave the server.
const (
	ActCreate  Action = "key.create"
	ActShow    Action = "key.show"
	ActEncrypt Action = "encrypt"
	ActDecrypt Action = "decrypt"
	ActWrap    Action = "wrap"
	ActUnwrap  Action = "unwrap"
	ActRewrap  Action = "rewrap"
	ActSign    Action = "sign"
	ActVerify  Action = "verify"
	ActMAC     Action = "mac"
	ActDeliver Action = "deliver"
	ActRotate  Action = "rotate"

	ActEncapsulate Action = "encapsulate"
	ActDecapsulate Action = "decapsulate"
	ActImport      Action = "key.import"
	ActExport      Action = "key.export"
	ActKeyBackup   Action = "key.backup"
	ActKeyRestore  Action = "key.restore"
	ActReadSuspect Action = "decrypt.compromised"
	ActConfigure   Action = "key.configure"
	ActDelete      Action = "key.delete"

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
	ActRotateRoot Action = "server.rotate"
	ActShred      Action = "server.shred"
	ActBackup     Action = "server.backup"
	ActRecover    Action = "server.recover"

	ActGrant            Action = "grant"
	ActGrants           Action = "grant.list"
	ActAdmins           Action = "admin.list"
	ActAdminInvite      Action = "admin.invite"
	ActAdminRemove      Action = "admin.remove"
	ActCredentials      Action = "credential.list"
	ActCredentialCreate Action = "credential.create"
	ActCredentialChange Action = "credential.change"
	ActSessions         Action = "session.list"
	ActSessionRevoke    Action = "session.revoke"

	ActTools           Action = "tools"
	ActPolicies        Action = "policy.list"
	ActPolicyChange    Action = "policy.change"
	ActTokens          Action = "vault.token.list"
	ActTokenCreate     Action = "vault.token.create"
	ActTokenRevoke     Action = "vault.token.revoke"
	ActUnwrapAnswer    Action = "vault.unwrap"
	ActAuthShow        Action = "vault.auth.list"
	ActAuthChange      Action = "vault.auth.change"
	ActMounts          Action = "mount.list"
	ActMountChange     Action = "mount.change"
	ActNamespaces      Action = "namespace.list"
	ActNamespaceCreate Action = "namespace.create"
	ActNamespaceDelete Action = "namespace.delete"
)

// Resource is what an action is about. Key is empty for actions that are about no key.
type Resource struct {
	Namespace string
	Key       string
	Labels    map[string]string

	// Context is the associated data of this one request, by label: what a grant can be bound to. A label that stands twice is left out.
	Context map[string]string
}
