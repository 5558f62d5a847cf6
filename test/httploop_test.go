package test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// tcpRelay is an address that leads to another one without saying so, as a load
// balancer or a forwarded port does. to is asked for each connection; relayed
// counts them.
type tcpRelay struct {
	at      netip.AddrPort
	mu      sync.Mutex
	to      netip.AddrPort
	relayed int
}

func newTCPRelay(t *testing.T) *tcpRelay {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	r := &tcpRelay{at: l.Addr().(*net.TCPAddr).AddrPort()}
	var running sync.WaitGroup
	var conns sync.Map
	running.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			r.mu.Lock()
			to := r.to
			r.relayed++
			r.mu.Unlock()
			out, err := net.Dial("tcp", to.String())
			if err != nil {
				_ = in.Close()
				continue
			}
			conns.Store(in, true)
			conns.Store(out, true)
			for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
				running.Go(func() {
					_, _ = io.Copy(way[1], way[0])
					_, _ = way[0].Close(), way[1].Close()
				})
			}
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		conns.Range(func(c, _ any) bool { _ = c.(net.Conn).Close(); return true })
		running.Wait()
	})
	return r
}

func (r *tcpRelay) lead(to netip.AddrPort) {
	r.mu.Lock()
	r.to = to
	r.mu.Unlock()
}

// A request that leaves over HTTP and comes back, by an address that the proxy does
// not know to be its own, is refused the first time round (HC-106, FP-55). Where
// another proxy stands in the circle, the Hop-Limit ends it (FP-52).
func TestHTTPLoop(t *testing.T) {
	t.Parallel()
	relay := newTCPRelay(t)
	s := settings{listen: "- coap://127.0.0.1:0\n- http://127.0.0.1:0", client: "forward: [\"http://127.0.0.1:*\", \"coap://127.0.0.1:*\"]",
		proxy: "identifier: gw"}
	p := startProxy(t, group0, s)
	relay.lead(p.addrs[1])
	back := fmt.Sprintf("routes:\n- {name: back, path: /back, to: \"coap://%v/circle\"}\n", p.addrs[0])
	s.top = fmt.Sprintf("%s- {name: circle, path: /circle, to: \"http://%v/back\"}", back, relay.at)
	p.reload(s.yaml(group0))

	c := newClient(t, here, clientAddr, p.addr())
	in := c.ask(&coap.Message{Type: coap.CON, Code: coap.GET, Options: []coap.Option{coap.Opt(coap.URIPath, "circle")}})
	require.Equal(t, coap.CodeOf(5, 8), in.Code, "%s", in.Payload)
	require.Equal(t, "gw", string(in.Payload))
	require.Regexp(t, `^HTTP/1\.1 508 (.*\r\n)+\r\ngw\n?$`, curl(t, "http://"+p.addrs[1].String()+"/back"))
	p.waitFor(`forwarding loop`)

	s2 := s
	s2.proxy = "identifier: other"
	s2.top = back
	other := startProxy(t, group0, s2)
	relay.lead(other.addrs[1])
	in = c.ask(&coap.Message{Type: coap.CON, Code: coap.GET, Options: []coap.Option{coap.Opt(coap.URIPath, "circle"), coap.Opt(coap.HopLimit, []byte{8})}})
	require.Equal(t, coap.CodeOf(5, 8), in.Code, "%s", in.Payload)
	require.LessOrEqual(t, len(other.entries("request")), 8)
}
