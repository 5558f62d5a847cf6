package httpbridge

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"mime"
	"mime/multipart"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/quic-go/quic-go"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
)

// The whole proxy, over every version of HTTP, against devices in a real group.
func TestGroupOverAllVersions(t *testing.T) {
	chain, a := newRealChain(t, 5), newAuthority(t)
	base := "https://" + serve(t, chain.front(t), a.server(t))
	group := "/hc/coap://" + chain.devices.Addr().String()
	allVersions(t, a, func(t *testing.T, c *http.Client, major int) {
		t.Parallel()
		w, body := get(t, c, base, group+"/temp", "Multicast-Timeout: 1") // HC-77
		require.Equal(t, 200, w.StatusCode, body)
		require.Equal(t, major, w.ProtoMajor)
		require.Equal(t, major < 3, w.Header.Get("Alt-Svc") != "")
		parts := readBatch(t, w.Header.Get("Content-Type"), strings.NewReader(body))
		require.Len(t, parts, 5)
		servers := map[string]bool{}
		for _, p := range parts {
			require.Equal(t, 200, p.status)
			require.Regexp(t, `^\d\d\.\d °C$`, p.body)
			require.NotEmpty(t, p.fields.Get("Reply-From"))
			servers[p.fields.Get("Content-Location")] = true
		}
		for _, d := range chain.devices.Devices() {
			require.True(t, servers["coap://"+strings.TrimSuffix(d.Addr.String(), ":5683")+"/temp"], "%v: %v", d.Addr, servers)
		}
		// A part leads to its server: HC-85.
		for server := range servers {
			w, body = get(t, c, base, "/hc/"+server)
			require.Equal(t, 200, w.StatusCode)
			require.Regexp(t, `°C$`, body)
			break
		}

		w, body = get(t, c, base, group+"/temp", "Multicast-Timeout: 1", "Accept: application/json")
		require.Equal(t, 200, w.StatusCode)
		var list []element
		require.NoError(t, json.Unmarshal([]byte(body), &list))
		require.Len(t, list, 5)

		w, body = get(t, c, base, "/hc/coap://devices.example:"+group[strings.LastIndexByte(group, ':')+1:]+"/temp", "Multicast-Timeout: 1", "Accept: application/x-ndjson")
		require.Equal(t, 200, w.StatusCode)
		require.Len(t, strings.Split(strings.TrimSpace(body), "\n"), 5)

		w, body = get(t, c, base, group+"/temp") // HC-74
		require.Equal(t, 400, w.StatusCode, body)
		require.Equal(t, []string{""}, w.Header["Multicast-Timeout"])
		w, _ = send(t, c, "PUT", base, group+"/light", "on", "Multicast-Timeout: 0", "Content-Type: text/plain") // HC-76
		require.Equal(t, 204, w.StatusCode)
		w, _ = get(t, c, base, "/hc/coap://224.0.1.188/temp", "Multicast-Timeout: 1")
		require.Equal(t, 403, w.StatusCode)
		w, _ = get(t, c, base, group+"/nothing", "Multicast-Timeout: 1") // nobody answers an error to a group
		require.Contains(t, []int{200, 204}, w.StatusCode)
	})
}

// Parts come one by one, and a client that goes away stops the exchange (HC-86,
// HC-88, HC-83).
func TestStreamOverAllVersions(t *testing.T) {
	a := newAuthority(t)
	f, chain := newFront(t, nil)
	exchanges := chain.keepsRunning()
	base := "https://" + serve(t, f, a.server(t))
	allVersions(t, a, func(t *testing.T, c *http.Client, _ int) {
		ctx, cancel := context.WithCancel(t.Context())
		r, err := http.NewRequestWithContext(ctx, "GET", base, http.NoBody)
		require.NoError(t, err)
		r.URL.Opaque = groupTarget
		r.Header.Set("Multicast-Timeout", "600")
		r.Header.Set("Prefer", "stream-parts")
		w, err := c.Do(r) // the header comes before any part: HC-87
		require.NoError(t, err)
		defer w.Body.Close()
		x := <-exchanges
		_, params, err := mime.ParseMediaType(w.Header.Get("Content-Type"))
		require.NoError(t, err)
		parts := multipart.NewReader(w.Body, params["boundary"])
		for _, want := range []string{"1", "2", strings.Repeat("3", 100000)} {
			x.sink.Respond(member(serverA, codes.Content, want))
			part, err := parts.NextRawPart()
			require.NoError(t, err)
			response, err := http.ReadResponse(bufio.NewReader(part), nil)
			require.NoError(t, err)
			b, err := io.ReadAll(response.Body)
			require.NoError(t, err)
			require.NoError(t, response.Body.Close())
			require.Equal(t, want, string(b))
		}
		before := f.Stats.Disconnects.Load()
		cancel()
		<-x.done
		require.Eventually(t, func() bool { return f.Stats.Disconnects.Load() == before+1 }, 5*time.Second, time.Millisecond)
	})
}

