// Package custody carries out the algorithms of rotor's table inside a PKCS #11 token (package hsm), for keys of custody hsm. Formats are the same as of keys in memory:
// what a token made is told apart by nobody. It is there in builds with the tag pkcs11.
package custody
