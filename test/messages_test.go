package test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"coapproxy/test/internal/coap"
)

// RFC 7252 §4: what is no request, or not a whole one.
func TestMessageLayer(t *testing.T) {
	t.Parallel()
	p := startProxy(t, netip.AddrPort{}, settings{})
	c := newClient(t, here, clientAddr, p.addr())
	for _, tt := range []struct{ name, datagram, answer string }{
		{"ping", "40 00 0001", "70 00 0001"},
		{"empty, NON", "50 00 0002", ""},
		{"empty with a token", "41 00 0003 aa", "70 00 0003"},
		{"reserved class 1", "40 20 0004", "70 00 0004"},
		{"reserved class 6", "40 c1 0005", "70 00 0005"},
		{"reserved class 7, NON", "50 e1 0006", ""},
		{"response nobody asked for", "41 45 0007 aa", "70 00 0007"},
		{"response nobody asked for, NON", "51 45 0008 aa", ""},
		{"ACK of nothing", "60 00 0009", ""},
		{"RST of nothing", "70 00 000a", ""},
		{"request as an ACK", "60 01 000b", ""},
		{"request as a RST", "70 01 000c", ""},
		{"option ends early", "40 01 000d b5 61", "70 00 000d"},
		{"option of reserved length", "40 01 000e bf", "70 00 000e"},
		{"option of reserved delta", "40 01 000f f1 61", "70 00 000f"},
		{"option number too large", "40 01 0010 e0 ffff e0 ffff", "70 00 0010"},
		{"payload marker without payload", "40 01 0011 ff", "70 00 0011"},
		{"token ends early", "48 01 0012 aa", "70 00 0012"},
		{"reserved token length", "4f 01 0013", "70 00 0013"},
		{"format error, NON", "50 01 0014 ff", ""},
		{"version 0", "00 01 0015", ""},
		{"version 2", "80 01 0016", ""},
		{"three bytes", "40 01 00", ""},
		{"nothing", "", ""},
		// FP-83: Tokens of up to 8 bytes, and none.
		{"no token", "40 01 0017 bb " + hexOf(".well-known") + "04 " + hexOf("core"), "60 45 0017 48e3b0c44298fc1c14 81 28"},
		{"8 bytes", "48 01 0018 0102030405060708 b1 78", "68 84 0018 0102030405060708"},
		{"9 bytes", "49 01 0019 010203040506070809 b1 78", "69 80 0019 010203040506070809"},
		{"13 bytes", "4d 01 001a 00 0102030405060708090a0b0c0d b1 78", "6d 80 001a 00 0102030405060708090a0b0c0d"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c.sendHex(tt.datagram)
			if tt.answer != "" {
				in := c.expect()
				require.True(t, strings.HasPrefix(hexOf(string(in.data)), strings.ReplaceAll(tt.answer, " ", "")), "%x", in.data)
			}
			c.ping() // and nothing else before it
		})
	}
}

func hexOf(s string) string { return fmt.Sprintf("%x", s) }

// FP-83: longer Tokens, where they are allowed.
func TestExtendedToken(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 2, content)
	p := startProxy(t, group, settings{limits: "max_token: 256"})
	c := newClient(t, here, clientAddr, p.addr())
	for _, n := range []int{0, 1, 8, 9, 12, 13, 256} {
		m := get(coap.NON, groupURI(group, "/x"), timeout(60))
		m.Token = append([]byte{}, pattern(n)...)
		require.Len(t, c.gatherN(m, len(servers)), len(servers), "%d bytes", n)
	}
	m := get(coap.CON, groupURI(group, "/x"), timeout(1))
	m.Token = pattern(257)
	require.Equal(t, coap.CodeOf(4, 0), c.ask(m).Code)
	for _, r := range servers[0].requests() {
		require.Len(t, r.Token, 8)
	}
}

