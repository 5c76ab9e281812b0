package suite

// Own is a use of cryptography that rotor makes for itself, beside the keys that it manages.
type Own struct {
	Use       string // what for
	Algorithm string
	Quantum   int    // as in Spec
	Source    string // where it is specified
	Sunset    Sunset
}

// Owns lists what rotor uses for itself, for inventories. In FIPS mode delivery takes HPKE-MLKEM768-P256 and files take FLOE.
func Owns() []Own {
	return []Own{
		{"records of the store, material, wraps of the local seal", "XAES-256-GCM", 5, "C2SP XAES-256-GCM", none},
		{"derivation of the keys of records and of the log", "HKDF-SHA256", 5, "RFC 5869", none},
		{"entries of the audit log", "HMAC-SHA256", 5, "RFC 2104", none},
		{"tree of the audit log", "SHA-256", 5, "RFC 6962", none},
		{"checkpoints of the audit log, snapshots of keys", "Ed25519", 0, "RFC 8032", classical},
		{"delivery of fleet keys", "HPKE-X-Wing", 3, "spec/delivery.md", none},
		{"connections between rotor's parts", "X25519MLKEM768", 3, "RFC 8446, draft-ietf-tls-ecdhe-mlkem", none},
		{"certificates of servers, instances and administrators", "ECDSA P-256", 0, "FIPS 186-5", classical},
		{"payload of files", "AES-256-GCM in chunks, HKDF-SHA512", 5, "C2SP chunked-encryption", none},
	}
}
