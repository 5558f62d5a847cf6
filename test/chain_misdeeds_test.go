package test

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// aServer is a Reply-From.
var aServer = coap.Option{Number: coap.ReplyFrom, Value: []byte{0x82, 0x20, 0x81, 0x44, 192, 0, 2, 66}}

// behindOf is a proxy whose next hop is a program that behaves as handle says to
// proxy requests, and answers attempts to find it.
func behindOf(t *testing.T, handle handler) (p *proxy, hop *server, group netip.AddrPort) {
	t.Helper()
	probed := code(4, 4, "")
	hop = single(t, func(s *server, r *request) {
		if r.Has(coap.ProxyURI) || r.Has(coap.MulticastTimeout) {
			handle(s, r)
		} else {
			probed(s, r)
		}
	})
	group = netip.AddrPortFrom(group4, 5999)
	p = startProxy(t, group, settings{groups: fmt.Sprintf("- {name: devices, uri: %q}", "coap://"+group.String()), cache: "enabled: false",
		client: `forward: ["coap://127.0.2.9"]`, top: nextHop("coap://"+hop.addr().String(), ", timeout: 1s")})
	p.waitFor("next hop is up")
	return p, hop, group
}

// complains checks a counter of the next hop, and that the log says so once, with
// the hop's name.
func (p *proxy) complains(counter, what string) {
	p.t.Helper()
	name := "next_hop_" + counter + "{next}"
	eventually(p.t, func() bool { return counted(p, name) > 0 }, "%s", name)
	said := func() (said []entry) {
		for _, e := range p.entries("next hop misbehaves") {
			if e.text("what") == what {
				said = append(said, e)
			}
		}
		return said
	}
	eventually(p.t, func() bool { return len(said()) > 0 }, "a line in the log")
	require.Len(p.t, said(), 1, "once in a minute")
	require.Equal(p.t, "next", said()[0].text("hop"))
	require.Equal(p.t, "warn", said()[0].text("level"))
}

// goesOn answers, and again and again for a time.
func goesOn(kind coap.Type, times int) handler {
	return func(s *server, r *request) {
		if !r.Has(coap.ProxyURI) { // an Early Stop
			s.send(r, coap.Message{Type: coap.ACK, ID: r.ID})
			return
		}
		s.answer(r, coap.Message{Code: coap.CodeOf(2, 5), Options: []coap.Option{aServer}, Payload: []byte("in time")})
		for range times {
			time.Sleep(300 * time.Millisecond)
			s.send(r, coap.Message{Type: kind, ID: s.nextID(), Code: coap.CodeOf(2, 5), Options: []coap.Option{aServer}, Payload: []byte("more")})
		}
	}
}

// A next hop that goes on after T', after T and after an Early Stop: nothing of that
// reaches the client, counters and log say which hop it is, and what is confirmable
// is told to stop (GP-59, GP-100, GP-103).
func TestHopGoesOn(t *testing.T) {
	t.Parallel()
	for _, kind := range []coap.Type{coap.NON, coap.CON} {
		t.Run(fmt.Sprint("after the timeout, type ", kind), func(t *testing.T) {
			t.Parallel()
			p, hop, group := behindOf(t, goesOn(kind, 20))
			c := newClient(t, here, clientAddr, p.addr())
			sent := time.Now()
			for _, in := range c.gather(get(coap.NON, groupURI(group, "/x"), timeout(2)), 6500*time.Millisecond) {
				require.Less(t, in.at.Sub(sent), 3*time.Second)
			}
			p.complains("responses_late_total", "it goes on after the timeout")
			p.complains("responses_stray_total", "it sends responses that no request waits for")
			require.EqualValues(t, 1, counted(p, "next_hop_up{next}"))
			require.Equal(t, kind == coap.CON, len(hop.empties(coap.RST)) > 0) // GP-59
		})
	}
	t.Run("after an Early Stop", func(t *testing.T) {
		t.Parallel()
		p, _, group := behindOf(t, goesOn(coap.NON, 8))
		c := newClient(t, here, clientAddr, p.addr())
		first := c.gatherN(get(coap.NON, groupURI(group, "/x"), timeout(60)), 1)[0]
		c.send(c.fresh(&coap.Message{Type: coap.NON, Code: coap.GET, Token: first.Token, Options: []coap.Option{timeout(0)}}))
		p.waitFor("early stop")
		for c.next(4*meanwhile) != nil { // what was under way
		}
		p.complains("responses_stray_total", "it sends responses that no request waits for")
		require.EqualValues(t, 1, counted(p, "next_hop_early_stops_total{next}"))
	})
	t.Run("over TCP", func(t *testing.T) {
		t.Parallel()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		over := make(chan struct{})
		t.Cleanup(func() { _ = l.Close(); <-over })
		go func() {
			defer close(over)
			raw, err := l.Accept()
			if err != nil {
				return
			}
			conn := tcpConn{raw}
			defer conn.close()
			_ = conn.put(&coap.Message{Code: csm})
			for {
				m, err := conn.take()
				switch {
				case err != nil:
					return
				case m.Has(coap.ProxyURI):
					for range 20 {
						if conn.put(&coap.Message{Code: coap.CodeOf(2, 5), Token: m.Token, Options: []coap.Option{aServer}}) != nil {
							return
						}
						time.Sleep(300 * time.Millisecond)
					}
				case m.Code == coap.GET:
					_ = conn.put(&coap.Message{Code: coap.CodeOf(4, 4), Token: m.Token})
				}
			}
		}()
		group := netip.AddrPortFrom(group4, 5999)
		p := startProxy(t, group, settings{groups: fmt.Sprintf("- {name: devices, uri: %q}", "coap://"+group.String()), top: nextHop("coap+tcp://"+l.Addr().String(), "")})
		p.waitFor("next hop is up")
		c := newClient(t, here, clientAddr, p.addr())
		sent := time.Now()
		for _, in := range c.gather(get(coap.NON, groupURI(group, "/x"), timeout(2)), 6*time.Second) {
			require.Less(t, in.at.Sub(sent), 3*time.Second)
		}
		p.complains("responses_late_total", "it goes on after the timeout")
		p.complains("responses_stray_total", "it sends responses that no request waits for")
	})
}

