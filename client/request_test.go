package client

import (
	"encoding/hex"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/wire"
)

// The requests of the vectors, byte by byte.
func TestRequestVectors(t *testing.T) {
	requests := map[string]*Request{
		"request-proxy-uri": {Method: codes.GET, Confirmable: true, URI: "coap://[ff05::fd]:5683/r", Form: ProxyURI, Timeout: seconds(60)},
		"request-proxy-scheme": {Method: codes.GET, Confirmable: true, URI: "coap://[ff05::fd]/r", Form: ProxyScheme,
			Timeout: seconds(60)},
		"request-proxy-cri":  {Method: codes.GET, Confirmable: true, URI: "coap://[ff05::fd]:5683/r", Form: ProxyCRI, Timeout: seconds(60)},
		"request-no-timeout": {Method: codes.GET, Confirmable: true, URI: "coap://[ff05::fd]:5683/r", Form: ProxyURI},
		"request-t-zero":     {Method: codes.POST, URI: "coap://[ff05::fd]:5683/r", Form: ProxyURI, Timeout: seconds(0)}, // GP-115
	}
	for name, want := range messageVectors(t) {
		r := requests[name]
		if r == nil {
			continue
		}
		t.Run(name, func(t *testing.T) {
			numbers := wire.DefaultNumbers()
			uri, err := r.parse("coap")
			require.NoError(t, err)
			m, err := r.message(uri, r.Form, netip.MustParseAddrPort("[2001:db8::1]:5683"), &numbers)
			require.NoError(t, err)
			m.ID, m.Token = want.MID, unhex(t, want.Token)
			got, err := m.Append(nil)
			require.NoError(t, err)
			require.Equal(t, want.Hex, hex.EncodeToString(got))
		})
		delete(requests, name)
	}
	require.Empty(t, requests)
}

// The server of every response of the vectors, in both dialects.
func TestResponseVectors(t *testing.T) {
	want := map[string]string{
		"response-draft-07-v6":       "coap://[2001:db8::1]",
		"response-draft-07-v6-61616": "coap://[2001:db8::1]:61616",
		"response-draft-07-v4":       "coap://192.0.2.7",
		"response-legacy-v6":         "coap://[2001:db8::1]",
		"response-legacy-v6-61616":   "coap://[2001:db8::1]:61616",
		"response-legacy-v4":         "coap://192.0.2.7",
		"response-both-dialects-v4":  "coap://192.0.2.7",
		"response-group-etag":        "coap://192.0.2.7",
		"valid-group-etag":           "",
		"error-no-timeout":           "",
		"chain-too-short":            "",
	}
	numbers := wire.DefaultNumbers()
	for name, v := range messageVectors(t) {
		var m wire.Message
		require.NoError(t, m.Decode(unhex(t, v.Hex)))
		if !wire.IsResponse(m.Code) {
			continue
		}
		server, ok := want[name]
		require.True(t, ok, name)
		delete(want, name)
		p := newResponse(&m, &numbers, 5683)
		if server == "" {
			require.Nil(t, p.From, name)
		} else {
			require.NotNil(t, p.From, name)
			require.Equal(t, server, p.From.ServerURI(), name)
		}
		require.Equal(t, name == "error-no-timeout", p.TimeoutMissing(), name)
		least, ok := p.MinTimeout()
		require.Equal(t, name == "chain-too-short", ok, name)
		if ok {
			require.EqualValues(t, 3, least)
		}
	}
	require.Empty(t, want)
}

