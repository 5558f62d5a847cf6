package wire

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// addrOf reads the server of a vector: "[2001:db8::1]:5683".
func addrOf(t testing.TB, server string) netip.AddrPort {
	t.Helper()
	a, err := netip.ParseAddrPort(server)
	require.NoError(t, err)
	return a
}

func TestReplyFromVectors(t *testing.T) {
	for _, v := range readOptionVectors(t).ReplyFrom {
		t.Run(v.Name, func(t *testing.T) {
			value := unhex(t, v.ValueHex)
			got, err := ParseReplyFrom(value)
			require.NoError(t, err)

			want := v.ValueHex
			if v.Name == "reverse-path-two-nulls" { // GP-8: accepted, never written
				want = "8220815020010db8000f0000000000000000000282f58261736131"
			}
			require.Equal(t, want, hex.EncodeToString(got.Append(nil)))

			if v.Case == "forward" && v.Name != "forward-minimum-length" {
				server := addrOf(t, v.Server)
				require.Equal(t, v.ValueHex, hex.EncodeToString(AppendReplyFrom(nil, SchemeCoAP, server)))
				require.Equal(t, server, netip.AddrPortFrom(got.Server.Addr, got.Server.Port))
				require.Equal(t, "coap", got.Server.Scheme)
				require.Nil(t, got.Ref)
			}
		})
	}
}

func TestParseReplyFrom(t *testing.T) {
	proxy := URI{Scheme: "coap+tcp", Addr: netip.MustParseAddr("2001:db8:f::2"), Port: 5683}
	onPort := func(u URI, port uint16) URI {
		u.Port, u.ExplicitPort = port, true
		return u
	}
	coap := URI{Scheme: "coap", Addr: proxy.Addr, Port: 5683}
	server := netip.MustParseAddr("2001:db8::1")
	const item1 = "8226815020010db8000f00000000000000000002"
	for _, tt := range []struct {
		name, hex string
		want      ReplyFromValue
		uri       string
	}{
		{"host name", "8220816161", ReplyFromValue{Server: URI{Scheme: "coap", Host: "a", Port: 5683}}, "coap://a"},
		{"host name in labels", "8220 836141 6162 191634", ReplyFromValue{Server: URI{Scheme: "coap", Host: "a.b", Port: 5684, ExplicitPort: true}}, "coap://a.b:5684"},
		{"default port written out", "82208244c0000207191633", ReplyFromValue{Server: URI{Scheme: "coap", Addr: netip.MustParseAddr("192.0.2.7"), Port: 5683, ExplicitPort: true}}, "coap://192.0.2.7"},
		{"IPv4-mapped (GP-7)", "82208150 00000000000000000000ffff c0000207", ReplyFromValue{Server: URI{Scheme: "coap", Addr: netip.MustParseAddr("192.0.2.7"), Port: 5683}}, "coap://192.0.2.7"},
		{"second host and port", "8226825020010db8000f00000000000000000002191e03 82f68250 20010db8000000000000000000000001 191633",
			ReplyFromValue{Server: onPort(proxy, 7683), Ref: &ReplyFromRef{Addr: server, Port: 5683}}, "coap+tcp://[2001:db8:f::2]:7683"},
		{"second host by name", item1 + "82f6826161 6162", ReplyFromValue{Server: proxy, Ref: &ReplyFromRef{Host: "a.b"}}, "coap+tcp://[2001:db8:f::2]"},
		{"path, discard", "8220815020010db8000f00000000000000000002 82f582617361 31", ReplyFromValue{Server: coap, Ref: &ReplyFromRef{Path: []string{"s", "1"}}}, "coap://[2001:db8:f::2]"},
		{"path, discard 0 (GP-8)", "8220815020010db8000f00000000000000000002 82008261736131", ReplyFromValue{Server: coap, Ref: &ReplyFromRef{Path: []string{"s", "1"}}}, "coap://[2001:db8:f::2]"},
		{"path beside a host name", "8220816161 82f5816173", ReplyFromValue{Server: URI{Scheme: "coap", Host: "a", Port: 5683}, Ref: &ReplyFromRef{Path: []string{"s"}}}, "coap://a"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseReplyFrom(unhex(t, strings.ReplaceAll(tt.hex, " ", "")))
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
			require.Equal(t, tt.uri, got.ServerURI())
		})
	}
}

