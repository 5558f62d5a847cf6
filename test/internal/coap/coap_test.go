package coap_test

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

func unhex(t *testing.T, s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	require.NoError(t, err)
	return b
}

func TestMessage(t *testing.T) {
	tests := []struct {
		name, hex string
		message   coap.Message
	}{
		{"empty", "70001234", coap.Message{Type: coap.RST, ID: 0x1234, Token: []byte{}}},
		// T' = 60 and Proxy-Uri; deltas of both lengths.
		{"request", "52 01 0001 aabb 21 3c d1 14 78 ff 7a", coap.Message{Type: coap.NON, Code: coap.GET, ID: 1, Token: []byte{0xaa, 0xbb},
			Options: []coap.Option{coap.Uint(coap.MulticastTimeout, 60), coap.Opt(coap.ProxyURI, "x")}, Payload: []byte("z")}},
		{"large delta", "40 01 0002 e1 0017 05", coap.Message{Code: coap.GET, ID: 2, Token: []byte{},
			Options: []coap.Option{coap.Uint(coap.RequestTag, 5)}}},
		{"extended token", "4d 01 0003 00 000102030405060708090a0b0c", coap.Message{Code: coap.GET, ID: 3,
			Token: []byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			data := unhex(t, tt.hex)
			m, err := coap.Parse(data)
			require.NoError(t, err)
			require.Equal(t, tt.message, *m)
			require.Equal(t, data, tt.message.Bytes())
		})
	}
	for _, bad := range []string{"", "400100", "c0010001", "41010001", "40010001 ff", "40010001 f0", "40010001 12 00", "40000001 ff00", "4f010001"} {
		_, err := coap.Parse(unhex(t, bad))
		require.Error(t, err, bad)
	}
}

// vectors are those the whole project is measured by.
type vectors struct {
	Messages []struct {
		Name, Hex, Type, Code, Token string
		MID                          uint16
		Options                      []string
	}
	ReplyFrom          []address `json:"reply_from"`
	ResponseForwarding []address `json:"response_forwarding"`
}

type address struct {
	Name, Case, Server string
	Value              string `json:"value_hex"`
}

func load(t *testing.T) vectors {
	data, err := os.ReadFile("../../../testdata/group-proxy-options.json")
	require.NoError(t, err)
	var v vectors
	require.NoError(t, json.Unmarshal(data, &v))
	require.NotEmpty(t, v.Messages)
	return v
}

func TestMessagesAgreeWithVectors(t *testing.T) {
	for _, v := range load(t).Messages {
		t.Run(v.Name, func(t *testing.T) {
			m, err := coap.Parse(unhex(t, v.Hex))
			require.NoError(t, err)
			require.Equal(t, v.Type, m.Type.String())
			require.Equal(t, v.Code, m.Code.String())
			require.Equal(t, v.MID, m.ID)
			require.Equal(t, v.Token, hex.EncodeToString(m.Token))
			var options []string
			for _, o := range m.Options {
				options = append(options, fmt.Sprintf("(%d)=%x", o.Number, o.Value))
			}
			require.Len(t, options, len(v.Options))
			for i, want := range v.Options {
				_, numbered, _ := strings.Cut(want, "(") // after the option's name
				require.Equal(t, "("+numbered, options[i])
			}
			require.Equal(t, v.Hex, hex.EncodeToString(m.Bytes()))
		})
	}
}

// The reading is as strict as the proxy's writing has to be: what only a decoder
// must tolerate (GP-124) is an error here, and what a forward-proxy for IP
// addresses never writes is left out.
func TestAddressOptionsAgreeWithVectors(t *testing.T) {
	v := load(t)
	for _, a := range v.ReplyFrom {
		want, err := netip.ParseAddrPort(a.Server)
		if err != nil || a.Case != "forward" {
			continue
		}
		got, err := coap.ReplyFromServer(unhex(t, a.Value))
		require.NoError(t, err, a.Name)
		require.Equal(t, want, got, a.Name)
	}
	for _, a := range v.ResponseForwarding {
		got, err := coap.ForwardingServer(unhex(t, a.Value))
		if a.Name == "legacy-v4-port-as-group" || a.Name == "legacy-v4-quirk-minus-one" {
			require.Error(t, err, a.Name)
			continue
		}
		require.NoError(t, err, a.Name)
		require.Equal(t, a.Server, got.String(), a.Name)
	}
}
