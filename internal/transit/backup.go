package transit

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"strconv"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

// Bounds of backups.
const (
	MaxBackup         = 32<<20 - 64<<10 // bytes of the text: a request that restores it has 32 MiB
	MaxBackupVersions = 100_000

	// An empty object is two bytes long and takes a hundred times that once it is decoded. No backup of MaxBackup bytes comes near these.
	maxObjects  = 250_000
	maxElements = 1_500_000
)

// Backup is a key with all its versions in clear, as the engine writes and reads it: base64 of JSON.
type Backup struct {
	Name            string
	Algorithm       suite.Algorithm
	KeyBytes        int // of HMAC keys
	Settings        Settings
	MinDecryption   uint32
	MinEncryption   uint32
	MinAvailable    uint32 // older versions were trimmed
	Latest          uint32
	Exportable      bool
	DeletionAllowed bool
	PlaintextBackup bool
	Imported        bool
	RotationAllowed bool          // of an imported key
	AutoRotate      time.Duration // 0: never
	Versions        []BackupVersion
}

// BackupVersion is one version in it, in the order of their numbers. Versions without material are left out.
type BackupVersion struct {
	Number     uint32
	Bundle     secret.Bytes
	Public     []byte // PKIX; nil for symmetric algorithms
	Convergent int    // version of the convergent construction; 0: not convergent
	Created    time.Time
	Chain      [][]byte // certificates in DER
}

// document is the JSON of a backup.
type document struct {
	Policy  *wirePolicy  `json:"policy"`
	Archive *wireArchive `json:"archived_keys"`
}

type wireArchive struct {
	Keys []*wireEntry `json:"keys"`
}

type wirePassage struct {
	Time    time.Time `json:"time"`
	Version int       `json:"version"`
}

type wirePolicy struct {
	Name                     string                `json:"name"`
	Key                      []byte                `json:"key,omitempty"` // of the engine's first form: that of version 1
	KeySize                  int                   `json:"key_size,omitempty"`
	Keys                     map[string]*wireEntry `json:"keys"`
	Derived                  bool                  `json:"derived"`
	KDF                      int                   `json:"kdf"` // 0: counter mode, 1: HKDF
	Convergent               bool                  `json:"convergent_encryption"`
	Exportable               bool                  `json:"exportable"`
	MinDecryption            int                   `json:"min_decryption_version"`
	MinEncryption            int                   `json:"min_encryption_version"`
	Latest                   int                   `json:"latest_version"`
	ArchiveVersion           int                   `json:"archive_version"`
	ArchiveMin               int                   `json:"archive_min_version"`
	MinAvailable             int                   `json:"min_available_version"`
	DeletionAllowed          bool                  `json:"deletion_allowed"`
	ConvergentVersion        int                   `json:"convergent_version"` // -1: each version has its own
	Type                     int                   `json:"type"`
	BackupInfo               *wirePassage          `json:"backup_info"`
	RestoreInfo              *wirePassage          `json:"restore_info"`
	PlaintextBackup          bool                  `json:"allow_plaintext_backup"`
	VersionTemplate          string                `json:"version_template"`
	StoragePrefix            string                `json:"storage_prefix"`
	AutoRotate               time.Duration         `json:"auto_rotate_period"`
	Imported                 bool                  `json:"Imported"`
	AllowImportedKeyRotation bool                  `json:"AllowImportedKeyRotation"`
	ParameterSet             string                `json:"parameter_set,omitempty"`
}

// plainBackup is the JSON of a backup, with few enough elements to be decoded. fault.TooLarge, Invalid with a Refusal.
func plainBackup(text secret.Bytes) (secret.Bytes, error) {
	tooLarge := func() (secret.Bytes, error) {
		return secret.Bytes{}, fault.New(fault.TooLarge, "backup").WithHint("at most %d bytes and %d versions", MaxBackup, MaxBackupVersions)
	}
	if text.Len() > MaxBackup {
		return tooLarge()
	}
	plain := make([]byte, base64.StdEncoding.DecodedLen(text.Len()))
	n, err := base64.StdEncoding.Decode(plain, text.Reveal())
	if err != nil {
		clear(plain)
		return secret.Bytes{}, refused("backup is not base64")
	}
	if bytes.Count(plain, []byte{'{'}) > maxObjects || bytes.Count(plain, []byte{','}) > maxElements {
		clear(plain)
		return tooLarge()
	}
	return secret.Take(plain[:n]), nil
}