// GP-10: each of these is to be ignored, being not
// as the format has it (GP-4, GP-5, GP-6).
func TestParseReplyFromErrors(t *testing.T) {
	const item1, item2 = "82208144c0000207", "82f68144c0000208"
	for _, tt := range []struct {
		name, hex string
		want      error
	}{
		{"too short", "82208160", errReplyFromLen},
		{"too long", "82208144c0000207" + strings.Repeat("00", 1027), errReplyFromLen},
		{"not an array", "4400000000", errCBORType},
		{"trailing null in item 1", "83208144c0000207f6", errReplyFromItem},
		{"empty path in item 1", "83208144c000020780", errReplyFromItem},
		{"item 1 a reference", "82f68144c0000207", errCBORType},
		{"item 1 with a discard", "82f58144c0000207", errCBORType},
		{"scheme by name", "8264636f61708144c0000207", errCBORType},
		{"unknown scheme", "8238638144c0000207", ErrScheme},
		{"huge scheme number", "823b00000001000000008144c0000207", ErrScheme},
		{"no authority", "8220f6c0c0", errReplyFromItem},
		{"rootless", "8220f5c0c0", errReplyFromItem},
		{"userinfo", "822083f461618144c0000207", errReplyFromItem},
		{"userinfo before a name", "822083f461616161", errReplyFromItem},
		{"port 0", "82208244c000020700", errReplyFromItem},
		{"address as labels (GP-6)", "8220846131 6130 6130 6131", errReplyFromItem},
		{"percent-encoded label", "822081814121", errCRIEncoded},
		{"dot in a label", "82208163612e62", errCRIHost},
		{"item 2 empty", item1 + "80", errReplyFromItem},
		{"item 2 null only", item1 + "81f6", errReplyFromItem},
		{"item 2 two nulls", item1 + "82f6f6", errReplyFromItem},
		{"item 2 discard only", item1 + "81f5", errReplyFromItem},
		{"item 2 empty path", item1 + "82f580", errReplyFromItem},
		{"item 2 empty path after a host", item1 + "83f68144c000020880", errReplyFromItem},
		{"item 2 with a query", item1 + "84f68144c0000208816161816162", errReplyFromItem},
		{"item 2 discard with a query", item1 + "83f5816161816162", errReplyFromItem},
		{"item 2 discard 1", item1 + "8201816161", errReplyFromItem},
		{"item 2 with a scheme", item1 + "82208144c0000208", errReplyFromItem},
		{"item 2 rootless", item1 + "82f6f5", errReplyFromItem},
		{"item 2 encoded segment", item1 + "82f581814121", errCBORType},
		{"item 2 long segment", item1 + "82f581790100" + strings.Repeat("61", 256), errReplyFromItem},
		{"item 2 truncated", item1 + "82f6", errReplyFromItem},
		{"three items", item1 + item2 + item2, errCBORTrailing},
		{"host name beside a second host (GP-5)", "8220816161" + item2, errReplyFromHost},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseReplyFrom(unhex(t, strings.ReplaceAll(tt.hex, " ", "")))
			if tt.name == "item 2 truncated" {
				require.Error(t, err)
				return
			}
			require.ErrorIs(t, err, tt.want)
		})
	}
}

// The vectors' cases for decoders: what is ignored, refused and accepted.
func TestDecodeCaseVectors(t *testing.T) {
	cases := readOptionVectors(t).DecodeCases
	require.NotEmpty(t, cases)
	for _, c := range cases {
		t.Run(c.Expect, func(t *testing.T) {
			value := unhex(t, c.ValueHex)
			switch c.Option {
			case uint16(MulticastTimeout):
				v, ok := Uint(value)
				d, _ := Lookup(MulticastTimeout)
				if strings.HasPrefix(c.Expect, "longer") { // GP-3
					require.False(t, ok)
					require.False(t, d.Valid(value))
				} else {
					require.True(t, ok && d.Valid(value))
					require.Equal(t, uint32(60), v)
				}
			case uint16(ReplyFrom):
				require.Contains(t, c.Expect, "ignore")
				_, err := ParseReplyFrom(value)
				require.Error(t, err)
			case uint16(ResponseForwarding):
				require.Contains(t, c.Expect, "ignore")
				_, _, err := ParseResponseForwarding(value, 5683)
				require.Error(t, err)
			default:
				t.Fatalf("option %d", c.Option)
			}
		})
	}
}

