package fault

// Code names a kind of failure. Codes are a public promise: they are never renamed or reused.
type Code string

// The codes. Texts and exit classes stand in the table below.
const (
	Internal           Code = "internal"
	Invalid            Code = "invalid"
	NotFound           Code = "not_found"
	Exists             Code = "exists"
	Denied             Code = "denied"
	Unauthenticated    Code = "unauthenticated"
	Conflict           Code = "conflict"
	Unavailable        Code = "unavailable"
	OutcomeUnknown     Code = "outcome_unknown"
	TooLarge           Code = "too_large"
	Canceled           Code = "canceled"
	DecryptFailed      Code = "decrypt_failed"
	UnknownVersion     Code = "unknown_version"
	VersionDestroyed   Code = "version_destroyed"
	VersionRetired     Code = "version_retired"
	WrongState         Code = "wrong_state"
	PeriodOver         Code = "period_over"
	VolumeOver         Code = "volume_over"
	WrongPurpose       Code = "wrong_purpose"
	WrongNamespace     Code = "wrong_namespace"
	LeaseOver          Code = "lease_over"
	Stale              Code = "stale"
	IdentityInUse      Code = "identity_in_use"
	BelowFloor         Code = "below_floor"
	InUse              Code = "in_use"
	GateClosed         Code = "gate_closed"
	RotationInFlight   Code = "rotation_in_flight"
	TokenInvalid       Code = "token_invalid"
	TokenExpired       Code = "token_expired"
	TokenNotYetValid   Code = "token_not_yet_valid"
	TokenAudience      Code = "token_audience"
	TokenAlgorithm     Code = "token_algorithm"
	UnknownKeyID       Code = "unknown_key_id"
	JoinTokenUsed      Code = "join_token_used"
	JoinTokenExpired   Code = "join_token_expired"
	MalformedFile      Code = "malformed_file"
	TruncatedFile      Code = "truncated_file"
	RecordTampered     Code = "record_tampered"
	RecordReplayed     Code = "record_replayed"
	StoreLocked        Code = "store_locked"
	StoreNewer         Code = "store_newer"
	StoreCorrupt       Code = "store_corrupt"
	StoreMoved         Code = "store_moved"
	StoreIncomplete    Code = "store_incomplete"
	SealWrong          Code = "seal_wrong"
	Sealed             Code = "sealed"
	Recovery           Code = "recovery"
	ShareWrong         Code = "share_wrong"
	ShareForeign       Code = "share_foreign"
	ShareDuplicate     Code = "share_duplicate"
	SnapshotRefused    Code = "snapshot_refused"
	AuditBroken        Code = "audit_broken"
	AlgorithmForbidden Code = "algorithm_forbidden"
	DiskFull           Code = "disk_full"
	RateLimited        Code = "rate_limited"
	QuotaReached       Code = "quota_reached"
	NotExportable      Code = "not_exportable"
	NotBuilt           Code = "not_built"
	BackupForeign      Code = "backup_foreign"
)

// Text explains a code: what it means, what to do, and the exit status of the command line (conventions: 1 failed, 2 usage,
// 4 not authenticated or authorised, 5 integrity failure).
type Text struct {
	Meaning string
	Hint    string
	Exit    int
}

// Explain returns the text of a code; the zero Text for one that is not in the list.
func Explain(c Code) Text { return texts[c] }

// Codes returns every code, in no particular order.
func Codes() []Code {
	all := make([]Code, 0, len(texts))
	for c := range texts {
		all = append(all, c)
	}
	return all
}