// BackupName is the name that a backup has for its key; of what is no backup it is empty. It reads nothing else.
func BackupName(text secret.Bytes) string {
	plain, err := plainBackup(text)
	if err != nil {
		return ""
	}
	defer plain.Destroy()
	var d struct {
		Policy struct {
			Name string `json:"name"`
		} `json:"policy"`
	}
	if json.Unmarshal(plain.Reveal(), &d) != nil {
		return ""
	}
	return d.Policy.Name
}

// ParseBackup reads a backup. HMAC keys that old versions have not are made. fault.TooLarge, Invalid with a Refusal.
func ParseBackup(text secret.Bytes) (Backup, error) {
	plain, err := plainBackup(text)
	if err != nil {
		return Backup{}, err
	}
	defer plain.Destroy()
	var d document
	if err := json.Unmarshal(plain.Reveal(), &d); err != nil || d.Policy == nil {
		return Backup{}, refused("backup is not one of a key")
	}
	p := d.Policy
	b, err := p.head()
	if err != nil {
		return Backup{}, err
	}
	for number := max(b.MinAvailable, 1); number <= b.Latest; number++ {
		e := d.entry(int(number))
		if e == nil {
			return Backup{}, refused(Refusal("backup lacks version " + itoa(int(number))))
		}
		if e.empty() {
			continue
		}
		v, err := e.version(b, p)
		if err != nil {
			return Backup{}, err
		}
		v.Number = number
		b.Versions = append(b.Versions, v)
	}
	return b, nil
}

// entry finds a version: among those in use, or in the archive.
func (d document) entry(number int) *wireEntry {
	if e := d.Policy.Keys[strconv.Itoa(number)]; e != nil {
		return e
	}
	if len(d.Policy.Keys) == 0 && number == 1 && len(d.Policy.Key) > 0 {
		return &wireEntry{Key: d.Policy.Key}
	}
	if at := number - d.Policy.MinAvailable; d.Archive != nil && at >= 0 && at < len(d.Archive.Keys) {
		return d.Archive.Keys[at]
	}
	return nil
}

// head reads what is of the whole key. fault.Invalid with a Refusal.
func (p *wirePolicy) head() (b Backup, err error) {
	if p.Latest == 0 && len(p.Key) > 0 {
		p.Latest = 1
	}
	switch {
	case p.Latest < 1 || p.Latest > MaxBackupVersions:
		return b, refused(Refusal("latest version of " + itoa(p.Latest) + " is less than 1 or beyond what is read"))
	case p.MinAvailable < 0 || p.MinAvailable > p.Latest, p.MinDecryption < 0 || p.MinDecryption > p.Latest, p.MinEncryption < 0 || p.MinEncryption > p.Latest:
		return b, refused("a minimum version of the backup is not one of its versions")
	case p.VersionTemplate != "" && p.VersionTemplate != prefix+"{{version}}:":
		return b, refused("backup is of a key with a version template of its own")
	case p.KDF != 0 && p.KDF != 1, p.AutoRotate < 0:
		return b, refused("unsupported key derivation mode")
	}
	if b.Algorithm, err = p.algorithm(); err != nil {
		return b, err
	}
	b.Settings = Settings{Derived: p.Derived, Counter: p.Derived && p.KDF == 0 && b.Algorithm != suite.Ed25519}
	b.Name, b.KeyBytes, b.Latest = p.Name, p.KeySize, uint32(p.Latest)
	b.MinDecryption, b.MinEncryption, b.MinAvailable = uint32(max(p.MinDecryption, 1)), uint32(p.MinEncryption), uint32(p.MinAvailable)
	b.Exportable, b.DeletionAllowed, b.PlaintextBackup = p.Exportable, p.DeletionAllowed, p.PlaintextBackup
	b.Imported, b.RotationAllowed, b.AutoRotate = p.Imported, p.AllowImportedKeyRotation, p.AutoRotate
	if p.Convergent {
		b.Settings.Convergent = p.convergent(0)
	}
	return b, b.Settings.check(b.Algorithm)
}

// algorithm finds the algorithm of a type's number. Two numbers mean different things at Vault and at OpenBao, which has no managed keys. What tells them apart is the
// size of the key, which both write for HMAC keys and for no others.
func (p *wirePolicy) algorithm() (suite.Algorithm, error) {
	switch {
	case p.Type == bothHMAC && p.KeySize == 0:
		return suite.XChaCha20Poly1305, nil
	case (p.Type == bothHMAC || p.Type == openBaoHMAC) && p.KeySize > 0:
		return suite.HMAC, nil
	}
	for _, t := range types {
		if t.number == p.Type && t.set == p.ParameterSet {
			return t.algorithm, nil
		}
	}
	return "", refused(Refusal("backup is of a key of the type " + itoa(p.Type) + ", which is not known"))
}