// Whatever arrives, the proxy goes on, for everybody else without noticing.
func TestHostileDatagrams(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 2, content)
	p := startProxy(t, group, settings{log: "info", client: `forward: ["coap://127.0.1.1:*"]`, limits: "response_timeout: 1s\nresponse_timeout_con: 1s"})
	hostile := newClient(t, here, loopback(66), p.addr())
	honest := newClient(t, here, clientAddr, p.addr())
	random := rand.New(rand.NewPCG(1, 2))
	seeds := [][]byte{
		get(coap.CON, groupURI(group, "/x"), timeout(1)).Bytes(),
		get(coap.NON, "coap://127.0.1.1/x", coap.Uint(coap.Block2, 6)).Bytes(),
		(&coap.Message{Type: coap.CON, Code: coap.FETCH, Token: pattern(8), Payload: pattern(30), Options: []coap.Option{timeout(0),
			coap.Opt(coap.URIHost, "ff02::fd%lo"), coap.Opt(coap.ProxyScheme, "coap"), coap.Uint(coap.NoResponse, 26)}}).Bytes(),
		(&coap.Message{Code: coap.GET, Options: []coap.Option{coap.Opt(coap.ProxyCRI, []byte{0x83, 0x20, 0x82, 0x44, 127, 0, 1, 1, 0x19, 1, 2, 0x81, 0x61, 'x'})}}).Bytes(),
	}
	before := p.files()
	for i := range 6000 {
		data := append([]byte(nil), seeds[i%len(seeds)]...)
		switch random.IntN(4) {
		case 0: // anything
			data = make([]byte, random.IntN(200))
			for j := range data {
				data[j] = byte(random.Uint32())
			}
			if len(data) > 0 {
				data[0] = data[0]&0x3f | 0x40
			}
		case 1: // shortened
			data = data[:random.IntN(len(data))]
		default: // some bytes changed
			for range 1 + random.IntN(4) {
				data[random.IntN(len(data))] = byte(random.Uint32())
			}
		}
		if len(data) > 3 {
			data[2], data[3] = byte(i>>8), byte(i)
		}
		require.NoError(t, hostile.socket.send(p.addr(), data))
		if i%100 == 99 {
			honest.ping() // keeps the receive buffer from overflowing, too
		}
		if i%1000 == 999 {
			require.Len(t, honest.gatherN(get(coap.NON, groupURI(group, fmt.Sprintf("/honest/%d", i)), timeout(60)), len(servers)), len(servers))
		}
		for len(hostile.inbox) > inboxSize/2 {
			<-hostile.inbox
		}
	}
	require.NoError(t, hostile.socket.send(p.addr(), make([]byte, 20000)))
	honest.ping()
	require.Less(t, memory(t, p), 256, "MiB resident")
	// What stays open is a source port towards servers for each family (FP-91);
	// the name servers' sockets are closed as they answer or not.
	eventually(t, func() bool { return p.files() <= before+2 }, "%d files are open, %d before", p.files(), before)
}

// memory is the resident memory of a program in MiB.
func memory(t *testing.T, p *proxy) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	require.NoError(t, err)
	m := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(status)
	require.NotNil(t, m)
	kib, err := strconv.Atoi(string(m[1]))
	require.NoError(t, err)
	return kib / 1024
}

// GC-94: a proxy does not answer group requests that ask it to proxy, even when
// another program of its host is a member of the group.
func TestNoProxyingForGroups(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 1, content)
	p := startProxyIn(t, here, fmt.Sprintf(`
listen: ["coap://0.0.0.0:0"]
clients: [{name: all, networks: [127.0.0.0/8], groups: "*", forward: ["coap://*:*"]}]
groups: [{name: g, uri: "coap://%v", interfaces: [lo], loopback: true}]
proxy: {allow_loopback: true}
log: {format: json, level: debug}
`, group))
	port := p.addr().Port()
	lo := here.index(t, "lo")
	mustSocket(t, here, netip.AddrPortFrom(group4, 0), membership{group4, lo})
	c := newClient(t, here, clientAddr, netip.AddrPortFrom(clientAddr, port))
	require.NoError(t, c.socket.raw.Control(func(fd uintptr) {
		require.NoError(t, unix.SetsockoptIPMreqn(int(fd), unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(lo)}))
	}))
	c.sendTo(netip.AddrPortFrom(group4, port), c.fresh(get(coap.NON, groupURI(group, "/x"), timeout(1))))
	c.sendTo(netip.AddrPortFrom(group4, port), &coap.Message{Type: coap.NON, Code: coap.GET, Options: []coap.Option{coap.Opt(coap.URIPath, "x")}})
	c.nothing(meanwhile)
	require.Empty(t, servers[0].requests())
	c.gatherN(get(coap.NON, groupURI(group, "/x"), timeout(60)), 1) // asked alone it does
}
