package test

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// The main job on real multicast, byte by byte.
func TestGroup(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 5, content)
	p := startProxy(t, group, settings{})
	c := newClient(t, here, clientAddr, p.addr())

	// NON GET, Message ID 0x1234, Token a1b2; Multicast-Timeout 4;
	// Proxy-Uri coap://224.0.1.187:PORT/temp?u=C.
	uri := fmt.Sprintf("coap://%v/temp?u=C", group)
	sent := time.Now()
	c.sendHex("5201 1234 a1b2 21 04" + "dd14" + fmt.Sprintf("%02x", len(uri)-13) + hex.EncodeToString([]byte(uri)))

	seen := make(map[string]bool)
	ids := make(map[uint16]bool)
	for range servers {
		in := c.expect()
		require.Equal(t, coap.NON, in.Type) // GP-33
		require.Equal(t, coap.CodeOf(2, 5), in.Code)
		require.Equal(t, []byte{0xa1, 0xb2}, in.Token)
		require.Equal(t, p.addr(), in.from)
		ids[in.ID] = true
		server := serverOf(t, in) // GP-52
		require.Len(t, in.Options, 1)
		addr := server.Addr().As4()
		require.Equal(t, fmt.Sprintf("82208244%x19%04x", addr[:], server.Port()), hex.EncodeToString(in.Options[0].Value))
		require.Equal(t, group.Port(), server.Port())
		require.Equal(t, fmt.Sprintf("member%d/temp", addr[3]), string(in.Payload))
		seen[server.String()] = true
	}
	require.Len(t, seen, len(servers))
	require.Len(t, ids, len(servers), "Message IDs of the responses")
	require.Less(t, time.Since(sent), 4*time.Second, "responses are relayed as they come") // GC-84
	c.nothing(time.Until(sent.Add(4500 * time.Millisecond)))

	for _, s := range servers {
		requests := s.requests()
		require.Len(t, requests, 1) // GP-31
		r := requests[0]
		require.Equal(t, coap.NON, r.Type) // GC-11
		require.Equal(t, coap.GET, r.Code)
		require.Len(t, r.Token, 8) // GC-22
		require.Equal(t, servers[0].requests()[0].Token, r.Token)
		// No Multicast-Timeout (GP-28), no Proxy-Uri, no Uri-Host for a literal
		// (GC-72), a Hop-Limit (FP-53).
		require.Equal(t, []coap.Option{coap.Opt(coap.URIPath, "temp"), coap.Opt(coap.URIQuery, "u=C"), coap.Uint(coap.HopLimit, 16)}, r.Options)
		require.Equal(t, 1, r.hops) // GC-6
	}
}

// groupURI is the URI of a resource of a group.
func groupURI(group netip.AddrPort, path string) string {
	return fmt.Sprintf("coap://%v%s", group, path)
}

func TestGroupConfirmable(t *testing.T) {
	t.Parallel()
	_, group := members(t, 12, content)
	p := startProxy(t, group, settings{})
	c := newClient(t, here, clientAddr, p.addr())
	c.keepMute(true)

	sent := time.Now()
	m := c.fresh(get(coap.CON, groupURI(group, "/x"), timeout(4)))
	c.send(m)
	ack := c.expect()
	require.Equal(t, coap.Message{Type: coap.ACK, ID: m.ID, Token: []byte{}}, *ack.Message) // GP-33

	// One response waits for its ACK, until the client has shown that it is there
	// (FP-86), eight after that (GP-33).
	alone := c.expect()
	require.Equal(t, coap.CON, alone.Type)
	c.nothing(500 * time.Millisecond)
	c.send(&coap.Message{Type: coap.ACK, ID: alone.ID})
	first := make(map[uint16]incoming)
	for len(first) < 8 {
		in := c.expect()
		require.Equal(t, coap.CON, in.Type)
		require.Equal(t, m.Token, in.Token)
		serverOf(t, in)
		first[in.ID] = in
	}
	c.nothing(500 * time.Millisecond)
	var kept uint16
	for kept = range first {
		break
	}
	for id := range first {
		if id != kept {
			c.send(&coap.Message{Type: coap.ACK, ID: id})
		}
	}
	all := 1 + len(first)
	for ; all < 12; all++ {
		in := c.expect()
		require.NotContains(t, first, in.ID)
		c.send(&coap.Message{Type: coap.ACK, ID: in.ID})
	}
	// One sent before T' is repeated, after T' too (GP-33), as it was and when RFC
	// 7252 §4.2 says: first after 2 to 3 s, then after twice that.
	for i, after := range []time.Duration{1900 * time.Millisecond, 5900 * time.Millisecond} {
		in := c.expect()
		require.Equal(t, first[kept].data, in.data)
		require.Greater(t, in.at.Sub(sent), after, "repetition %d", i+1)
	}
	c.send(&coap.Message{Type: coap.ACK, ID: kept})
	c.nothing(meanwhile)
}