// A client that keeps its connection open and does not read is cut off, and
// cannot take what it got for the whole (HC-88).
func TestSlowReaderOverAllVersions(t *testing.T) {
	a := newAuthority(t)
	f, chain := newFront(t, func(c *Config) { c.Limits.SendTimeout, c.Limits.QueueBytes = 300*time.Millisecond, 4<<20 })
	exchanges := chain.keepsRunning()
	base := "https://" + serve(t, f, a.server(t))
	allVersions(t, a, func(t *testing.T, c *http.Client, major int) {
		r, err := http.NewRequestWithContext(t.Context(), "GET", base, http.NoBody)
		require.NoError(t, err)
		r.URL.Opaque = groupTarget
		r.Header.Set("Multicast-Timeout", "600")
		r.Header.Set("Prefer", "stream-parts")
		w, err := c.Do(r)
		require.NoError(t, err)
		defer w.Body.Close()
		x := <-exchanges
		slow := f.Stats.SlowReaders.Load()
		big := strings.Repeat("x", 1<<20)
		for x.sink.Respond(member(serverA, codes.Content, big)) == exchange.Continue {
			select {
			case <-x.done:
				goto over
			case <-time.After(5 * time.Millisecond):
			}
		}
		x.end(nil)
	over:
		<-x.done
		require.Eventually(t, func() bool { return f.Stats.SlowReaders.Load() == slow+1 }, 10*time.Second, time.Millisecond)
		_, err = io.Copy(io.Discard, w.Body)
		require.Error(t, err, "the end must not look regular")
	})
}

func TestTLS(t *testing.T) {
	a := newAuthority(t)
	f, chain := newFront(t, nil)
	addr := serve(t, f, a.server(t))
	conn := func(c *tls.Config) (*tls.Conn, error) {
		d := tls.Dialer{Config: c}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		n, err := d.DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, err
		}
		return n.(*tls.Conn), nil
	}
	for _, protocol := range []string{"h2", "http/1.1", ""} {
		config := a.client()
		if protocol != "" {
			config.NextProtos = []string{protocol}
		}
		c, err := conn(config)
		require.NoError(t, err)
		require.Equal(t, protocol, c.ConnectionState().NegotiatedProtocol)
		require.EqualValues(t, tls.VersionTLS13, c.ConnectionState().Version)
		require.NoError(t, c.Close())
	}
	old := a.client()
	old.MaxVersion = tls.VersionTLS12
	_, err := conn(old)
	require.Error(t, err)

	w, _ := get(t, client1(t, a.client()), "https://"+addr, someTarget)
	require.Regexp(t, regexp.MustCompile(`^h3=":\d+"; ma=\d+$`), w.Header.Get("Alt-Svc"))
	require.Contains(t, w.Header.Get("Alt-Svc"), addr[strings.LastIndexByte(addr, ':'):]+`"`)
	require.Equal(t, 200, w.StatusCode)
	w, _ = get(t, client1(t, a.client()), "https://"+addr, "/hc/coaps://192.0.2.7/temp") // HC-102
	require.Equal(t, 200, w.StatusCode)
	require.Equal(t, "coaps://192.0.2.7/temp", proxyURI(chain.last()))
}

// A client certificate names the client in every version (HC-100).
func TestClientCertificate(t *testing.T) {
	a, stranger := newAuthority(t), newAuthority(t)
	f, chain := newFront(t, func(c *Config) {
		c.Clients = &Authentication{Credentials: testCredentials(t), Certificate: func(shown []*x509.Certificate) *exchange.Identity {
			c := shown[0]
			if c.Subject.CommonName != "phone" {
				return nil
			}
			return &exchange.Identity{Name: "phone"}
		}}
	})
	base := "https://" + serve(t, f, a.server(t))
	for _, client := range []func(testing.TB, *tls.Config) *http.Client{client1, client2, client3} {
		w, _ := get(t, client(t, a.client(a.issue(t, "phone"))), base, someTarget)
		require.Equal(t, 200, w.StatusCode)
		require.Equal(t, "phone", chain.last().Client.Name)
		require.Equal(t, "private, max-age=60", w.Header.Get("Cache-Control")) // HC-51
		w, _ = get(t, client(t, a.client(a.issue(t, "other"))), base, someTarget)
		require.Equal(t, 401, w.StatusCode)
		w, _ = get(t, client(t, a.client()), base, someTarget)
		require.Equal(t, 401, w.StatusCode) // HC-75
	}
	r, err := http.NewRequestWithContext(t.Context(), "GET", base, http.NoBody)
	require.NoError(t, err)
	config := a.client()
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		c := stranger.issue(t, "phone")
		return &c, nil
	}
	w, err := client1(t, config).Do(r)
	if err == nil {
		_ = w.Body.Close()
	}
	require.Error(t, err, "a certificate of somebody else's authority")
}