func TestAppendReplyFrom(t *testing.T) {
	for _, tt := range []struct {
		scheme       uint32
		server, want string
	}{
		{SchemeCoAP, "[::ffff:192.0.2.7]:5683", "82208144c0000207"}, // GP-7
		{SchemeCoAPS, "192.0.2.7:5684", "82218144c0000207"},
		{SchemeCoAPS, "192.0.2.7:5683", "82218244c0000207191633"},
		{SchemeCoAPSTCP, "192.0.2.7:5684", "82278144c0000207"}, // GP-6
		{SchemeCoAPWS, "192.0.2.7:80", "823818" + "8144c0000207"},
		{SchemeCoAPSWS, "192.0.2.7:80", "823819" + "8244c00002071850"},
		{99, "192.0.2.7:80", "823863" + "8244c00002071850"},                                  // no default known
		{SchemeCoAP, "[fe80::1%2]:1", "82208350fe800000000000000000000000000001" + "613201"}, // GP-57
	} {
		require.Equal(t, tt.want, hex.EncodeToString(AppendReplyFrom(nil, tt.scheme, addrOf(t, tt.server))), tt.server)
	}
	require.Equal(t, "x", string(AppendReplyFrom([]byte("x"), SchemeCoAP, netip.AddrPort{})))
}

func TestReplyFromAppend(t *testing.T) {
	server := URI{Scheme: "coap", Addr: netip.MustParseAddr("192.0.2.1"), Port: 7683}
	behind := netip.MustParseAddr("::ffff:192.0.2.7")
	for _, tt := range []struct {
		name string
		v    ReplyFromValue
		want string
	}{
		// GP-9
		{"port as item 1", ReplyFromValue{server, &ReplyFromRef{Addr: behind, Port: 7683}}, "82208244c0000201191e0382f68144c0000207"},
		{"default port, item 1 another", ReplyFromValue{server, &ReplyFromRef{Addr: behind, Port: 5683}}, "82208244c0000201191e0382f68244c0000207191633"},
		{"no port", ReplyFromValue{server, &ReplyFromRef{Host: "a.b"}}, "82208244c0000201191e0382f68261616162"},
		// GP-8
		{"path only", ReplyFromValue{server, &ReplyFromRef{Path: []string{"s", "1"}, Port: 5}}, "82208244c0000201191e0382f58261736131"},
		{"empty reference", ReplyFromValue{server, &ReplyFromRef{}}, "82208244c0000201191e03"},
		{"no scheme", ReplyFromValue{URI{Host: "a"}, nil}, ""},
		{"no host", ReplyFromValue{URI{Scheme: "coap"}, nil}, ""},
		{"no port known", ReplyFromValue{URI{Scheme: "coap", Host: "a"}, nil}, "8220816161"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			require.Equal(t, tt.want, hex.EncodeToString(tt.v.Append(nil)))
		})
	}
}

func TestAddressOptionAllocations(t *testing.T) {
	server := netip.MustParseAddrPort("[fe80::1%eth0]:61616")
	buf := make([]byte, 0, 64)
	require.Zero(t, testing.AllocsPerRun(100, func() {
		buf = AppendReplyFrom(buf[:0], SchemeCoAP, server)
		buf = AppendResponseForwarding(buf, TransportUDP, server)
	}))
	require.NotEmpty(t, buf)
}

func FuzzReplyFrom(f *testing.F) {
	vectors := readOptionVectors(f)
	for _, v := range vectors.ReplyFrom {
		f.Add(unhex(f, v.ValueHex))
	}
	for _, c := range vectors.DecodeCases {
		f.Add(unhex(f, c.ValueHex))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		v, err := ParseReplyFrom(value)
		if err != nil {
			return
		}
		_, err = ParseURI(v.ServerURI())
		require.NoError(t, err, v.ServerURI())
		again, err := ParseReplyFrom(v.Append(nil))
		require.NoError(t, err)
		// The writer leaves out ports that go without saying.
		if v.Ref != nil && v.Ref.Port == v.Server.Port {
			v.Ref.Port = 0
		}
		v.Server.ExplicitPort, again.Server.ExplicitPort = false, false
		require.Equal(t, v, again)
	})
}

func BenchmarkAppendReplyFrom(b *testing.B) {
	server := netip.MustParseAddrPort("[2001:db8::1]:61616")
	buf := make([]byte, 0, 64)
	b.ReportAllocs()
	for b.Loop() {
		buf = AppendReplyFrom(buf[:0], SchemeCoAP, server)
	}
}
