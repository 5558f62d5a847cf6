package multicast

import (
	"context"
	"net"
	"net/netip"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/endpoint"
	"coapproxy/exchange"
	"coapproxy/wire"
)

func bothInterfaces(c *Config) { c.Groups[0].Interfaces = []string{"eth0", "eth1"} }

// GC-8, GP-31: the same request with the same Token goes out on each interface.
// A server that hears both may answer both, and both answers are relayed.
func TestEveryInterface(t *testing.T) {
	inSite(t, bothInterfaces, func(s *site) {
		a := s.member("192.0.2.11:5683", "224.0.1.187")
		w, _ := s.ask(get(nodes4, 10))
		q := a.heard()
		require.Len(t, q, 2)
		require.Equal(t, netip.MustParseAddr("192.0.2.1"), q[0].from.Addr())
		require.Equal(t, netip.MustParseAddr("198.51.100.1"), q[1].from.Addr())
		require.Equal(t, q[0].Token, q[1].Token)
		require.Equal(t, q[0].Options, q[1].Options)
		a.answer(q[0], non, "by eth0")
		a.answer(q[1], non, "by eth1")
		require.Equal(t, []string{"by eth0", "by eth1"}, w.got())
		require.EqualValues(t, 1, s.stats.Requests.Load())
	})
}

// GC-7: the outgoing interface is never left to chance. A socket of its own
// stands for family, interface and hop limit (GC-6, GC-13), and is used again.
func TestWays(t *testing.T) {
	for name, tt := range map[string]struct {
		addr       string
		loopback   bool
		interfaces []string
		hopLimit   int
		to         string
	}{
		"IPv4":            {"239.255.0.1:5683", false, []string{"eth0", "eth1"}, 16, "239.255.0.1"},
		"IPv6":            {"[ff05::fd]:5683", true, []string{"eth0", "eth1"}, 16, "ff05::fd"},
		"link-local":      {"[ff02::fd]:5683", false, []string{"eth0", "eth1"}, 1, "ff02::fd"},
		"zone":            {"[ff02::fd%eth1]:5683", false, []string{"eth1"}, 1, "ff02::fd"},
		"zone, any scope": {"[ff05::fd%eth0]:5683", false, []string{"eth0"}, 16, "ff05::fd"},
	} {
		t.Run(name, func(t *testing.T) {
			inSite(t, func(c *Config) {
				bothInterfaces(c)
				c.Groups[0].Loopback = tt.loopback
				c.Groups[0].HopLimit = func(a netip.Addr) int {
					if a.IsLinkLocalMulticast() {
						return 1
					}
					return 16
				}
			}, func(s *site) {
				a := s.member("192.0.2.11:5683", tt.to)
				if netip.MustParseAddr(tt.to).Is6() {
					a = s.member("[2001:db8::11]:5683", tt.to)
				}
				for range 2 {
					s.ask(get(tt.addr, 10))
					require.Len(t, a.heard(), len(tt.interfaces))
				}
				require.Len(t, s.opened, len(tt.interfaces))
				for i, o := range s.opened {
					require.Equal(t, tt.interfaces[i], o.options.Interface.Name)
					require.Equal(t, tt.hopLimit, o.options.HopLimit)
					require.Equal(t, tt.loopback, o.options.Loopback)
					require.True(t, o.local.Addr().IsUnspecified())
					require.Zero(t, o.local.Port())
				}
				s.ask(get("224.0.1.187:5683", 10))
				want := 2 * len(tt.interfaces)
				if name == "IPv4" {
					want = 2
				} else if len(tt.interfaces) == 1 {
					want = 3
				}
				require.Len(t, s.opened, want, "sockets are per family")
			})
		})
	}
}

// A group cannot be reached when none of its interfaces is there; when some
// are, it is, and the log tells.
func TestMissingInterfaces(t *testing.T) {
	inSite(t, bothInterfaces, func(s *site) {
		a := s.member("192.0.2.11:5683", "224.0.1.187")
		s.down["eth1"] = true
		w, _ := s.ask(get(nodes4, 10))
		require.Len(t, a.heard(), 1)
		require.True(t, w.open())
		require.Equal(t, 1, s.log.FilterMessageSnippet("some of its interfaces").Len())

		w, _ = s.ask(get("[ff02::fd%eth1]:5683", 10))
		w.failure(exchange.Unreachable)
		w, _ = s.ask(get("[ff02::fd%eth7]:5683", 10))
		w.failure(exchange.Unreachable)
		w, _ = s.ask(get("[ff02::fd%eth7]:5683", 0))
		w.failure(exchange.Unreachable)

		s.down["eth1"] = false
		s.ask(get(nodes4, 10))
		require.Len(t, a.heard(), 2)
	})
}