// GP-33: the type of the responses is the client's unless its entry says
// otherwise.
func TestResponseType(t *testing.T) {
	t.Parallel()
	_, group := members(t, 2, content)
	for _, tt := range []struct {
		entry         string
		request, want coap.Type
	}{{"same", coap.CON, coap.CON}, {"con", coap.NON, coap.CON}, {"non", coap.CON, coap.NON}} {
		p := startProxy(t, group, settings{client: "response_type: " + tt.entry})
		c := newClient(t, here, clientAddr, p.addr())
		for _, in := range c.gatherN(get(tt.request, groupURI(group, "/x"), timeout(60)), 2) {
			require.Equal(t, tt.want, in.Type, tt.entry)
		}
	}
}

// Nobody waits for responses with T' = 0.
func TestGroupWithoutResponses(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 2, content)
	p := startProxy(t, group, settings{})
	c := newClient(t, here, clientAddr, p.addr())

	con := c.fresh(get(coap.CON, groupURI(group, "/con"), timeout(0)))
	c.send(con)
	require.Equal(t, coap.Message{Type: coap.ACK, ID: con.ID, Token: []byte{}}, *c.expect().Message) // GP-34
	c.send(c.fresh(get(coap.NON, groupURI(group, "/non"), timeout(0))))
	c.send(c.fresh(get(coap.NON, groupURI(group, "/own"), timeout(0), coap.Uint(coap.NoResponse, 2))))
	c.send(c.fresh(get(coap.NON, groupURI(group, "/observe"), timeout(0), coap.Uint(coap.Observe, 0))))
	for _, s := range servers {
		eventually(t, func() bool { return len(s.requests()) == 4 }, "requests at %s", s.name)
		for path, want := range map[string]uint64{"/con": 26, "/non": 26, "/own": 2, "/observe": 26} { // GP-35
			r := s.requestsTo(path)[0]
			value, ok := r.Option(coap.NoResponse)
			require.True(t, ok, path)
			require.Equal(t, want, value.Uint(), path)
			require.False(t, r.Has(coap.Observe), path) // GP-36
		}
	}
	c.nothing(300 * time.Millisecond) // GP-32

	// Errors are told all the same, unless the client does not want to know (GP-34).
	in := c.ask(get(coap.NON, "coap://224.0.1.188/x", timeout(0)))
	require.Equal(t, coap.CodeOf(4, 1), in.Code)
	c.send(c.fresh(get(coap.NON, "coap://224.0.1.188/x", timeout(0), coap.Uint(coap.NoResponse, 26))))
	c.nothing(300 * time.Millisecond)
}

// The window is T' long: what comes in it is relayed, what comes after it not.
func TestTimeout(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 4, func(s *server, r *request) {
		time.Sleep(map[string]time.Duration{"member2": time.Second, "member3": 4 * time.Second, "member4": 4 * time.Second}[s.name])
		if s.name == "member4" {
			s.send(r, coap.Message{Type: coap.CON, ID: 0x4444, Code: coap.CodeOf(2, 5)})
			return
		}
		content(s, r)
	})
	p := startProxy(t, group, settings{})
	c := newClient(t, here, clientAddr, p.addr())
	got := payloads(t, c.gather(get(coap.NON, groupURI(group, "/x"), timeout(3)), 4500*time.Millisecond))
	require.Equal(t, map[netip.AddrPort][]string{
		servers[0].addr(): {"member1/x"},
		servers[1].addr(): {"member2/x"},
	}, got) // GP-32, GP-38
	// GP-59: a late NON is dropped, a late CON reset.
	eventually(t, func() bool { return len(servers[3].empties(coap.RST)) == 1 }, "the RST for the late response")
	require.Equal(t, uint16(0x4444), servers[3].empties(coap.RST)[0].ID)
	require.Empty(t, servers[2].empties(coap.RST))
}

// GP-29: a timeout above the limit is lowered or refused.
func TestTimeoutLimit(t *testing.T) {
	t.Parallel()
	_, group := members(t, 1, after(1500*time.Millisecond, content))
	lowered := startProxy(t, group, settings{proxy: "max_timeout: 1s"})
	c := newClient(t, here, clientAddr, lowered.addr())
	require.Empty(t, c.gather(get(coap.NON, groupURI(group, "/x"), timeout(0xffffffff)), 2500*time.Millisecond))
	lowered.logged("Multicast-Timeout lowered", 1)

	refused := startProxy(t, group, settings{proxy: "max_timeout: 1s\nrefuse_above_max: true"})
	c = newClient(t, here, clientAddr, refused.addr())
	in := c.ask(get(coap.NON, groupURI(group, "/x"), timeout(2)))
	require.Equal(t, coap.CodeOf(4, 0), in.Code)
	require.Contains(t, string(in.Payload), "Multicast-Timeout")
}

