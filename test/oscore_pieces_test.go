package test

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
	"coapproxy/test/internal/oscore"
)

// OH-75: between two proxies with an OSCORE layer there is one that passes it on and
// cuts what does not fit one message. Another coapproxy does that when the protection
// makes a block of 1024 bytes longer.
func TestOSCOREResponseCutByProxy(t *testing.T) {
	t.Parallel()
	body := pattern(5000)
	origin := single(t, func(s *server, r *request) {
		if r.Path() == "/small" {
			content(s, r)
			return
		}
		blockwise(body, 6)(s, r)
	})
	far, near := newOSCOREBed(t, "near"), newOSCOREBed(t)
	far.hand("near", near, "far")
	q := far.start(netip.AddrPort{}, settings{listen: "- coap+tcp://127.0.0.1:0", clients: far.clients("near"),
		top: fmt.Sprintf("routes:\n- {name: origin, host: [far.example], to: \"coap://%v\"}", origin.addr())})
	middle := startProxy(t, netip.AddrPort{}, settings{client: fmt.Sprintf("forward: [\"coap+tcp://%v\"]", q.addr()),
		top:   fmt.Sprintf("routes:\n- {name: far, host: [far.example], to: \"coap+tcp://far.example:%d\", oscore: pass-through}", q.addr().Port()),
		names: "far.example: [127.0.0.1]"})
	p := near.start(netip.AddrPort{}, settings{listen: "- coap://127.0.0.1:0\n- http://127.0.0.1:0", client: "forward: [\"coap://*:*\"]", names: "far.example: [127.0.0.1]",
		top: fmt.Sprintf("oscore:\n  servers:\n    - {target: %v, context: far}", middle.addr())})
	c := newClient(t, here, clientAddr, p.addr())
	uri := fmt.Sprintf("coap://far.example:%d", middle.addr().Port())
	require.Equal(t, "server/small", string(c.ask(get(coap.CON, uri+"/small")).Payload))
	for range 2 {
		text := curl(t, "http://"+p.addrs[1].String()+"/hc/"+uri+"/big")
		require.True(t, strings.HasSuffix(text, "\r\n\r\n"+string(body)), "%.200s", text)
	}
	require.GreaterOrEqual(t, p.counters()["oscore_pieces_fetched_total"], 4.0)
}

// cutter is somebody on the way to a proxy who passes on requests and cuts responses
// into blocks of 64 bytes; spoil may change a block before it goes out, or have it
// left out.
type cutter struct {
	t     *testing.T
	to    netip.AddrPort
	spoil func(num uint32, m *coap.Message) bool

	mu     sync.Mutex
	whole  map[string]*coap.Message // by the OSCORE option of the request
	passed int
	pieces int
}

func (c *cutter) handle(s *server, r *request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	option, _ := r.Option(oscore.Option)
	num := uint32(0)
	if o, ok := r.Option(coap.Block2); ok {
		num = uint32(o.Uint() >> 4)
	}
	whole := c.whole[string(option.Value)]
	if num == 0 && whole == nil { // else it is a repetition
		whole = c.pass(r)
		c.whole[string(option.Value)] = whole
	}
	if whole == nil || len(r.Payload) > 0 && num > 0 {
		s.answer(r, coap.Message{Code: coap.CodeOf(4, 8)})
		return
	}
	from := min(int(num)*64, len(whole.Payload))
	m := coap.Message{Code: whole.Code, Payload: whole.Payload[from:min(from+64, len(whole.Payload))], Options: slices.Clone(whole.Options)}
	if from+64 < len(whole.Payload) || num > 0 {
		m.Options = append(m.Options, block(coap.Block2, num, from+64 < len(whole.Payload), 2))
	}
	c.pieces++
	if c.spoil == nil || c.spoil(num, &m) {
		s.answer(r, m)
	}
}

// pass sends a request on and returns its response; nil for none.
func (c *cutter) pass(r *request) *coap.Message {
	c.passed++
	conn, err := net.Dial("udp", c.to.String())
	if err != nil {
		return nil
	}
	defer conn.Close()
	m := *r.Message
	if _, err = conn.Write(m.Bytes()); err != nil {
		return nil
	}
	buf := make([]byte, 2048)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return nil
		}
		if in, err := coap.Parse(buf[:n]); err == nil && in.Code != coap.Empty {
			return in
		}
	}
}

