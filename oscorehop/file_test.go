package oscorehop

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Both ends of a new pair understand each other, from files.
// OC-3, OC-54
func TestNewPair(t *testing.T) {
	dir := t.TempDir()
	for name, o := range map[string]PairOptions{
		"zero":      {},
		"all given": {Algorithm: ChaCha20Poly1305, Hash: SHA512, ClientID: []byte{}, ProxyID: []byte{1}, IDContext: []byte{}, Lifetime: time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			client, proxy, err := NewPair(o)
			require.NoError(t, err)
			require.Equal(t, peerOf(client), proxy)
			require.Len(t, client.MasterSecret, 32)
			if o.Algorithm == 0 {
				require.Equal(t, AESCCM16Tag128, client.Algorithm)
				require.Len(t, client.SenderID, 4)
				require.Len(t, client.RecipientID, 4)
			} else {
				require.Equal(t, time.Hour, client.Expires.Sub(client.Created))
			}
			var ends []*Context
			for end, p := range map[string]Parameters{"client": client, "proxy": proxy} {
				path := filepath.Join(dir, name+end)
				require.NoError(t, p.WriteFile(path))
				require.ErrorIs(t, p.WriteFile(path), os.ErrExist, "nothing is replaced")
				info, err := os.Stat(path)
				require.NoError(t, err)
				require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
				read, err := ReadFile(path)
				require.NoError(t, err)
				require.Equal(t, p, read)
				ends = append(ends, ephemeral(t, read, 0))
			}
			converse(t, ends[0], ends[1], getRequest())
			converse(t, ends[1], ends[0], getRequest())
		})
	}
	one, _, err := NewPair(PairOptions{})
	require.NoError(t, err)
	two, _, err := NewPair(PairOptions{})
	require.NoError(t, err)
	require.NotEqual(t, one.MasterSecret, two.MasterSecret)
	require.NotEqual(t, one.MasterSalt, two.MasterSalt)
	require.NotEqual(t, one.SenderID, two.SenderID)

	_, _, err = NewPair(PairOptions{ClientID: []byte{1}, ProxyID: []byte{1}})
	require.Error(t, err)
	_, _, err = NewPair(PairOptions{ClientID: make([]byte, 8)})
	require.Error(t, err)
}

func TestReadFilePrivate(t *testing.T) {
	client, _, err := NewPair(PairOptions{})
	require.NoError(t, err)
	dir := t.TempDir()
	path := filepath.Join(dir, "client.json")
	require.NoError(t, client.WriteFile(path))
	for _, mode := range []os.FileMode{0o640, 0o604, 0o620, 0o601, 0o666} {
		require.NoError(t, os.Chmod(path, mode))
		_, err := ReadFile(path)
		require.ErrorIs(t, err, ErrPermissions)
		require.ErrorContains(t, err, "chmod 600 "+path)
	}
	require.NoError(t, os.Chmod(path, 0o400))
	_, err = ReadFile(path)
	require.NoError(t, err)
	if os.Geteuid() == 0 {
		require.NoError(t, os.Chown(path, 12345, -1))
		_, err = ReadFile(path)
		require.ErrorIs(t, err, ErrPermissions)
		require.ErrorContains(t, err, "belongs neither")
	}
	require.NoError(t, os.Mkdir(filepath.Join(dir, "d"), 0o700))
	_, err = ReadFile(filepath.Join(dir, "d"))
	require.ErrorContains(t, err, "not a regular file")
	_, err = ReadFile(filepath.Join(dir, "none"))
	require.ErrorIs(t, err, os.ErrNotExist)

	big := filepath.Join(dir, "big")
	require.NoError(t, os.WriteFile(big, make([]byte, maxFile+1), 0o600))
	_, err = ReadFile(big)
	require.ErrorContains(t, err, "more than 16384 bytes")
}

const goodFile = `{"algorithm":"A128GCM","master_secret":"00112233445566778899aabbccddeeff","sender_id":"","recipient_id":"01"}`

// OC-1
func TestParseFile(t *testing.T) {
	p, err := ParseFile([]byte(goodFile))
	require.NoError(t, err)
	require.Nil(t, p.IDContext)
	p, err = ParseFile([]byte(strings.Replace(goodFile, "{", `{"id_context":"","hkdf":"SHA-512",`, 1)))
	require.NoError(t, err)
	require.Equal(t, []byte{}, p.IDContext)
	require.Equal(t, SHA512, p.Hash)

	for name, v := range map[string]struct{ old, new, want string }{
		"unknown key":   {"{", `{"master_sceret":"",`, "unknown field"},
		"no algorithm":  {"A128GCM", "", "algorithm not implemented"},
		"no ID":         {`,"recipient_id":"01"`, "", "recipient_id is missing"},
		"not hex":       {"00112233", "0g112233", "not in hexadecimal"},
		"odd hex":       {"00112233", "0112233", "not in hexadecimal"},
		"short secret":  {"00112233445566778899aabbccddeeff", "00112233", "master secret has 4 bytes"},
		"hash":          {"{", `{"hkdf":"MD5",`, "algorithm not implemented"},
		"type":          {`"01"}`, `"01","replay_window":"x"}`, "replay_window: wrong type"},
		"window":        {`"01"}`, `"01","replay_window":9999}`, "replay window of 9999"},
		"not JSON":      {"{", "{{", "not JSON at byte 2"},
		"no object":     {"{", "", "not a JSON object"},
		"half":          {"}", "", "not a whole JSON object"},
		"two documents": {"}", "}{}", "something follows"},
		"time":          {`"01"}`, `"01","expires":"tomorrow"}`, "tomorrow"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseFile([]byte(strings.Replace(goodFile, v.old, v.new, 1)))
			require.ErrorContains(t, err, v.want)
			require.NotContains(t, err.Error(), "112233", "no secret in an error")
		})
	}
}

func FuzzParseFile(f *testing.F) {
	f.Add([]byte(goodFile))
	f.Add([]byte(`{"algorithm":"AES-CCM-16-64-128","hkdf":"SHA-256","id_context":"","created":"2026-01-01T00:00:00Z"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := ParseFile(data)
		if err != nil {
			return
		}
		if _, err := p.derive(); err != nil {
			t.Fatal(err)
		}
		again, err := p.MarshalFile()
		if err != nil { // years that RFC 3339 has no room for
			return
		}
		second, err := ParseFile(again)
		require.NoError(t, err)
		require.Equal(t, p.SenderID, second.SenderID)
		require.Equal(t, p.MasterSecret, second.MasterSecret)
		require.Equal(t, p.IDContext == nil, second.IDContext == nil)
	})
}
