package config

import (
	_ "embed" // the two files below
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	crand "crypto/rand"

	"github.com/google/renameio/v2"
)

// The files that WriteInitial makes.
const (
	configFile = "config.yaml"
	pskFile    = "psk.yaml"
)

//go:generate cp example.yaml ../config.example.yaml

//go:embed example.yaml
var example string

//go:embed initial.yaml
var initial string

// Example returns the commented example, config.example.yaml, in which every key
// appears. The caller owns it.
func Example() []byte { return []byte(example) }

// Secrets are the fresh secrets of one installation. Printing them shows none of
// their values.
type Secrets struct {
	// PSKIdentity is not secret itself; it tells the peer which key is meant.
	PSKIdentity string
	// PSK is a pre-shared key for DTLS and TLS (RFC 4279).
	PSK [32]byte
}

// Format keeps the secrets out of logs and error messages, whatever the verb.
func (s Secrets) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "{PSKIdentity:%s PSK:hidden}", s.PSKIdentity)
}

// NewSecrets makes secrets from random, which must be cryptographically secure.
// It fails only when random does.
func NewSecrets(random io.Reader) (Secrets, error) {
	var s Secrets
	var id [4]byte
	for _, b := range [][]byte{id[:], s.PSK[:]} {
		if _, err := io.ReadFull(random, b); err != nil {
			return Secrets{}, fmt.Errorf("make secrets: %w", err)
		}
	}
	s.PSKIdentity = "coapproxy-" + hex.EncodeToString(id[:])
	return s, nil
}

// Initial returns the configuration that a new installation starts with: it
// listens on the loopback addresses, and a client on this host may reach one
// group and nothing else (GP-23, FP-85). It is valid, and holds no secret.
func Initial(s Secrets) []byte {
	return []byte(strings.ReplaceAll(initial, "PSK_IDENTITY", s.PSKIdentity))
}

// pskText returns the contents of the file with the pre-shared key.
func pskText(s Secrets) []byte {
	return fmt.Appendf(nil, `# A pre-shared key for clients that speak CoAP over DTLS (coaps). For a further client write a line of three
# dashes below and another identity and key.
# Keep it secret: whoever has the key will be taken for this client.
identity: %s
key: %s # 32 bytes in hexadecimal
`, s.PSKIdentity, hex.EncodeToString(s.PSK[:]))
}

// WriteInitial makes dir, when it does not exist, and puts config.yaml with the
// text of [Initial] and psk.yaml with its key there. Directory and files are for
// the owner only. It returns the paths of the files.
//
// No file is ever replaced: when one of them exists, the error wraps
// [fs.ErrExist] and nothing is written. Each file appears complete or not at
// all, config.yaml last; after an error those that this call made are gone
// again.
func WriteInitial(dir string) (paths []string, err error) {
	secrets, err := NewSecrets(crand.Reader)
	if err != nil {
		return nil, err
	}
	return writeAll(dir, []file{
		{pskFile, pskText(secrets)},
		{configFile, Initial(secrets)},
	})
}

type file struct {
	name string
	text []byte
}

// writeAll puts files into dir, all or none.
func writeAll(dir string, files []file) (paths []string, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the configuration directory: %w", err)
	}
	for _, f := range files {
		if path := filepath.Join(dir, f.name); exists(path) {
			return nil, fmt.Errorf("%s is there already and is not replaced; choose another directory or move it away: %w", path, fs.ErrExist)
		}
	}
	defer func() {
		if err != nil {
			for _, path := range paths {
				err = errors.Join(err, os.Remove(path))
			}
			paths = nil
		}
	}()
	for _, f := range files {
		path := filepath.Join(dir, f.name)
		if err := writeNew(path, f.text); err != nil {
			return paths, err
		}
		paths = append(paths, path)
	}
	return paths, syncDir(dir)
}

// exists reports whether something is at path, be it a dangling link. Where that
// cannot be found out, writing will tell.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// writeNew makes the file at path with text, readable and writable by the owner
// only. The text is on the disk before the name appears, and a file that is at
// path already stays.
func writeNew(path string, text []byte) error {
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path))) // mode 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Link(f.Name(), path) // unlike a rename, it never replaces
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, errors.Join(err, f.Cleanup()))
	}
	if err := f.Cleanup(); err != nil {
		return fmt.Errorf("write %s: %w", path, errors.Join(err, os.Remove(path)))
	}
	return nil
}

// syncDir makes the names in dir last over a power failure.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	err = d.Sync()
	if closeErr := d.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}
