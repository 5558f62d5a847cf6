package config

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"go.yaml.in/yaml/v3"
)

// MinPSK and MaxPSK bound the length of a pre-shared key in bytes.
const (
	MinPSK = 16
	MaxPSK = 64
)

// LoadPSK reads the pre-shared keys of clients from a YAML file that only its
// owner can read: one or several documents with the keys `identity` (text) and
// `key` (hexadecimal, MinPSK to MaxPSK bytes). It returns the keys by identity,
// at least one. Errors never quote a key.
func LoadPSK(path string) (map[string][]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("%s can be read by others than its owner (mode %04o); run chmod 600 on it", path, mode)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSize))
	if err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	keys, err := parsePSK(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return keys, nil
}

func parsePSK(data []byte) (map[string][]byte, error) {
	keys := make(map[string][]byte)
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.KnownFields(true)
	for n := 1; ; n++ {
		var entry struct {
			Identity string `yaml:"identity"`
			Key      string `yaml:"key"`
		}
		err := d.Decode(&entry)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil { // its text may quote the file
			return nil, fmt.Errorf("entry %d is not a mapping of identity and key", n)
		}
		key, err := hex.DecodeString(entry.Key)
		switch {
		case entry.Identity == "":
			return nil, fmt.Errorf("entry %d has no identity", n)
		case err != nil:
			return nil, fmt.Errorf("the key of %s is not hexadecimal", show(entry.Identity))
		case len(key) < MinPSK || len(key) > MaxPSK:
			return nil, fmt.Errorf("the key of %s has %d bytes; write %d to %d", show(entry.Identity), len(key), MinPSK, MaxPSK)
		case keys[entry.Identity] != nil:
			return nil, fmt.Errorf("%s has two keys", show(entry.Identity))
		}
		keys[entry.Identity] = key
	}
	if len(keys) == 0 {
		return nil, errors.New("there is no key")
	}
	return keys, nil
}