// Early data is not taken: a replayed GET would make a group answer again.
func TestNoEarlyData(t *testing.T) {
	a := newAuthority(t)
	f, _ := newFront(t, nil)
	addr := serve(t, f, a.server(t))
	config := a.client()
	config.NextProtos, config.ClientSessionCache = []string{"h3"}, tls.NewLRUClientSessionCache(1)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	resumed := false
	for ctx.Err() == nil && !resumed { // the session ticket comes some time after the handshake
		c, err := quic.DialAddrEarly(ctx, addr, config, nil)
		require.NoError(t, err)
		<-c.HandshakeComplete()
		resumed = c.ConnectionState().TLS.DidResume
		require.False(t, c.ConnectionState().Used0RTT)
		s, err := c.AcceptUniStream(ctx)
		require.NoError(t, err)
		_, _ = s.Read(make([]byte, 1))
		require.NoError(t, c.CloseWithError(0, ""))
	}
	require.True(t, resumed, "a session that cannot be resumed proves nothing")
}

func TestHeaderLimits(t *testing.T) { // HC-97
	a := newAuthority(t)
	f, chain := newFront(t, nil)
	base := "https://" + serve(t, f, a.server(t))
	allVersions(t, a, func(t *testing.T, c *http.Client, major int) {
		r, err := http.NewRequestWithContext(t.Context(), "GET", base, http.NoBody)
		require.NoError(t, err)
		r.URL.Opaque = someTarget
		for range 40 {
			r.Header.Add("X", strings.Repeat("x", 1000))
		}
		w, err := c.Do(r)
		if err == nil { // or the connection was closed over it
			defer w.Body.Close()
			require.Contains(t, []int{400, 431}, w.StatusCode)
		}
		require.Zero(t, chain.count())
	})
}

// Requests under way may end when the Listener has to.
func TestGrace(t *testing.T) {
	a := newAuthority(t)
	f, chain := newFront(t, nil)
	exchanges := chain.keepsRunning()
	c := ListenConfig{Addr: netip.MustParseAddrPort("127.0.0.1:0"), Front: f, Grace: 10 * time.Second, Log: f.Log}
	a.server(t)(&c)
	l, err := Listen(c)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- l.Serve(ctx) }()
	status := make(chan int, 2)
	for _, client := range []*http.Client{client1(t, a.client()), client2(t, a.client())} {
		go func() {
			w, _ := get(t, client, "https://"+l.Addr().String(), someTarget)
			status <- w.StatusCode
		}()
	}
	first, second := <-exchanges, <-exchanges
	cancel()
	for _, x := range []*running{first, second} {
		x.sink.Respond(content("x"))
		x.end(nil)
	}
	require.Equal(t, 200, <-status)
	require.Equal(t, 200, <-status)
	require.NoError(t, <-over)
	_, err = net.Dial("tcp", l.Addr().String())
	require.Error(t, err)
}

// Without grace nothing that is under way holds Serve up.
func TestNoGrace(t *testing.T) {
	a := newAuthority(t)
	f, chain := newFront(t, nil)
	exchanges := chain.keepsRunning()
	c := ListenConfig{Addr: netip.MustParseAddrPort("127.0.0.1:0"), Front: f, Log: f.Log}
	a.server(t)(&c)
	l, err := Listen(c)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- l.Serve(ctx) }()
	for _, client := range []*http.Client{client1(t, a.client()), client2(t, a.client()), client3(t, a.client())} {
		go func() {
			r, err := http.NewRequest("GET", "https://"+l.Addr().String(), http.NoBody)
			if err != nil {
				return
			}
			r.URL.Opaque = groupTarget
			r.Header.Set("Multicast-Timeout", "600")
			if w, err := client.Do(r); err == nil {
				_ = w.Body.Close()
			}
		}()
	}
	x := []*running{<-exchanges, <-exchanges, <-exchanges}
	cancel()
	require.NoError(t, <-over)
	for _, x := range x {
		<-x.done
	}
	require.Zero(t, f.Stats.Connections.Load())
}

func TestListenErrors(t *testing.T) {
	f, _ := newFront(t, nil)
	taken, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	defer taken.Close()
	c := ListenConfig{Addr: addrOf(taken.LocalAddr().String()), Front: f, TLS: &TLSConfig{}, Log: f.Log}
	_, err = Listen(c)
	require.ErrorContains(t, err, "HTTP/3")
	c.TLS.NoHTTP3 = true
	l, err := Listen(c)
	require.NoError(t, err)
	_, err = Listen(c)
	require.Error(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, l.Serve(ctx))
}