// Numbers of types.
const (
	openBaoHMAC = 10
	bothHMAC    = 11 // of Vault's HMAC keys, and of OpenBao's XChaCha20-Poly1305
)

// convergent is the construction of a version with one of its own, or 0 for that of the key.
func (p *wirePolicy) convergent(own int) int {
	switch {
	case !p.Convergent:
		return 0
	case own != 0:
		return own
	case p.ConvergentVersion < 0:
		return ConvergentVersion
	}
	return max(p.ConvergentVersion, 1)
}

// keySize is the length of an HMAC key's next version, which the engine has to know; of other types 0.
func (b Backup) keySize() (int, error) {
	if b.Algorithm != suite.HMAC || b.KeyBytes != 0 || len(b.Versions) == 0 {
		return b.KeyBytes, nil
	}
	key, mac, err := suite.SplitBundle(b.Versions[len(b.Versions)-1].Bundle)
	if err != nil {
		return 0, err
	}
	defer key.Destroy()
	defer mac.Destroy()
	return key.Len(), nil
}

// Text writes the backup as the engine reads it, dated now. fault.Invalid.
func (b Backup) Text(now time.Time) (secret.Bytes, error) {
	t, err := typeOf(b.Algorithm)
	if err != nil {
		return secret.Bytes{}, err
	}
	p := &wirePolicy{
		Name: b.Name, KeySize: b.KeyBytes, Keys: map[string]*wireEntry{}, Derived: b.Settings.Derived, KDF: 1, Convergent: b.Settings.Convergent != 0, ConvergentVersion: -1,
		Exportable: b.Exportable, MinDecryption: int(max(b.MinDecryption, 1)), MinEncryption: int(b.MinEncryption), Latest: int(b.Latest), ArchiveVersion: int(b.Latest),
		ArchiveMin: int(b.MinAvailable), MinAvailable: int(b.MinAvailable), DeletionAllowed: b.DeletionAllowed, Type: t.number, ParameterSet: t.set,
		BackupInfo: &wirePassage{now, int(b.Latest)}, PlaintextBackup: b.PlaintextBackup, AutoRotate: b.AutoRotate, Imported: b.Imported, AllowImportedKeyRotation: b.RotationAllowed,
	}
	if b.Settings.Counter {
		p.KDF = 0
	}
	if p.KeySize, err = b.keySize(); err != nil {
		return secret.Bytes{}, err
	}
	if b.Latest > MaxBackupVersions || b.MinAvailable > b.Latest {
		return secret.Bytes{}, fault.New(fault.TooLarge, "backup").WithHint("at most %d versions", MaxBackupVersions)
	}
	archive := make([]*wireEntry, b.Latest-b.MinAvailable+1)
	for i := range archive {
		archive[i] = &wireEntry{}
	}
	for _, v := range b.Versions {
		if v.Number < max(b.MinAvailable, 1) || v.Number > b.Latest {
			return secret.Bytes{}, fault.New(fault.Invalid, "backup").WithHint("version %d is not one of %d to %d", v.Number, b.MinAvailable, b.Latest)
		}
		e, err := entryOf(b.Algorithm, v)
		if err != nil {
			return secret.Bytes{}, err
		}
		archive[v.Number-b.MinAvailable] = e
	}
	for n := uint32(p.MinDecryption); n <= b.Latest; n++ {
		if n >= b.MinAvailable {
			p.Keys[strconv.Itoa(int(n))] = archive[n-b.MinAvailable]
		}
	}
	var plain bytes.Buffer
	defer func() { clear(plain.Bytes()) }()
	if err := json.NewEncoder(&plain).Encode(document{p, &wireArchive{archive}}); err != nil {
		return secret.Bytes{}, fault.Wrap(fault.Invalid, "backup", err)
	}
	if base64.StdEncoding.EncodedLen(plain.Len()) > MaxBackup {
		return secret.Bytes{}, fault.Wrap(fault.TooLarge, "backup", Refusal("backup of key "+b.Name+" would be larger than what can be restored; raise min_decryption_version, or trim the key")).
			WithHint("at most %d bytes; a version below min_decryption_version takes half the room of the others, a trimmed one none", MaxBackup)
	}
	return coded(plain.Bytes()), nil
}
