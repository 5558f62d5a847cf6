package demo

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"coapproxy/wire"
)

func TestEachMemberAnswersFromItsOwnAddress(t *testing.T) {
	g := start(t, Options{Devices: 5, Seed: 1})
	answers := newClient(t).askGroup(g, get("temp"))
	for i, d := range g.Devices() {
		require.Equal(t, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, byte(11 + i)}), g.Addr().Port()), d.Addr)
		require.Contains(t, answers, d.Addr)
		require.Equal(t, codes.Content, answers[d.Addr].Code)
		require.Regexp(t, `^\d\d\.\d °C$`, string(answers[d.Addr].Payload))
	}
}

func TestNames(t *testing.T) {
	g := start(t, Options{Devices: 14})
	var names []string
	for _, d := range g.Devices() {
		names = append(names, d.Name)
	}
	require.Equal(t, []string{"kitchen", "hall", "bedroom", "study", "bathroom", "living-room", "nursery", "attic", "cellar",
		"garage", "workshop", "conservatory", "kitchen-2", "hall-2"}, names)
	require.JSONEq(t, `{"name":"living-room","room":"Living room"}`, string(newClient(t).ask(g.Devices()[5].Addr, get("info")).Payload))
}

func TestAsManyDevicesAsPossible(t *testing.T) {
	g := start(t, Options{Devices: MaxDevices, Leisure: 100 * time.Millisecond}) // so that no buffer runs over
	require.Len(t, newClient(t).askGroup(g, get("light")), MaxDevices)
	require.Equal(t, netip.MustParseAddr("127.0.1.4"), g.Devices()[MaxDevices-1].Addr.Addr())
}

func TestPutToTheGroupChangesAll(t *testing.T) {
	g := start(t, Options{Devices: 5})
	c := newClient(t)
	for _, state := range []string{"on", "off"} {
		for _, answer := range c.askGroup(g, put(state, "light")) {
			require.Equal(t, codes.Changed, answer.Code)
		}
		for _, d := range g.Devices() {
			require.Equal(t, state, string(c.ask(d.Addr, get("light")).Payload))
		}
	}
}

// GC-30
func TestGroupHearsNoErrors(t *testing.T) {
	for name, request := range map[string]wire.Message{
		"not found":                 get("nothing"),
		"method not allowed":        put("22", "temp"),
		"bad request":               put("purple", "light"),
		"bad option":                with(get("temp"), 9, "x"),
		"not acceptable":            with(get("temp"), wire.Accept, "\x32"),
		"nothing found":             with(get(".well-known", "core"), wire.URIQuery, "rt=door"),
		"token too long":            {Code: codes.GET, Token: []byte("too long for them")},
		"confirmable":               {Type: message.Confirmable, Code: codes.GET},
		"success that nobody wants": with(get("temp"), wire.NoResponse, "\x02"), // GC-32
		"errors that are asked for": with(get("nothing"), wire.NoResponse, ""),  // GC-32
	} {
		t.Run(name, func(t *testing.T) {
			g := start(t, Options{Devices: 3})
			c := newClient(t)
			if request.Type == message.Confirmable {
				c.send(g.Addr(), request)
			} else {
				token := request.Token
				request.Type = message.NonConfirmable
				if token == nil {
					c.send(g.Addr(), request)
				} else {
					data, err := request.Append(nil)
					require.NoError(t, err)
					_, err = c.conn.WriteToUDPAddrPort(data, g.Addr())
					require.NoError(t, err)
				}
			}
			// Without leisure a device answers in order: what comes first is
			// the answer to this.
			c.askGroup(g, get("temp"))
		})
	}
}

func TestPortTaken(t *testing.T) {
	taken, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 12)})
	require.NoError(t, err)
	defer taken.Close()
	port := uint16(taken.LocalAddr().(*net.UDPAddr).Port)

	g := start(t, Options{Devices: 3, Group: netip.AddrPortFrom(DefaultGroup().Addr(), port)})
	require.NotEqual(t, port, g.Addr().Port())
	for _, d := range g.Devices() {
		require.Equal(t, g.Addr().Port(), d.Addr.Port())
	}
	require.Len(t, newClient(t).askGroup(g, get("temp")), 3)
}

// A group's socket hears nothing that is sent to this host by unicast.
func TestGroupSocketsLeavePortToOthers(t *testing.T) {
	g := start(t, Options{Devices: 1})
	other, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 10), Port: int(g.Addr().Port())})
	require.NoError(t, err, "the group's socket takes up the whole port")
	require.NoError(t, other.Close())
}

func TestWrongOptions(t *testing.T) {
	for _, c := range []struct {
		want string
		o    Options
	}{
		{"0 devices: not 1 to 250", Options{Group: DefaultGroup()}},
		{"251 devices: not 1 to 250", Options{Group: DefaultGroup(), Devices: 251}},
		{"leisure -1ns: not 0 to 1m0s", Options{Group: DefaultGroup(), Devices: 1, Leisure: -1}},
		{"leisure 1m0.000000001s: not 0 to 1m0s", Options{Group: DefaultGroup(), Devices: 1, Leisure: MaxLeisure + 1}},
		{"group 192.0.2.1: not an IPv4 multicast address", Options{Group: netip.MustParseAddrPort("192.0.2.1:5683"), Devices: 1}},
		{"group ff02::fd: not an IPv4 multicast address", Options{Group: netip.MustParseAddrPort("[ff02::fd]:5683"), Devices: 1}},
	} {
		c.o.Log = zap.NewNop()
		_, err := Start(context.Background(), c.o)
		require.EqualError(t, err, c.want)
	}
}
