package test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// named chooses a handler by the name of the server.
func named(handlers map[string]handler) handler {
	return func(s *server, r *request) { handlers[s.name](s, r) }
}

// What servers do that RFC 7252 allows and simple proxies do not expect.
func TestUnusualServers(t *testing.T) {
	t.Parallel()
	twice := func(s *server, r *request) {
		s.answer(r, coap.Message{Code: coap.CodeOf(2, 5), Payload: []byte("first")})
		time.Sleep(100 * time.Millisecond)
		s.answer(r, coap.Message{Code: coap.CodeOf(2, 5), Payload: []byte("second")})
	}
	repeated := func(s *server, r *request) {
		for range 3 {
			s.send(r, coap.Message{Type: coap.NON, ID: 0x0303, Code: coap.CodeOf(2, 5), Payload: []byte("once")})
		}
	}
	otherPort := func(s *server, r *request) {
		s.send(r, coap.Message{Type: coap.NON, ID: s.nextID(), Code: coap.CodeOf(2, 5), Payload: []byte("from another port")})
	}
	confirmable := func(s *server, r *request) {
		s.send(r, coap.Message{Type: coap.CON, ID: 0x0505, Code: coap.CodeOf(2, 5), Payload: []byte("con")})
	}
	resets := func(s *server, r *request) {
		s.sendBytes(r, (&coap.Message{Type: coap.RST, ID: r.ID}).Bytes())
		content(s, r)
	}
	liar := with("liar", coap.Opt(coap.GroupETag, "its own"), coap.Option{Number: coap.ReplyFrom, Value: []byte{0x82, 0x20, 0x81, 0x44, 192, 0, 2, 66}})
	rich := with("rich", coap.Opt(coap.ETag, "e1"), coap.Uint(coap.ContentFormat, 40), coap.Uint(coap.MaxAge, 5),
		coap.Opt(8, "a"), coap.Opt(8, "b"), coap.Opt(2049, "critical, safe, unknown"), coap.Opt(2304, "elective, safe, unknown"))
	unsafe := with("unsafe", coap.Opt(2050, "elective, unsafe, unknown"))
	strange := func(s *server, r *request) {
		s.answer(r, coap.Message{Code: coap.CodeOf(3, 0), Payload: []byte("strange code")})
	}

	servers, group := members(t, 10, named(map[string]handler{
		"member1": code(4, 4, "no such thing"), "member2": twice, "member3": repeated, "member4": otherPort, "member5": confirmable,
		"member6": resets, "member7": liar, "member8": rich, "member9": unsafe, "member10": strange,
	}))
	other := mustSocket(t, here, netip.AddrPortFrom(memberAddr(4), 0))
	servers[3].answerFrom(other)
	p := startProxy(t, group, settings{})
	c := newClient(t, here, clientAddr, p.addr())

	responses := c.gatherJust(get(coap.NON, groupURI(group, "/x"), timeout(60)), len(servers)+1)
	got := make(map[string][]*coap.Message)
	for _, in := range responses {
		server := serverOf(t, in)
		if server.Addr() == memberAddr(4) {
			require.Equal(t, other.local, server) // GC-17
		}
		for _, s := range servers {
			if s.addr() == server {
				got[s.name] = append(got[s.name], in.Message)
			}
		}
	}
	require.Len(t, got, len(servers), "servers heard")
	require.Equal(t, coap.CodeOf(4, 4), got["member1"][0].Code) // GC-31
	require.Equal(t, "no such thing", string(got["member1"][0].Payload))
	require.Equal(t, "first", string(got["member2"][0].Payload)) // GP-58
	require.Equal(t, "second", string(got["member2"][1].Payload))
	require.Equal(t, "once", string(got["member3"][0].Payload)) // GC-16
	require.Equal(t, "from another port", string(got["member4"][0].Payload))
	require.Equal(t, "con", string(got["member5"][0].Payload))
	require.Equal(t, coap.NON, got["member5"][0].Type)
	eventually(t, func() bool { return len(servers[4].empties(coap.ACK)) > 0 }, "an ACK")
	acks := servers[4].empties(coap.ACK)
	require.Len(t, acks, 1) // GC-12
	require.Equal(t, uint16(0x0505), acks[0].ID)
	require.Equal(t, "member6/x", string(got["member6"][0].Payload)) // GC-15
	require.Equal(t, "liar", string(got["member7"][0].Payload))      // GP-51, by serverOf
	require.False(t, got["member7"][0].Has(coap.GroupETag))          // GP-84

	var options []string // FP-21, FP-23, FP-24
	for _, o := range got["member8"][0].Options {
		if o.Number != coap.ReplyFrom {
			options = append(options, o.String())
		}
	}
	require.Equal(t, []string{`4:"e1"`, `8:"a"`, `8:"b"`, `12:"("`, "14:05", `2049:"critical, safe, unknown"`,
		`2304:"elective, safe, unknown"`}, options)
	for _, name := range []string{"member9", "member10"} { // GP-60, FP-20, FP-27
		require.Equal(t, coap.CodeOf(5, 2), got[name][0].Code, name)
		require.False(t, got[name][0].Has(2050))
	}
}