// Further misdeeds of a next hop, each with what the client gets of it.
func TestHopMisdeeds(t *testing.T) {
	t.Parallel()
	content := func(s *server, id uint16, text string, options ...coap.Option) coap.Message {
		return coap.Message{Type: coap.NON, ID: id, Code: coap.CodeOf(2, 5), Options: options, Payload: []byte(text)}
	}
	for _, tt := range []struct {
		name    string
		timeout uint32 // 99: a request for a single server
		handle  handler
		want    []string // codes and payloads
		counter string   // of the next hop
		what    string
	}{
		{"answers a single request twice", 99, func(s *server, r *request) {
			s.answer(r, coap.Message{Code: coap.CodeOf(2, 5), Payload: []byte("one")})
			s.send(r, content(s, s.nextID(), "two"))
		}, []string{"2.05 one"}, "responses_stray_total", "it sends responses that no request waits for"},
		{"sends a message twice", 3, func(s *server, r *request) {
			id := s.nextID()
			s.send(r, content(s, id, "one", aServer))
			s.send(r, content(s, id, "one", aServer))
		}, []string{"2.05 one"}, "", ""},
		{"an error in the middle", 3, func(s *server, r *request) {
			s.send(r, content(s, s.nextID(), "one", aServer))
			s.send(r, coap.Message{Type: coap.NON, ID: s.nextID(), Code: coap.CodeOf(5, 0)})
			s.send(r, content(s, s.nextID(), "two", aServer))
		}, []string{"2.05 one", "2.05 two"}, "responses_excess_total", "it goes on after the response that ended a request, or has errors between responses"},
		{"a refusal of the timeout in the middle", 3, func(s *server, r *request) {
			s.send(r, content(s, s.nextID(), "one", aServer))
			s.send(r, coap.Message{Type: coap.NON, ID: s.nextID(), Code: coap.CodeOf(5, 5), Options: []coap.Option{timeout(60)}})
		}, []string{"2.05 one"}, "responses_excess_total", "it goes on after the response that ended a request, or has errors between responses"},
		{"asks for less", 5, func(s *server, r *request) {
			s.answer(r, coap.Message{Code: coap.CodeOf(5, 5), Options: []coap.Option{timeout(1)}})
		}, []string{"5.02 the next proxy refused the timeout and asks for none that would do"}, "responses_nonsense_total", "it refuses a timeout and asks for none that would do"},
		{"asks for more than there is", 5, func(s *server, r *request) {
			s.answer(r, coap.Message{Code: coap.CodeOf(5, 5), Options: []coap.Option{timeout(1<<32 - 1)}})
		}, []string{"5.02 the next proxy refused the timeout and asks for none that would do"}, "responses_nonsense_total", "it refuses a timeout and asks for none that would do"},
		{"no server named", 5, with("one"), []string{"5.02 the next proxy does not say which server answered"}, "responses_unnamed_total", "it does not say which server a response is from"},
		{"a name that is none", 3, func(s *server, r *request) {
			s.send(r, content(s, s.nextID(), "one", coap.Opt(coap.ReplyFrom, "\xff\xff\xff\xff\xff")))
		}, []string{"2.05 one"}, "replyfrom_malformed_total", "its Reply-From cannot be read"},
		{"answers what wants none", 0, func(s *server, r *request) {
			s.send(r, content(s, s.nextID(), "one", aServer))
			s.answer(r, coap.Message{Code: coap.CodeOf(2, 5), Options: []coap.Option{aServer}})
		}, nil, "responses_excess_total", "it goes on after the response that ended a request, or has errors between responses"},
		{"no CoAP at all", 3, func(s *server, r *request) {
			s.sendBytes(r, []byte("\x00\xff\xff\xff\xff"))
			s.sendBytes(r, nil)
			s.send(r, content(s, s.nextID(), "one", aServer))
		}, []string{"2.05 one"}, "", ""},
		{"another Token", 3, func(s *server, r *request) {
			s.send(r, coap.Message{Type: coap.ACK, ID: r.ID})
			other := *r
			own := *r.Message
			own.Token = []byte("12345678")
			other.Message = &own
			s.send(&other, content(s, s.nextID(), "not asked for", aServer))
			s.send(r, content(s, s.nextID(), "one", aServer))
		}, []string{"2.05 one"}, "responses_stray_total", "it sends responses that no request waits for"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p, _, group := behindOf(t, tt.handle)
			c := newClient(t, here, clientAddr, p.addr())
			m := get(coap.NON, groupURI(group, "/x"), timeout(tt.timeout))
			if tt.timeout == 99 {
				m = get(coap.NON, "coap://127.0.2.9/x")
			}
			var got []string
			sent := time.Now()
			for _, in := range c.gather(m, 1500*time.Millisecond) {
				got = append(got, in.Code.String()+" "+string(in.Payload))
				require.Less(t, in.at.Sub(sent), 1500*time.Millisecond)
			}
			require.Equal(t, tt.want, got)
			if tt.counter != "" {
				p.complains(tt.counter, tt.what)
			}
			require.EqualValues(t, 1, counted(p, "next_hop_up{next}"), "it is there all the same")
		})
	}
}