// GC-2: a name may stand for several groups, each with its own interfaces. The
// first decides on limits.
func TestSeveralGroups(t *testing.T) {
	two := func(c *Config) {
		second := testGroup("second")
		second.Interfaces = []string{"eth1"}
		c.Groups = append(c.Groups, second)
	}
	inSite(t, two, func(s *site) {
		a, b := s.member("192.0.2.11:5683", "224.0.1.187"), s.member("[2001:db8::11]:5683", "ff05::fd")
		r := get(nodes4, 10)
		r.Target.Also = []exchange.GroupAddr{{Addr: netip.MustParseAddrPort(nodes6), Name: "second"}}
		w, _ := s.ask(r)
		qa, qb := a.request(), b.request()
		require.Equal(t, qa.Token, qb.Token)
		require.Equal(t, netip.MustParseAddr("2001:db8:1::1"), qb.from.Addr())
		a.answer(qa, non, "a")
		b.answer(qb, non, "b")
		require.Equal(t, []string{"a", "b"}, w.got())
	})
	inSite(t, two, func(s *site) { // nothing is left behind when one of them fails
		r := get(nodes4, 10)
		r.Target.Also = []exchange.GroupAddr{{Addr: netip.MustParseAddrPort(nodes6), Name: "unknown"}}
		w, _ := s.ask(r)
		w.failure(exchange.Unreachable)
	})
}

func TestUnknownGroup(t *testing.T) {
	inSite(t, nil, func(s *site) {
		r := get(nodes4, 10)
		r.Target.GroupName = "unknown"
		w, _ := s.ask(r)
		w.failure(exchange.Denied)
		require.Error(t, s.leg.Prepare("unknown", netip.MustParseAddr("224.0.1.187")))
	})
}

// Prepare finds at the start what would fail with the first request.
func TestPrepare(t *testing.T) {
	inSite(t, nil, func(s *site) {
		s.down["eth0"] = true
		require.ErrorContains(t, s.leg.Prepare("nodes", netip.MustParseAddr("224.0.1.187")), "eth0")
		s.down["eth0"] = false
		require.NoError(t, s.leg.Prepare("nodes", netip.MustParseAddr("224.0.1.187")))
		require.Len(t, s.opened, 1)
		s.ask(get(nodes4, 10))
		require.Len(t, s.opened, 1)
	})
}

// On a loopback interface the kernel would not choose one of its addresses.
func TestLoopbackSource(t *testing.T) {
	var opened []netip.AddrPort
	inSite(t, func(c *Config) {
		c.Groups[0].Interfaces = []string{"lo"}
		c.Interface = net.InterfaceByName
		c.Open = func(_ context.Context, local netip.AddrPort, _ endpoint.MulticastOptions) (endpoint.PacketConn, error) {
			opened = append(opened, local)
			return nil, net.ErrClosed
		}
	}, func(s *site) {
		require.Error(t, s.leg.Prepare("nodes", netip.MustParseAddr("224.0.1.187")))
		require.Equal(t, []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, opened)
	})
}

// A datagram that cannot be sent is the network's loss, and counted; the window
// stays open for the others.
func TestSendFails(t *testing.T) {
	inSite(t, nil, func(s *site) {
		require.NoError(t, s.leg.Prepare("nodes", netip.MustParseAddr("224.0.1.187")))
		s.opened[0].conn.Refuse(func(*endpoint.Datagram) error { return net.ErrWriteToConnected })
		w, _ := s.ask(get(nodes4, 10))
		require.True(t, w.open())
		require.EqualValues(t, 1, s.messages.SendFailed.Load())

		r := get(nodes4, 10)
		r.Options = message.Options{{ID: wire.URIPath}, {ID: wire.IfMatch}} // not in order: it cannot be encoded
		s.ask(r)
		require.EqualValues(t, 1, s.stats.SendFailed.Load())
	})
}

// The leg sends the options and payload of a request as they are.
func TestRequestBytes(t *testing.T) {
	inSite(t, nil, func(s *site) {
		a := s.member("192.0.2.11:5683", "224.0.1.187")
		r := get(nodes4, 10, message.Option{ID: wire.URIQuery, Value: []byte("q=1")}, message.Option{ID: 65000, Value: []byte("x")})
		r.Method, r.Payload = codes.PUT, []byte("on")
		s.ask(r)
		q := a.request()
		require.Equal(t, codes.PUT, q.Code)
		require.Equal(t, r.Options, q.Options)
		require.Equal(t, "on", string(q.Payload))
	})
}
