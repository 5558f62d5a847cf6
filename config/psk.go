package config

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"go.yaml.in/yaml/v3"
)

// ServerKeys are pre-shared keys for servers.
type ServerKeys []ServerKey

// ServerKey is the pre-shared key for some servers: those of a name as it stands
// in the target URI, those in a network, or all.
type ServerKey struct {
	Host     string
	Network  netip.Prefix
	Identity string
	Key      []byte
}

// For returns the key for a server: that of its name, or else that of the
// smallest network around its address, or else the one for all.
func (k ServerKeys) For(server netip.AddrPort, name string) (identity string, key []byte, ok bool) {
	best, rank := -1, -1
	addr := server.Addr().WithZone("")
	for i := range k {
		r := -1
		switch {
		case k[i].Host != "":
			if k[i].Host == name {
				r = 1000
			}
		case !k[i].Network.IsValid():
			r = 0
		case k[i].Network.Contains(addr):
			r = 1 + k[i].Network.Bits()
		}
		if r > rank {
			best, rank = i, r
		}
	}
	if best < 0 {
		return "", nil, false
	}
	return k[best].Identity, k[best].Key, true
}

// MinPSK and MaxPSK bound the length of a pre-shared key in bytes.
const (
	MinPSK = 16
	MaxPSK = 64
)

// keyEntry is one document of a file with keys.
type keyEntry struct {
	Host     string `yaml:"host"`
	Identity string `yaml:"identity"`
	Key      string `yaml:"key"`
}

// LoadPSK reads the pre-shared keys of clients from YAML that only its owner can
// read: one or several documents with the keys `identity` (text) and `key`
// (hexadecimal, MinPSK to MaxPSK bytes). It returns the keys by identity, at
// least one. Errors never quote a key.
func LoadPSK(p Place) (map[string][]byte, error) {
	keys := make(map[string][]byte)
	err := p.eachKey(func(e keyEntry, key []byte) error {
		switch {
		case e.Host != "":
			return fmt.Errorf("%s has a host, which the keys of clients have not", show(e.Identity))
		case keys[e.Identity] != nil:
			return fmt.Errorf("%s has two keys", show(e.Identity))
		}
		keys[e.Identity] = key
		return nil
	})
	if err != nil {
		return nil, err
	}
	return keys, nil
}

// LoadServerPSK reads the pre-shared keys for servers: as LoadPSK, and with
// `host`, which is a name, an address, a network such as 192.0.2.0/24, or "*".
func LoadServerPSK(p Place) (ServerKeys, error) {
	var keys ServerKeys
	taken := make(map[string]bool)
	err := p.eachKey(func(e keyEntry, key []byte) error {
		k := ServerKey{Identity: e.Identity, Key: key}
		host := strings.ToLower(e.Host)
		switch {
		case host == "":
			return fmt.Errorf("%s has no host; write a name, an address, a network or \"*\"", show(e.Identity))
		case taken[host]:
			return fmt.Errorf("%s has two keys", show(host))
		case host == "*":
		default:
			if n, f := parseNetwork(strings.Trim(host, "[]")); f == nil {
				k.Network = n
			} else if isHostName(host) {
				k.Host = host
			} else {
				return fmt.Errorf("%s is no name, address or network", show(host))
			}
		}
		taken[host] = true
		keys = append(keys, k)
		return nil
	})
	return keys, err
}

// eachKey reads a file with keys.
func (p Place) eachKey(each func(e keyEntry, key []byte) error) error {
	data, err := p.read(true)
	if err != nil {
		return err
	}
	n, err := decodeKeys(data, each)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", p, err)
	case n == 0:
		return fmt.Errorf("%s: there is no key", p)
	}
	return nil
}

func decodeKeys(data []byte, each func(e keyEntry, key []byte) error) (int, error) {
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.KnownFields(true)
	for n := 0; ; n++ {
		var e keyEntry
		err := d.Decode(&e)
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil { // its text may quote the file
			return n, fmt.Errorf("entry %d is not a mapping of identity and key", n+1)
		}
		key, err := hex.DecodeString(e.Key)
		switch {
		case e.Identity == "":
			return n, fmt.Errorf("entry %d has no identity", n+1)
		case err != nil:
			return n, fmt.Errorf("the key of %s is not hexadecimal", show(e.Identity))
		case len(key) < MinPSK || len(key) > MaxPSK:
			return n, fmt.Errorf("the key of %s has %d bytes; write %d to %d", show(e.Identity), len(key), MinPSK, MaxPSK)
		}
		if err := each(e, key); err != nil {
			return n, err
		}
	}
}