// A silent group costs the client nothing but the wait (GP-38).
func TestNobodyAnswers(t *testing.T) {
	t.Parallel()
	_, group := members(t, 2, silent)
	p := startProxy(t, group, settings{})
	c := newClient(t, here, clientAddr, p.addr())
	require.Empty(t, c.gather(get(coap.NON, groupURI(group, "/x"), timeout(1)), 1500*time.Millisecond))
	require.Empty(t, c.gather(get(coap.CON, groupURI(group, "/x"), timeout(1)), 1500*time.Millisecond))
}

// Requests of many clients do not disturb each other.
func TestManyGroupExchanges(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 5, content)
	p := startProxy(t, group, settings{group: "nstart: 1000\nleisure: 1s", client: "max_exchanges: 1000"})
	const clients, each = 10, 10
	for i := range clients {
		c := newClient(t, here, netip.AddrFrom4([4]byte{127, 0, 0, byte(10 + i)}), p.addr())
		got := make(map[string]int)
		for j := range each {
			c.send(c.fresh(get(coap.NON, groupURI(group, fmt.Sprintf("/%d/%d", i, j)), timeout(60))))
		}
		for range each * len(servers) {
			in := c.expect()
			got[fmt.Sprintf("%x %v %s", in.Token, serverOf(t, in), in.Payload)]++
		}
		require.Len(t, got, each*len(servers))
	}
}

// A body travels with the request; the methods are those the group allows.
func TestGroupMethods(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 3, func(s *server, r *request) {
		s.answer(r, coap.Message{Code: coap.CodeOf(2, 4), Payload: r.Payload})
	})
	p := startProxy(t, group, settings{group: "methods: [GET, FETCH, PUT, iPATCH, POST]\nnstart: 16\nleisure: 1s"})
	c := newClient(t, here, clientAddr, p.addr())
	for _, method := range []coap.Code{coap.PUT, coap.FETCH, coap.POST, 7} {
		m := get(coap.NON, groupURI(group, "/light"), timeout(60), coap.Uint(coap.ContentFormat, 60))
		m.Code, m.Payload = method, []byte{0xa1, 0x01, 0xf5}
		for _, in := range c.gatherN(m, 3) {
			require.Equal(t, coap.CodeOf(2, 4), in.Code)
			require.Equal(t, m.Payload, in.Payload)
		}
	}
	for _, s := range servers {
		require.Len(t, s.requests(), 4)
		for _, r := range s.requests() {
			require.Equal(t, []coap.Option{coap.Opt(coap.URIPath, "light"), coap.Uint(coap.ContentFormat, 60), coap.Uint(coap.HopLimit, 16)}, r.Options)
		}
	}
	m := get(coap.NON, groupURI(group, "/light"), timeout(2))
	m.Code = coap.DELETE
	in := c.ask(m)
	require.Equal(t, coap.CodeOf(4, 5), in.Code) // GC-70
}

// GC-40: a request that is sent once more, to those that missed it or to all.
func TestRepeat(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"same-mid", "new-mid"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			servers, group := members(t, 1, func(s *server, r *request) {
				if len(s.requests()) > 1 { // the first one is lost
					content(s, r)
				}
			})
			p := startProxy(t, group, settings{group: "leisure: 500ms\nmethods: [GET, POST]\nprobing_rate: 0\nnstart: 16\nrepeat: " + mode})
			c := newClient(t, here, clientAddr, p.addr())
			c.gatherN(get(coap.NON, groupURI(group, "/x"), timeout(60)), 1)
			requests := servers[0].requests()
			require.Len(t, requests, 2)
			require.Equal(t, requests[0].Token, requests[1].Token)
			require.Equal(t, mode == "same-mid", requests[0].ID == requests[1].ID)
			require.Greater(t, requests[1].at.Sub(requests[0].at), 450*time.Millisecond)
		})
	}
}

// GC-24: a source port whose Tokens are used up is left for a new one, and
// closed when nobody waits on it any more.
func TestTokenReuseList(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 1, content)
	p := startProxy(t, group, settings{limits: "reuse_list: 2"})
	c := newClient(t, here, clientAddr, p.addr())
	before := p.files()
	tokens := make(map[string]bool)
	ports := make(map[uint16]bool)
	for range 12 {
		m := get(coap.NON, groupURI(group, "/x"), timeout(30))
		c.gatherN(m, 1)
		c.send(earlyStop(coap.CON, c.id+0x4000, m.Token))
		require.Equal(t, coap.ACK, c.expect().Type)
	}
	for _, r := range servers[0].requests() {
		tokens[string(r.Token)] = true
		ports[r.from.Port()] = true
	}
	require.Len(t, tokens, 12) // GC-22
	require.GreaterOrEqual(t, len(ports), 4)
	eventually(t, func() bool { return p.files() <= before }, "%d files open, %d before", p.files(), before)
}
