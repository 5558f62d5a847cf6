package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/access"
	"coapproxy/wire"
)

// nameServer is a Resolver as a test plays it: it keeps questions waiting until
// the delay is over or the context ends.
type nameServer struct {
	delay   time.Duration
	answers map[string][]netip.Addr

	mu    sync.Mutex
	asked []string
}

func (s *nameServer) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	s.mu.Lock()
	s.asked = append(s.asked, network+" "+host)
	s.mu.Unlock()
	select {
	case <-ctx.Done():
		return nil, &net.DNSError{Err: ctx.Err().Error(), Name: host, IsTimeout: errors.Is(ctx.Err(), context.DeadlineExceeded)}
	case <-time.After(s.delay):
	}
	if s.answers[host] == nil {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return append([]netip.Addr{}, s.answers[host]...), nil
}

func (s *nameServer) questions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.asked)
}

func newNameServer(delay time.Duration) *nameServer {
	return &nameServer{delay: delay, answers: map[string][]netip.Addr{
		"server.example": addrs("192.0.2.11"), "mapped.example": addrs("::ffff:192.0.2.11"), "nodes.example": addrs("224.0.1.187"),
		"both.example": addrs("192.0.2.11", "224.0.1.187"), "inside.example": addrs("127.0.0.1"), "empty.example": {},
	}}
}

func resolving(s *nameServer) func(*setup) {
	return func(c *setup) { c.resolver = s }
}

// FP-11: resolving names is the proxy's job, and holds nobody up. An answer is
// used for a while.
func TestNames(t *testing.T) {
	dns := newNameServer(100 * time.Millisecond)
	inGateway(t, resolving(dns), func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1)
		ask := func(uriText string) { c.ask(msg(con, codes.GET, "t", uri(uriText))) }

		ask("coap://SERVER.example/r")
		c.ask(msg(con, codes.GET, "u", uri(serverURI))) // meanwhile
		a.answer(a.request(), ack, "at once")
		c.expect("ACK 2.05 |at once")
		g.after(100 * time.Millisecond)
		a.answer(a.expect("CON 0.01 3=7365727665722e6578616d706c65 11=72 16=10")[0], ack, "later")
		c.expect("ACK 2.05 |later")
		require.Equal(t, []string{"ip server.example"}, dns.asked)

		ask("coap://server.example/r")
		a.answer(a.request(), ack, "")
		c.expect("ACK 2.05")
		g.after(namesLifetime)
		ask("coap://server.example/r")
		require.Equal(t, 2, dns.questions())
		g.after(100 * time.Millisecond)
		a.answer(a.request(), ack, "")
		c.expect("ACK 2.05")

		ask("coap://boiler.example/r") // the configuration's own names need no resolver
		a.answer(a.request(), ack, "own")
		c.expect("ACK 2.05 |own")
		require.Equal(t, 2, dns.questions())

		for host, want := range map[string]string{
			"both.example":    "ACK 4.00 14= |the name stands for groups and for single servers", // GC-3
			"inside.example":  "ACK 4.01 14= |target not allowed",                                // checked after resolution
			"unknown.example": "ACK 5.02 |the name does not resolve",                             // FP-34
			"empty.example":   "ACK 5.02 |the name does not resolve",
		} {
			ask("coap://" + host + "/r")
			g.after(100 * time.Millisecond)
			c.expect(want)
		}
		ask("coap://mapped.example/r")
		g.after(100 * time.Millisecond)
		a.answer(a.request(), ack, "mapped")
		c.expect("ACK 2.05 |mapped")
	})
}

// A name server that does not answer costs the client 5 s and nobody else
// anything.
func TestSlowNameServer(t *testing.T) {
	inGateway(t, resolving(newNameServer(time.Hour)), func(g *gateway) {
		c := g.peer(userAddr)
		c.ask(msg(con, codes.GET, "t", uri("coap://server.example/r")))
		g.after(lookupTimeout - 1)
		c.expect("ACK")
		g.after(1)
		c.react(c.expect("CON 5.04 |the name server does not answer")[0], ack)
	})
}

// The names being resolved at a time are bounded; more get 5.03, and one client alone
// leaves some to others.
func TestTooManyNames(t *testing.T) {
	inGateway(t, resolving(newNameServer(time.Second)), func(g *gateway) {
		const alone = maxLookups / 4 * 3
		c, other := g.peer(userAddr), g.peer("203.0.113.6:40000")
		ask := func(c *peer, i int) { c.ask(msg(non, codes.GET, "t", uri(fmt.Sprintf("coap://%d.example/r", i)))) }
		for i := range alone {
			ask(c, i)
		}
		c.expect()
		ask(c, alone)
		c.expect("NON 5.03 14=01 |too many names are being resolved")
		for i := alone; i < maxLookups; i++ {
			ask(other, i)
		}
		other.expect()
		c.ask(msg(con, codes.GET, "u", uri("coap://server.example/r")))
		c.expect("ACK 5.03 14=01 |too many names are being resolved")
		g.after(time.Second)
		require.Len(t, append(c.take(), other.take()...), maxLookups)
		c.ask(msg(con, codes.GET, "u", uri("coap://unknown.example/r")))
		g.after(time.Second)
		c.expect("ACK", "CON 5.02 |the name does not resolve")
	})
}

// A group by its name: T' counts from the client's request on, so that a slow
// name server shortens the window, and may use it up (GC-80).
func TestGroupByName(t *testing.T) {
	named := func(s *setup) {
		s.resolver = newNameServer(2 * time.Second)
		s.access.Groups = append(s.access.Groups, access.Group{Name: "nodes", Host: "nodes.example", Port: 5683,
			Methods: []codes.Code{codes.GET}, MaxTimeout: time.Minute})
	}
	inGateway(t, named, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
		get := func(token string, seconds uint32) wire.Message {
			return msg(con, codes.GET, token, timeout(seconds), uri("coap://nodes.example/r"))
		}
		c.ask(get("a", 2))
		c.expect("ACK")
		c.ask(get("b", 10))
		c.ask(get("c", 0))
		c.ask(get("d", 10))
		c.ask(earlyStop(con, "d"))
		c.expect("ACK", "ACK", "ACK", "ACK")
		a.expect()
		g.after(2 * time.Second)
		c.react(c.expect("CON 5.03 14=01 |the name was resolved too late for the timeout")[0], ack)
		const request = "3=6e6f6465732e6578616d706c65 11=72 16=10" // GC-72: Uri-Host for a name
		var q received
		got := a.take()
		require.Len(t, got, 2, "b and c")
		for _, m := range got {
			if describe(&m.Message) == "NON 0.01 "+request {
				q = m
				continue
			}
			require.Equal(t, "NON 0.01 "+request+" 258=1a", describe(&m.Message))
		}
		g.after(8*time.Second - 1)
		a.answer(q, non, "in time")
		c.react(c.expect("CON 2.05 " + from1 + " |in time")[0], ack)
		g.after(1)
		a.answer(q, non, "late")
		c.expect()
	})
}