// What is no answer to the request is not taken for one.
func TestForeignResponses(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 4, named(map[string]handler{
		"member1": func(s *server, r *request) { // GP-50: another Token
			token := append([]byte(nil), r.Token...)
			token[0] ^= 1
			r.Token = token
			content(s, r)
			r.Token = token[:4]
			content(s, r)
			r.Token = nil
			content(s, r)
			s.sendBytes(r, (&coap.Message{Type: coap.CON, ID: 0x1111, Code: coap.CodeOf(2, 5), Token: token}).Bytes())
		},
		"member2": func(s *server, r *request) { // no CoAP at all, and half of it
			s.sendBytes(r, nil)
			s.sendBytes(r, []byte("hello"))
			m := coap.Message{Type: coap.NON, ID: 2, Code: coap.CodeOf(2, 5), Token: r.Token, Options: []coap.Option{coap.Opt(coap.ETag, "12345678")}}
			b := m.Bytes()
			for n := range b[:len(b)-1] {
				if n == 12 {
					continue // a whole message without options
				}
				s.sendBytes(r, b[:n])
			}
			s.sendBytes(r, append(b, 0xff))
		},
		"member3": func(s *server, r *request) { // a request, with the Token of this one
			s.send(r, coap.Message{Type: coap.CON, ID: 0x3333, Code: coap.GET})
		},
		"member4": content,
	}))
	p := startProxy(t, group, settings{})
	c := newClient(t, here, clientAddr, p.addr())
	responses := c.gatherJust(get(coap.NON, groupURI(group, "/x"), timeout(60)), 1)
	require.Equal(t, "member4/x", string(responses[0].Payload))
	// What cannot be matched is reset when it asks for an answer (RFC 7252 §4.2).
	for i, id := range map[int]uint16{0: 0x1111, 2: 0x3333} {
		eventually(t, func() bool { return len(servers[i].empties(coap.RST)) > 0 }, "a RST for member%d", i+1)
		resets := servers[i].empties(coap.RST)
		require.Len(t, resets, 1, "member%d", i+1)
		require.Equal(t, id, resets[0].ID)
	}
}

// GC-25: where a group names its sources, others are not believed.
func TestAllowedSources(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 4, content)
	p := startProxy(t, group, settings{group: "allowed_sources: [127.0.1.2/31]\nnstart: 16\nleisure: 1s"})
	c := newClient(t, here, clientAddr, p.addr())
	got := payloads(t, c.gatherJust(get(coap.NON, groupURI(group, "/x"), timeout(60)), 2))
	require.Equal(t, map[netip.AddrPort][]string{servers[1].addr(): {"member2/x"}, servers[2].addr(): {"member3/x"}}, got)
}

// A body in blocks: fetched by the proxy when the client did not ask for blocks,
// left to the client when it did (GC-54).
func TestGroupBlockwise(t *testing.T) {
	t.Parallel()
	small, large := pattern(700), pattern(5000)
	servers, group := members(t, 3, paths(map[string]handler{
		"small": blockwise(small, 2, coap.Opt(coap.ETag, "e")),
		"large": blockwise(large, 5),
	}))
	p := startProxy(t, group, settings{})
	c := newClient(t, here, clientAddr, p.addr())

	t.Run("whole", func(t *testing.T) {
		for _, in := range c.gatherN(get(coap.NON, groupURI(group, "/small"), timeout(60)), len(servers)) {
			require.Equal(t, coap.CodeOf(2, 5), in.Code)
			require.Equal(t, string(small), string(in.Payload))
			require.False(t, in.Has(coap.Block2))
			require.Equal(t, [][]byte{[]byte("e")}, in.All(coap.ETag))
			serverOf(t, in)
		}
		for _, s := range servers { // GC-55: the rest by unicast, size as the server chose
			requests := s.requestsTo("/small")
			require.Len(t, requests, 11, s.name)
			require.True(t, requests[0].to.IsMulticast())
			for i, r := range requests[1:] {
				require.False(t, r.to.IsMulticast())
				b, _ := r.Option(coap.Block2)
				require.Equal(t, uint64(i+1)<<4|2, b.Uint())
			}
		}
	})

	t.Run("first blocks", func(t *testing.T) {
		responses := c.gatherN(get(coap.NON, groupURI(group, "/large"), timeout(60), block(coap.Block2, 0, false, 4)), len(servers))
		for _, in := range responses {
			require.Equal(t, string(large[:256]), string(in.Payload))
			b, ok := in.Option(coap.Block2)
			require.True(t, ok)
			require.Equal(t, uint64(8|4), b.Uint())
		}
		for _, s := range servers {
			require.Len(t, s.requestsTo("/large"), 1)
		}
		// The client fetches the rest by unicast through the proxy.
		server := serverOf(t, responses[0])
		var body strings.Builder
		body.Write(responses[0].Payload)
		for num := uint32(1); ; num++ {
			in := c.ask(get(coap.CON, "coap://"+server.String()+"/large", block(coap.Block2, num, false, 4)))
			require.Equal(t, coap.CodeOf(2, 5), in.Code, "%q", in.Payload)
			body.Write(in.Payload)
			if b, _ := in.Option(coap.Block2); b.Uint()&8 == 0 {
				break
			}
		}
		require.Equal(t, string(large), body.String())
	})

	// What does not fit the client's message comes as the server sent it.
	t.Run("too large", func(t *testing.T) {
		for _, in := range c.gatherN(get(coap.NON, groupURI(group, "/large"), timeout(60)), len(servers)) {
			require.Equal(t, string(large[:512]), string(in.Payload))
			b, ok := in.Option(coap.Block2)
			require.True(t, ok)
			require.Equal(t, uint64(8|5), b.Uint())
		}
	})
}