// GP-10, GP-121: an address option that cannot be read is ignored, and a null
// port is that of the group URI.
func TestServerIdentity(t *testing.T) {
	numbers := wire.DefaultNumbers()
	tests := []struct {
		name, replyFrom, forwarding, want string
	}{
		{"bad Reply-From", "8120aabbcc", "", ""},
		{"bad Reply-From beside a good Response-Forwarding", "8120aabbcc", "8201d9010444c0000207", "coap://192.0.2.7"},
		{"Reply-From counts", "82208144c0000208", "8201d9010444c0000207", "coap://192.0.2.8"},
		{"null port", "", "8301d9010444c0000207f6", "coap://192.0.2.7:61616"},
		{"other transport", "", "8304d9010444c00002071901bb", "coaps+tcp://192.0.2.7:443"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			m := &wire.Message{Code: codes.Content}
			if test.forwarding != "" {
				m.Options = append(m.Options, message.Option{ID: wire.ResponseForwarding, Value: unhex(t, test.forwarding)})
			}
			if test.replyFrom != "" {
				m.Options = append(m.Options, message.Option{ID: wire.ReplyFrom, Value: unhex(t, test.replyFrom)})
			}
			p := newResponse(m, &numbers, 61616)
			if test.want == "" {
				require.Nil(t, p.From)
				return
			}
			require.NotNil(t, p.From)
			require.Equal(t, test.want, p.From.ServerURI())
		})
	}
}

func TestBadRequests(t *testing.T) {
	long := "coap://192.0.2.1/" + strings.Repeat(strings.Repeat("x", 200)+"/", 6)
	tests := []struct {
		name string
		r    Request
		want string
	}{
		{"no scheme", Request{URI: "192.0.2.1/temp"}, "192.0.2.1/temp"},
		{"fragment", Request{URI: "coap://192.0.2.1/a#b", Form: ProxyURI}, "fragment"},
		{"other scheme without proxy", Request{URI: "coaps://192.0.2.1/"}, "needs a proxy"},
		{"unknown scheme", Request{URI: "gopher://192.0.2.1/", Form: ProxyScheme}, "unsupported URI scheme"},
		{"too long for Proxy-Uri", Request{URI: long, Form: ProxyURI}, "Proxy-Uri of"},
		{"empty Proxy-Cri", Request{URI: long, Form: ProxyCRI}, "Proxy-Cri of"},
		{"no CRI", Request{URI: "gopher://[::1", Form: ProxyCRI}, "gopher"},
	}
	c, s, _ := dialMemory(t, Config{}, nil)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := collect(t.Context(), t, c, &test.r)
			require.ErrorIs(t, err, ErrRequest)
			require.ErrorContains(t, err, test.want)
		})
	}
	require.Empty(t, s.requests)
}

// A URI of a scheme that is unknown here may be known to the proxy.
func TestUnknownSchemeThroughProxy(t *testing.T) {
	numbers := wire.DefaultNumbers()
	r := &Request{Method: codes.GET, URI: "http://example.org/", Form: ProxyURI}
	uri, err := r.parse("coap")
	require.NoError(t, err)
	m, err := r.message(uri, r.Form, netip.AddrPort{}, &numbers)
	require.NoError(t, err)
	require.Equal(t, message.Options{{ID: wire.ProxyURI, Value: []byte("http://example.org/")}}, m.Options)
}

func TestMovedNumbers(t *testing.T) { // GP-1
	numbers := wire.Numbers{MulticastTimeout: 65002, ReplyFrom: 65028, GroupETag: 65052, ResponseForwarding: 65060}
	r := groupGet(7)
	uri, err := r.parse("coap")
	require.NoError(t, err)
	m, err := r.message(uri, r.Form, netip.AddrPort{}, &numbers)
	require.NoError(t, err)
	value, _ := wire.First(m.Options, 65002)
	require.Equal(t, []byte{7}, value)
	p := newResponse(&wire.Message{Options: message.Options{{ID: 65028, Value: unhex(t, "82208144c0000207")}}}, &numbers, 0)
	require.NotNil(t, p.From)
}

type messageVector struct {
	Name, Hex, Token string
	MID              uint16
}

func messageVectors(t testing.TB) map[string]messageVector {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "testdata", "group-proxy-options.json"))
	require.NoError(t, err)
	var file struct{ Messages []messageVector }
	require.NoError(t, json.Unmarshal(data, &file))
	all := make(map[string]messageVector)
	for _, v := range file.Messages {
		all[v.Name] = v
	}
	return all
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	require.NoError(t, err)
	return b
}
