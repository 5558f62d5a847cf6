package proxy

import (
	"net"
	"net/netip"
	"strconv"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/wire"
)

const linkLocalMember = "[fe80::9%lo]:5683"

// GP-57: a link-local server is named with its zone, as the index of the
// interface, unless the operator does not want that. The zone survives in
// Proxy-Cri, and never gets into Uri-Host. A follow-up without it goes where
// the server was heard.
func TestLinkLocalServer(t *testing.T) {
	lo, err := net.InterfaceByName("lo")
	require.NoError(t, err)
	require.Less(t, lo.Index, 10, "the bytes below are for one digit")
	digit := strconv.Itoa(lo.Index)
	const address = "fe800000000000000000000000000009"
	with := "82208250" + address + "61" + "3" + digit
	without := "82208150" + address

	for _, zone := range []bool{true, false} {
		inGateway(t, func(s *setup) { s.front.ZoneInReplyFrom = zone }, func(g *gateway) {
			c, a := g.peer(userAddr), g.peer(linkLocalMember, "ff02::fd")

			// Unheard, it cannot be reached without a zone.
			c.ask(msg(con, codes.GET, "a", uri("coap://[fe80::9]/r")))
			c.expect("ACK 4.00 14= |a link-local address needs a zone")

			c.ask(msg(non, codes.GET, "b", timeout(10), uri("coap://[ff02::fd%25lo]/r")))
			a.answer(a.expect("NON 0.01 11=72 16=10")[0], non, "")
			value := without
			if zone {
				value = with
			}
			c.expect("NON 2.05 248=" + value)

			// Proxy-Cri is the CRI of Reply-From with a path.
			cri := append([]byte{0x83}, unhex(t, value)[1:]...)
			cri = append(cri, 0x81, 0x61, 'r')
			for _, m := range []wire.Message{
				msg(con, codes.GET, "c", opt(wire.ProxyCRI, string(cri))),
				msg(con, codes.GET, "d", uri("coap://[fe80::9]/r")),
				msg(con, codes.GET, "e", uri("coap://[fe80::9%25lo]/r")),
				msg(con, codes.GET, "f", uri("coap://[fe80::9%25"+digit+"]/r")),
				msg(con, codes.GET, "g", opt(wire.ProxyScheme, "coap"), opt(wire.URIHost, "fe80::9%lo"), opt(wire.URIPort, "\x16\x33"), opt(wire.URIPath, "r")),
			} {
				c.ask(m)
				a.answer(a.expect("CON 0.01 11=72 16=10")[0], ack, "follow-up")
				c.expect("ACK 2.05 |follow-up")
			}
			c.ask(msg(con, codes.GET, "h", uri("coap://[fe80::9%25eth7]/r"))) // another link, where it was not heard
			c.expect("ACK 4.01 14= |target not allowed")
		})
	}
}

// The text of a zone is asked for again after a while: an interface that is
// made anew has another index.
func TestZoneText(t *testing.T) {
	var z zoneText
	addr := netip.MustParseAddr("fe80::1%lo")
	require.Equal(t, "1", z.of(addr).Zone())
	z.index["lo"] = "7" // what it was
	require.Equal(t, "7", z.of(addr).Zone())
	z.asked = z.asked.Add(-zoneAge - 1)
	require.Equal(t, "1", z.of(addr).Zone())
	require.Equal(t, "no such", z.of(addr.WithZone("no such")).Zone())
	require.Equal(t, addr.WithZone(""), z.of(addr.WithZone("")))
	for i := range 2 * maxZones {
		z.of(addr.WithZone(strconv.Itoa(i) + "x"))
		require.LessOrEqual(t, len(z.index), maxZones)
	}
	for zone, want := range map[string]string{"1": "lo", "lo": "lo", "": "", "999999": "999999", "-1": "-1"} {
		require.Equal(t, want, canonicalZone(zone))
	}
}
