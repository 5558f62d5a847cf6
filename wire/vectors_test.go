package wire

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// optionVectors is testdata/group-proxy-options.json.
type optionVectors struct {
	MulticastTimeout   []optionVector  `json:"multicast_timeout"`
	ReplyFrom          []optionVector  `json:"reply_from"`
	ResponseForwarding []optionVector  `json:"response_forwarding"`
	GroupETag          []optionVector  `json:"group_etag"`
	Messages           []messageVector `json:"messages"`
	DecodeCases        []decodeCase    `json:"decode_cases"`
	OptionNumbers      []struct {
		Number                       uint16
		Name                         string
		Critical, Unsafe, NoCacheKey bool
	} `json:"option_numbers"`
}

type optionVector struct {
	Name          string
	Case          string
	Server        string
	Option        uint16
	ValueHex      string `json:"value_hex"`
	Length        int
	AsFirstOption string `json:"option_hex_as_first_option"`
	HTTPField     string `json:"http_field"`
}

type messageVector struct {
	Name    string
	Hex     string
	Type    string
	Code    string
	MID     uint16
	Token   string
	Options []string
	Payload string
}

type decodeCase struct {
	Expect   string
	Option   uint16
	ValueHex string `json:"value_hex"`
}

func readTestdata(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "testdata", name))
	require.NoError(t, err)
	return data
}

func readOptionVectors(t testing.TB) optionVectors {
	t.Helper()
	var v optionVectors
	require.NoError(t, json.Unmarshal(readTestdata(t, "group-proxy-options.json"), &v))
	return v
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	require.NoError(t, err)
	return b
}