// OH-75: a protected response in many pieces is put together before any key is tried on
// it; one of which a piece was altered, exchanged or left out is an error of the hop, and
// so is one that never ends. The next request is not disturbed. That a server was
// restarted is found out in pieces, too (OH-113).
func TestOSCOREResponseInPieces(t *testing.T) {
	t.Parallel()
	body := pattern(900)
	origin := single(t, func(s *server, r *request) {
		s.answer(r, coap.Message{Code: coap.CodeOf(2, 5), Options: []coap.Option{coap.Opt(coap.ETag, "tag"), coap.Uint(coap.MaxAge, 0)}, Payload: body})
	})
	far, near := newOSCOREBed(t, "near"), newOSCOREBed(t)
	far.hand("near", near, "far")
	q := far.start(netip.AddrPort{}, settings{clients: far.clients("near"),
		top: fmt.Sprintf("routes:\n- {name: origin, path: /o, to: \"coap://%v\"}", origin.addr())})
	cut := &cutter{t: t, to: q.addr(), whole: make(map[string]*coap.Message)}
	way := single(t, cut.handle)
	p := near.start(netip.AddrPort{}, settings{client: "forward: [\"coap://*:*\"]", limits: "response_timeout_con: 3s",
		top: fmt.Sprintf("oscore:\n  servers:\n    - {target: %v, context: far}", way.addr())})
	c := newClient(t, here, clientAddr, p.addr())
	ask := func(spoil func(num uint32, m *coap.Message) bool) incoming {
		cut.mu.Lock()
		cut.spoil, cut.pieces, cut.passed = spoil, 0, 0
		cut.mu.Unlock()
		return c.ask(get(coap.CON, fmt.Sprintf("coap://%v/o/x", way.addr())))
	}
	whole := func() {
		t.Helper()
		in := ask(nil)
		require.Equal(t, "2.05", in.Code.String(), "%q", in.Payload)
		require.Equal(t, string(body), string(in.Payload))
		require.Equal(t, [][]byte{[]byte("tag")}, in.All(coap.ETag))
		require.False(t, in.Has(coap.Block2))
		cut.mu.Lock()
		defer cut.mu.Unlock()
		require.Equal(t, 1, cut.passed)
		require.Greater(t, cut.pieces, 900/64)
	}
	in := ask(nil) // the challenge to a context that has just been read, and its answer
	require.Equal(t, string(body), string(in.Payload))
	whole()
	for name, x := range map[string]struct {
		spoil func(num uint32, m *coap.Message) bool
		code  string
	}{
		"altered": {func(num uint32, m *coap.Message) bool {
			if num == 3 {
				m.Payload = append([]byte{m.Payload[0] ^ 1}, m.Payload[1:]...)
			}
			return true
		}, "5.02"},
		"exchanged": {func(num uint32, m *coap.Message) bool {
			if num == 2 {
				m.Options[len(m.Options)-1] = block(coap.Block2, 4, true, 2)
			}
			return true
		}, "5.02"},
		"gone": {func(num uint32, m *coap.Message) bool {
			if num == 5 {
				*m = coap.Message{Code: coap.CodeOf(4, 1), Payload: []byte("Replay detected")}
			}
			return true
		}, "5.02"},
		"endless": {func(num uint32, m *coap.Message) bool {
			m.Payload = pattern(1024) // larger ones: 64 round trips are enough on a busy machine
			m.Options[len(m.Options)-1] = block(coap.Block2, num, true, 6)
			return true
		}, "5.02"},
		"left out": {func(num uint32, _ *coap.Message) bool { return num != 1 }, "5.04"},
	} {
		in := ask(x.spoil)
		require.Equal(t, x.code, in.Code.String(), "%s: %q", name, in.Payload)
		require.NotContains(t, string(in.Payload), "000000", name)
		whole()
	}
}
