package test

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/message/pool"
	"github.com/plgd-dev/go-coap/v3/mux"
	coapnet "github.com/plgd-dev/go-coap/v3/net"
	"github.com/plgd-dev/go-coap/v3/net/responsewriter"
	"github.com/plgd-dev/go-coap/v3/options"
	"github.com/plgd-dev/go-coap/v3/udp"
	udpclient "github.com/plgd-dev/go-coap/v3/udp/client"
	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// The npm package coap as a client that takes several responses.
func TestNodeClient(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 4, content)
	p := startProxy(t, group, settings{group: "nstart: 16\nleisure: 1s\nmethods: [GET, PUT]", client: `forward: ["coap://127.0.1.0/24:*"]`})
	_, err := os.Stat("peers/node_modules/coap")
	require.NoError(t, err, "test/install-deps installs it")

	// One line of JSON per response.
	type response struct {
		Code    string
		Payload string
		Options map[string]string
	}
	ask := func(method, uri string, seconds int, payload string) []response {
		out := run(t, here, "node", "peers/group.js", p.addr().Addr().String(), strconv.Itoa(int(p.addr().Port())), method, uri, strconv.Itoa(seconds), payload)
		require.Zero(t, out.code, out.stderr)
		var all []response
		for line := range strings.Lines(out.stdout) {
			var r response
			require.NoError(t, json.Unmarshal([]byte(line), &r), line)
			all = append(all, r)
		}
		return all
	}
	seen := make(map[netip.AddrPort]string)
	for _, r := range ask("GET", groupURI(group, "/temp"), 3, "") {
		require.Equal(t, "2.05", r.Code)
		value, err := hex.DecodeString(r.Options["248"])
		require.NoError(t, err)
		server, err := coap.ReplyFromServer(value)
		require.NoError(t, err)
		seen[server] = r.Payload
	}
	require.Len(t, seen, len(servers))
	for _, s := range servers {
		require.Equal(t, s.name+"/temp", seen[s.addr()])
	}
	require.Len(t, ask("PUT", groupURI(group, "/light"), 3, "on"), len(servers))
	require.Equal(t, "on", string(servers[0].requestsTo("/light")[0].Payload))
	one := ask("GET", "coap://"+servers[0].addr().String()+"/one", -1, "")
	require.Len(t, one, 1)
	require.Equal(t, "member1/one", one[0].Payload)
	refused := ask("GET", "coap://224.0.1.188/x", 1, "")
	require.Len(t, refused, 1)
	require.Equal(t, "4.01", refused[0].Code)
}

// goCoAPServer starts a server of go-coap in a host, as a member of a group.
func goCoAPServer(t *testing.T, h *host, group netip.Addr) {
	t.Helper()
	router := mux.NewRouter()
	router.DefaultHandleFunc(func(w mux.ResponseWriter, r *mux.Message) {
		switch path, _ := r.Path(); path {
		case "/none":
			_ = w.SetResponse(codes.NotFound, message.TextPlain, nil)
		case "/large":
			_ = w.SetResponse(codes.Content, message.TextPlain, bytes.NewReader(pattern(3000)))
		default:
			_ = w.SetResponse(codes.Content, message.TextPlain, strings.NewReader("go-coap"+path))
		}
	})
	network, wildcard := "udp4", netip.IPv4Unspecified()
	if group.Is6() {
		network, wildcard = "udp6", netip.IPv6Unspecified()
	}
	var listener *coapnet.UDPConn
	var err error
	h.do(t, func() {
		var iface *net.Interface
		if iface, err = net.InterfaceByName("eth0"); err != nil {
			return
		}
		if listener, err = coapnet.NewListenUDP(network, netip.AddrPortFrom(wildcard, coapPort).String()); err != nil {
			return
		}
		err = listener.JoinGroup(iface, net.UDPAddrFromAddrPort(netip.AddrPortFrom(group, coapPort)))
	})
	require.NoError(t, err)
	server := udp.NewServer(options.WithMux(router))
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(listener) // its error says that it was stopped
	}()
	t.Cleanup(func() {
		server.Stop()
		<-served
		_ = listener.Close()
	})
}

// go-coap as a server in the group and behind the proxy, beside others.
func TestGoCoAPServer(t *testing.T) {
	inLab(t, "3", func(t *testing.T, l *lab) {
		goCoAPServer(t, l.sv(1), group4)
		goCoAPServer(t, l.sv(2), site)
		serve(t, "sv3", place{host: l.sv(3), iface: "eth0", port: coapPort, addrs: []netip.Addr{sv6(3), sv4(3)}, groups: []netip.Addr{group4, site}}, content)
		l.startProxy(labSettings())
		c := l.client6(0)
		for uri, server := range map[string]netip.Addr{"coap://224.0.1.187": sv4(1), "coap://[ff05::fd]": sv6(2)} {
			got := payloads(t, c.gatherN(get(coap.NON, uri+"/temp", timeout(60)), 2))
			goCoAP := netip.AddrPortFrom(server, coapPort)
			require.Equal(t, []string{"go-coap/temp"}, got[goCoAP])
			require.Equal(t, "go-coap/x", string(c.ask(get(coap.CON, "coap://"+goCoAP.String()+"/x")).Payload))
			require.Equal(t, coap.CodeOf(4, 4), c.ask(get(coap.NON, "coap://"+goCoAP.String()+"/none")).Code)
			// Its first block of many: the rest is the client's to fetch (GC-54).
			var body []byte
			for num := uint32(0); ; num++ {
				in := c.ask(get(coap.CON, "coap://"+goCoAP.String()+"/large", block(coap.Block2, num, false, 6)))
				require.Equal(t, coap.CodeOf(2, 5), in.Code, "%q", in.Payload)
				body = append(body, in.Payload...)
				if b, _ := in.Option(coap.Block2); b.Uint()&8 == 0 {
					break
				}
			}
			require.Equal(t, string(pattern(3000)), string(body))
		}
	})
}

// go-coap as a client: it takes one response per request, and the others go to
// its handler.
func TestGoCoAPClient(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 4, content)
	p := startProxy(t, group, settings{client: `forward: ["coap://127.0.1.0/24:*"]`})
	more := make(chan []byte, 16)
	conn, err := udp.Dial(p.addr().String(), options.WithHandlerFunc(func(_ *responsewriter.ResponseWriter[*udpclient.Conn], r *pool.Message) {
		body, _ := r.ReadBody()
		more <- body
	}))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(); <-conn.Done() })
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	proxied := func(uri string, more ...message.Option) string {
		r, err := conn.NewGetRequest(ctx, "", append(slices.Clone(more), message.Option{ID: message.ProxyURI, Value: []byte(uri)})...)
		require.NoError(t, err)
		resp, err := conn.Do(r)
		require.NoError(t, err)
		require.Equal(t, codes.Content, resp.Code())
		body, err := resp.ReadBody()
		require.NoError(t, err)
		return string(body)
	}
	require.Equal(t, "member1/one", proxied("coap://"+servers[0].addr().String()+"/one"))

	got := []string{proxied(groupURI(group, "/temp"), message.Option{ID: coap.MulticastTimeout, Value: []byte{60}})}
	for len(got) < len(servers) {
		select {
		case body := <-more:
			got = append(got, string(body))
		case <-time.After(patience):
			require.FailNow(t, "go-coap heard too little", "%q", got)
		}
	}
	slices.Sort(got)
	require.Equal(t, []string{"member1/temp", "member2/temp", "member3/temp", "member4/temp"}, got)
}
