package test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// The first next hop comes with a new configuration: round trips are measured from
// then on, those to clients (GP-94) and the one to the hop. Further configurations
// leave alone what is known of it.
func TestChainByReload(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 1, content)
	behind := startProxy(t, group, settings{})
	socket, keys := controlSocket(t)
	s := settings{control: keys}
	p := startProxy(t, group, s)
	c := newClient(t, here, clientAddr, p.addr())
	require.Len(t, c.gatherN(get(coap.NON, groupURI(group, "/direct"), timeout(3)), 1), 1)

	s.groups = fmt.Sprintf("- {name: devices, uri: \"coap://%v\"}", group)
	s.top = nextHop("coap://"+behind.addr().String(), "")
	p.reload(s.yaml(group))
	p.waitFor("next hop is up")
	// A client whose way is long: of an acknowledgement that comes before the proxy
	// says its response again, 2 s later, the next request of this client has to leave
	// two seconds.
	told := func(try int) any {
		c := newClient(t, here, clientAddr, p.addr())
		c.keepMute(true)
		c.send(c.fresh(get(coap.CON, groupURI(group, fmt.Sprint("/far", try)), timeout(5))))
		require.Equal(t, coap.ACK, c.expect().Type)
		response := c.expect()
		require.Equal(t, coap.CON, response.Type)
		time.Sleep(1200 * time.Millisecond)
		c.send(&coap.Message{Type: coap.ACK, ID: response.ID})
		c.keepMute(false)
		c.send(&coap.Message{Type: coap.CON, ID: 0x50}) // answered when that has been handled
		for in := c.expect(); in.Type != coap.RST; in = c.expect() {
			require.Equal(t, response.ID, in.ID, "the response once more, at most")
		}
		n := len(p.entries("next hop"))
		c.gatherN(get(coap.NON, groupURI(group, fmt.Sprint("/told", try)), timeout(5)), 1)
		eventually(t, func() bool { return len(p.entries("next hop")) > n }, "the request to the next hop")
		return p.entries("next hop")[n]["told"]
	}
	seconds := any(nil)
	for try := 0; try < 5 && seconds != 3.0; try++ { // a busy machine can be too late
		seconds = told(try)
	}
	require.EqualValues(t, 3, seconds)

	type hops struct {
		NextHops []struct {
			Up        int
			RoundTrip float64 `json:"round_trip_seconds"`
		} `json:"next_hops"`
	}
	shows := func() {
		h := shown[hops](t, "status", "--socket", socket).NextHops
		require.Len(t, h, 1)
		require.Equal(t, 1, h[0].Up)
		require.Positive(t, h[0].RoundTrip)
		require.Less(t, h[0].RoundTrip, patience.Seconds())
	}
	shows()
	for _, more := range []string{", margin: 1s", ", nstart: 8"} {
		s.top = nextHop("coap://"+behind.addr().String(), more)
		p.reload(s.yaml(group))
		shows()
		require.Len(t, c.gatherN(get(coap.NON, groupURI(group, "/again"), timeout(5)), 1), 1)
	}
	p.logged("next hop is up", 1)
	require.Empty(t, p.entries("next hop is down"))
	require.NotEmpty(t, servers[0].requestsTo("/again"))
	s.top, s.groups = "", ""
	p.reload(s.yaml(group))
	require.Len(t, c.gatherN(get(coap.NON, groupURI(group, "/direct again"), timeout(5)), 1), 1)
	eventually(t, func() bool { return p.counters()["next_hop_up{next}"] == 0 }, "it is no next hop any more")
}