var texts = map[Code]Text{
	Internal:           {"something went wrong inside rotor", "look into the server's log at the time of the request", 1},
	Invalid:            {"the request is not valid", "correct the named argument", 2},
	NotFound:           {"there is no such thing, or you may not know of it", "check the name and your rules (rotor key list)", 1},
	Exists:             {"it exists already", "choose another name, or --force where the command has it", 1},
	Denied:             {"no rule allows this", "ask for a rule that names you, the action and the key", 4},
	Unauthenticated:    {"the caller is not known", "join first, or renew the certificate", 4},
	Conflict:           {"somebody else changed it meanwhile", "read it again and repeat the command", 1},
	Unavailable:        {"it cannot be reached now", "check address and network, then try again", 1},
	OutcomeUnknown:     {"whether the change was made is unknown", "read the state before you repeat the change", 1},
	TooLarge:           {"it passes a limit", "make it smaller; limits are in docs/reference", 2},
	Canceled:           {"the request was given up", "repeat it", 1},
	DecryptFailed:      {"the ciphertext does not open", "it was changed, or made for another key, namespace or context", 5},
	UnknownVersion:     {"no version of this key made it", "check that the ciphertext is of this key", 1},
	VersionDestroyed:   {"the key version was destroyed", "there is no way back; restore the plaintext from elsewhere", 1},
	VersionRetired:     {"the key version was retired", "rotor key retire NAME VERSION --undo brings it back until it is destroyed", 1},
	WrongState:         {"the key version's state does not allow this", "see the version's state with rotor key show", 1},
	PeriodOver:         {"the cryptoperiod is over", "rotate the key", 1},
	VolumeOver:         {"the version has protected as often as its algorithm allows", "rotate the key", 1},
	WrongPurpose:       {"the key is for another purpose", "use a key made for this purpose", 2},
	WrongNamespace:     {"the ciphertext is of another namespace", "call the namespace that it was made in", 5},
	LeaseOver:          {"the instance's lease is over, so it may not use keys", "it joins again by itself once it reaches the server", 1},
	Stale:              {"the instance has not heard from the server for too long", "reconnect it to the server", 1},
	IdentityInUse:      {"another process uses this identity", "stop the other process or join this one with an identity of its own", 1},
	BelowFloor:         {"the data set takes no ciphertext of this version any more", "encrypt again with the primary version", 1},
	InUse:              {"it is still in use", "see the census and wait, or move the data with a campaign", 1},
	GateClosed:         {"the condition for this step does not hold yet", "rotor status names who or what is missing", 1},
	RotationInFlight:   {"the key is being rotated", "wait for it, or roll it back", 1},
	TokenInvalid:       {"the token is malformed or its signature is wrong", "get a new token", 4},
	TokenExpired:       {"the token is expired", "get a new token", 4},
	TokenNotYetValid:   {"the token is not valid yet", "check the clocks", 4},
	TokenAudience:      {"the token is for another audience", "get a token for this audience", 4},
	TokenAlgorithm:     {"the token's algorithm is not its key's", "get a new token", 4},
	UnknownKeyID:       {"no published key has this kid", "refresh the JWKS; if it stays unknown the token is foreign", 4},
	JoinTokenUsed:      {"the join token was used with another key", "make a new join token", 4},
	JoinTokenExpired:   {"the join token is expired", "make a new join token", 4},
	MalformedFile:      {"this is not a rotor file, or its header is damaged", "check the path; both header slots failed", 5},
	TruncatedFile:      {"the file is shorter than its header says", "fetch it again", 5},
	RecordTampered:     {"a record in the store was changed from outside", "stop, keep the store as evidence, restore a backup", 5},
	RecordReplayed:     {"a record in the store is older than the audit log says", "stop, keep the store as evidence, restore a backup", 5},
	StoreLocked:        {"another process has the store open", "stop the other server first", 1},
	StoreNewer:         {"the servers of this store have moved on to a format that this build does not know", "run a newer build", 1},
	StoreCorrupt:       {"the store's file is damaged", "restore a backup", 5},
	StoreMoved:         {"the store has moved to another engine, or is being moved", "let the configuration name the new store; see rotor server copy", 1},
	StoreIncomplete:    {"the store is the target of a copy that has not ended", "run the same rotor server copy again", 1},
	SealWrong:          {"the seal does not open this store", "use the key file that the store was made with", 5},
	Sealed:             {"the server is sealed and answers nothing else", "bring the custodians' shares, or make its root of trust reachable", 1},
	Recovery:           {"the store is not the one that it was, so the server serves nothing", "read docs/runbooks/recovery-mode.md; rotor server recover", 5},
	ShareWrong:         {"the share is not right", "copy it again from what was printed", 2},
	ShareForeign:       {"the share is of another set", "look for the share of the set that is named", 2},
	ShareDuplicate:     {"this share is there already", "another custodian's share is needed", 2},
	SnapshotRefused:    {"the snapshot is not newer, not signed by the server or drops a version", "an intermediary tampers, or the server was set back", 5},
	AuditBroken:        {"the audit log does not verify", "keep it as evidence and compare with another copy", 5},
	AlgorithmForbidden: {"the algorithm is not allowed", "see rotor key algorithms", 2},
	BackupForeign:      {"nothing shows that the backup of the key is of this cluster", "if you know where it is from, import it with rotor key restore --import", 1},
	NotExportable:      {"the key was not made to be exported", "only a new key made with --exportable can be", 1},
	NotBuilt:           {"this build of rotor was made without it", "build it with the tag that the documentation of the feature names", 1},
	RateLimited:        {"there are too many requests", "wait, and ask less often; limits are in the server's configuration", 1},
	QuotaReached:       {"there is no room for another one", "remove what is not needed, or ask the operator for a larger quota", 1},
	DiskFull:           {"the disk is full", "free space and repeat; the old file is unchanged", 1},
}
