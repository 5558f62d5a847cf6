package wire

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestResponseForwardingVectors(t *testing.T) {
	for _, v := range readOptionVectors(t).ResponseForwarding {
		t.Run(v.Name, func(t *testing.T) {
			server := addrOf(t, v.Server)
			tp, got, err := ParseResponseForwarding(unhex(t, v.ValueHex), 61616)
			require.NoError(t, err)
			require.Equal(t, uint8(TransportUDP), tp)
			require.Equal(t, server, got)
			if v.HTTPField != "" { // GP-126
				require.Equal(t, v.HTTPField, "Response-Forwarding: "+ResponseForwardingURI(tp, got))
			}
			encoded := hex.EncodeToString(AppendResponseForwarding(nil, tp, server))
			switch v.Name {
			case "legacy-v4-port-as-group", "legacy-v4-quirk-minus-one": // GP-124: never written
				require.NotEqual(t, v.ValueHex, encoded)
				_, again, err := ParseResponseForwarding(unhex(t, encoded), 1)
				require.NoError(t, err)
				require.Equal(t, server, again)
			default:
				require.Equal(t, v.ValueHex, encoded)
			}
		})
	}
}

func TestParseResponseForwarding(t *testing.T) {
	const v4 = "d9010444c0000207"
	for _, tt := range []struct {
		name, hex, want string
		tp              uint8
	}{
		// GP-121
		{"UDP", "8201" + v4, "192.0.2.7:5683", TransportUDP},
		{"DTLS", "8202" + v4, "192.0.2.7:5684", TransportDTLS},
		{"TCP", "8203" + v4, "192.0.2.7:5683", TransportTCP},
		{"TLS", "8204" + v4, "192.0.2.7:5684", TransportTLS},
		{"WS", "8205" + v4, "192.0.2.7:80", TransportWS},
		{"WSS", "8206" + v4, "192.0.2.7:443", TransportWSS},
		{"port", "8302" + v4 + "191633", "192.0.2.7:5683", TransportDTLS},
		{"null", "8302" + v4 + "f6", "192.0.2.7:61616", TransportDTLS},
		// GP-124
		{"-1", "8302" + v4 + "20", "192.0.2.7:5684", TransportDTLS},
		{"-500", "8302" + v4 + "3901f3", "192.0.2.7:5684", TransportDTLS},
		{"mapped", "8201d9010450" + "00000000000000000000ffffc0000207", "192.0.2.7:5683", TransportUDP},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tp, server, err := ParseResponseForwarding(unhex(t, tt.hex), 61616)
			require.NoError(t, err)
			require.Equal(t, tt.tp, tp)
			require.Equal(t, netip.MustParseAddrPort(tt.want), server)
			_, again, err := ParseResponseForwarding(AppendResponseForwarding(nil, tp, server), 1)
			require.NoError(t, err)
			require.Equal(t, server, again)
		})
	}
	for _, tt := range []struct {
		name, hex string
		want      error
	}{
		{"too short", "8201d9010443c00002", errForwardingLen},
		{"too long", "8301d9010450" + strings.Repeat("00", 16) + "1a00001633", errForwardingLen},
		{"not an array", "4c" + strings.Repeat("00", 12), errCBORType},
		{"one item", "8101" + v4, errForwardingForm},
		{"four items", "8401" + v4 + "0101", errForwardingForm},
		{"transport 0", "8200" + v4, errForwardingTransport},
		{"transport 7", "8207" + v4, errForwardingTransport},
		{"transport text", "826131" + v4, errCBORType},
		{"no tag", "820144c000020700000000", errCBORType},
		{"another tag", "8201d9010544c0000207", errForwardingForm},
		{"MAC address", "8201d90104460000000000 00", errForwardingForm},
		{"indefinite", "9f01" + v4 + "ff", errCBORForm},
		{"port 0", "8301" + v4 + "00", errForwardingPort},
		{"port above 65535", "8301" + v4 + "1a00010000", errForwardingPort},
		{"port as text", "8301" + v4 + "6131", errCBORType},
		{"port missing", "8301" + v4, errCBORTruncated},
		{"trailing byte", "8201" + v4 + "00", errCBORTrailing},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := ParseResponseForwarding(unhex(t, strings.ReplaceAll(tt.hex, " ", "")), 5683)
			require.ErrorIs(t, err, tt.want)
		})
	}
	_, _, err := ParseResponseForwarding(unhex(t, "8301"+v4+"f6"), 0)
	require.ErrorIs(t, err, errForwardingPort, "null without a group port")
}

func TestAppendResponseForwardingRefuses(t *testing.T) {
	server := netip.MustParseAddrPort("192.0.2.7:1")
	require.Empty(t, AppendResponseForwarding(nil, 0, server))
	require.Empty(t, AppendResponseForwarding(nil, 7, server))
	require.Empty(t, AppendResponseForwarding(nil, TransportUDP, netip.AddrPort{}))
	require.Empty(t, ResponseForwardingURI(7, server))
	require.Empty(t, ResponseForwardingURI(TransportUDP, netip.AddrPort{}))
}

// A zone has no place in the legacy dialect.
func TestResponseForwardingZone(t *testing.T) {
	server := netip.MustParseAddrPort("[fe80::1%eth0]:5683")
	require.Equal(t, "8201d9010450fe800000000000000000000000000001", hex.EncodeToString(AppendResponseForwarding(nil, TransportUDP, server)))
	require.Equal(t, "coap://[fe80::1]:5683", ResponseForwardingURI(TransportUDP, server))
}

func FuzzResponseForwarding(f *testing.F) {
	vectors := readOptionVectors(f)
	for _, v := range vectors.ResponseForwarding {
		f.Add(unhex(f, v.ValueHex), uint16(5683))
	}
	for _, c := range vectors.DecodeCases {
		f.Add(unhex(f, c.ValueHex), uint16(0))
	}
	f.Fuzz(func(t *testing.T, value []byte, groupPort uint16) {
		tp, server, err := ParseResponseForwarding(value, groupPort)
		if err != nil {
			return
		}
		require.True(t, server.IsValid())
		require.NotZero(t, server.Port())
		tpAgain, again, err := ParseResponseForwarding(AppendResponseForwarding(nil, tp, server), 0)
		require.NoError(t, err)
		require.Equal(t, tp, tpAgain)
		require.Equal(t, server, again)
	})
}

func BenchmarkAppendResponseForwarding(b *testing.B) {
	server := netip.MustParseAddrPort("[2001:db8::1]:61616")
	buf := make([]byte, 0, 64)
	b.ReportAllocs()
	for b.Loop() {
		buf = AppendResponseForwarding(buf[:0], TransportUDP, server)
	}
}
