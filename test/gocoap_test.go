package test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	piondtls "github.com/pion/dtls/v3"
	"github.com/plgd-dev/go-coap/v3/dtls"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/message/pool"
	"github.com/plgd-dev/go-coap/v3/mux"
	coapnet "github.com/plgd-dev/go-coap/v3/net"
	goblocks "github.com/plgd-dev/go-coap/v3/net/blockwise"
	"github.com/plgd-dev/go-coap/v3/options"
	"github.com/plgd-dev/go-coap/v3/tcp"
	"github.com/stretchr/testify/require"
)

// goCoAPOrigin is a server made with go-coap that keeps the body of the last PUT to
// each path and notifies its observers of it.
type goCoAPOrigin struct {
	scheme, authority string

	mu        sync.Mutex
	bodies    map[string][]byte
	observers map[string]goCoAPObserver
	number    uint32
}

type goCoAPObserver struct {
	conn  mux.Conn
	token message.Token
}

func (o *goCoAPOrigin) handle(w mux.ResponseWriter, r *mux.Message) {
	path, _ := r.Path()
	o.mu.Lock()
	defer o.mu.Unlock()
	if r.Code() == codes.PUT {
		body, err := r.ReadBody()
		if err != nil {
			_ = w.SetResponse(codes.InternalServerError, message.TextPlain, nil)
			return
		}
		o.bodies[path] = body
		_ = w.SetResponse(codes.Changed, message.TextPlain, nil)
		return
	}
	body, ok := o.bodies[path]
	if !ok {
		_ = w.SetResponse(codes.NotFound, message.TextPlain, nil)
		return
	}
	_ = w.SetResponse(codes.Content, message.AppOctets, bytes.NewReader(body))
	switch wish, err := r.Observe(); {
	case err != nil:
	case wish == 0:
		o.number++
		w.Message().SetObserve(o.number)
		o.observers[path] = goCoAPObserver{w.Conn(), r.Token()}
	default:
		delete(o.observers, path)
	}
}

// notify tells the observer of a path a new body.
func (o *goCoAPOrigin) notify(t *testing.T, path string, body []byte) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.bodies[path] = body
	o.number++
	to, ok := o.observers[path]
	require.True(t, ok, "%s is not observed", path)
	m := to.conn.AcquireMessage(t.Context())
	defer to.conn.ReleaseMessage(m)
	m.SetCode(codes.Content)
	m.SetToken(to.token)
	m.SetContentFormat(message.AppOctets)
	m.SetObserve(o.number)
	m.SetBody(bytes.NewReader(body))
	require.NoError(t, to.conn.WriteMessage(m))
}

func (o *goCoAPOrigin) body(path string) []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.bodies[path]
}

func (o *goCoAPOrigin) keep(path string, body []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.bodies[path] = body
}

func (o *goCoAPOrigin) observed(path string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, ok := o.observers[path]
	return ok
}

// startGoCoAP starts such a server by scheme.
func startGoCoAP(t *testing.T, scheme string, own pair) *goCoAPOrigin {
	t.Helper()
	o := &goCoAPOrigin{scheme: scheme, bodies: make(map[string][]byte), observers: make(map[string]goCoAPObserver)}
	router := mux.NewRouter()
	router.DefaultHandleFunc(o.handle)
	certificate, err := tls.LoadX509KeyPair(own.cert, own.key)
	require.NoError(t, err)
	var serve func() error
	var stop func()
	var at net.Addr
	blocks := options.WithBlockwise(true, goblocks.SZX1024, patience)
	switch scheme {
	case "coaps":
		l, err := coapnet.NewDTLSListener("udp4", "127.0.0.1:0", coapnet.NewDTLSServerOptions(piondtls.WithCertificates(certificate)))
		require.NoError(t, err)
		s := dtls.NewServer(options.WithMux(router), blocks)
		at, serve, stop = l.Addr(), func() error { return s.Serve(l) }, func() { s.Stop(); _ = l.Close() }
	case "coap+tcp":
		l, err := coapnet.NewTCPListener("tcp4", "127.0.0.1:0")
		require.NoError(t, err)
		s := tcp.NewServer(options.WithMux(router), blocks)
		at, serve, stop = l.Addr(), func() error { return s.Serve(l) }, func() { s.Stop(); _ = l.Close() }
	case "coaps+tcp":
		l, err := coapnet.NewTLSListener("tcp4", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificate}, NextProtos: []string{"coap"}})
		require.NoError(t, err)
		s := tcp.NewServer(options.WithMux(router), blocks)
		at, serve, stop = l.Addr(), func() error { return s.Serve(l) }, func() { s.Stop(); _ = l.Close() }
	}
	o.authority = at.String()
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = serve() // its error says that it was stopped
	}()
	t.Cleanup(func() { stop(); <-served })
	return o
}

// dialGoCoAP opens a client made with go-coap by scheme.
func dialGoCoAP(t *testing.T, e *everyTransport, scheme string) mux.Conn {
	t.Helper()
	blocks := options.WithBlockwise(true, goblocks.SZX1024, patience)
	var conn mux.Conn
	var err error
	switch at := e.at[scheme].String(); scheme {
	case "coaps":
		conn, err = dtls.Dial(at, dtls.NewDTLSClientOptions(pskOptions("gw")...), blocks)
	case "coap+tcp":
		conn, err = tcp.Dial(at, blocks)
	case "coaps+tcp":
		conn, err = tcp.Dial(at, blocks, options.WithTLS(tlsOf(t, e.servers, e.meter, "coap")))
	}
	require.NoError(t, err, scheme)
	t.Cleanup(func() { _ = conn.Close(); <-conn.Done() })
	return conn
}

// patiently does a request again that is not answered. go-coap asks for the second
// block of a response that came separately with a GET in the ACK of the first, which
// nobody may take for one (RFC 7252 §4.2), and then waits in vain: on a busy machine
// an answer is separate now and then.
func patiently(t *testing.T, do func(ctx context.Context) (*pool.Message, error)) *pool.Message {
	t.Helper()
	for try := 1; ; try++ {
		ctx, cancel := context.WithTimeout(t.Context(), patience/2)
		in, err := do(ctx)
		cancel()
		if err == nil {
			return in
		}
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Less(t, try, 4, "no answer")
	}
}

// go-coap as client and as server over DTLS, TCP and TLS: bodies in blocks both
// ways, and observations, through the proxy (FP-60, FP-72, FP-73, FP-89).
func TestGoCoAPTransports(t *testing.T) {
	t.Parallel()
	ca := newCertAuthority(t, "servers")
	cert := ca.issue("origin", forServer)
	e := startEveryTransportIn(t, here, clientAddr, 0, ca, settings{limits: "nstart: 8"}) // see patiently
	schemes := []string{"coaps", "coap+tcp", "coaps+tcp"}
	for _, server := range schemes {
		o, k := startGoCoAP(t, server, cert), newKeeper(t, here, netip.AddrPortFrom(clientAddr, 0), server, cert)
		for _, client := range schemes {
			t.Run(client+" to "+server, func(t *testing.T) {
				conn := dialGoCoAP(t, e, client)
				ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
				defer cancel()
				path := "/" + pathOf(client, server)
				proxied := message.Option{ID: message.ProxyURI, Value: fmt.Appendf(nil, "%s://%s%s", server, o.authority, path)}
				put := func(size int, to message.Option) []byte {
					body := random(size)
					in := patiently(t, func(ctx context.Context) (*pool.Message, error) {
						return conn.Put(ctx, "", message.AppOctets, bytes.NewReader(body), to)
					})
					require.Equal(t, codes.Changed, in.Code(), "%d bytes up", size)
					return body
				}
				kept := message.Option{ID: message.ProxyURI, Value: []byte(k.uri(path[1:]))}
				for _, size := range []int{1, 1023, 1024, 1025, 65536} {
					body := put(size, kept)
					require.Equal(t, sha256.Sum256(body), sha256.Sum256(k.body(path[1:])), "%d bytes up", size)
					if size <= 1024 { // go-coap's server joins blocks by their Tokens, which differ here (RFC 9175 §4.2)
						body = put(size, proxied)
						require.Equal(t, body, o.body(path))
					}
					o.keep(path, body)
					in := patiently(t, func(ctx context.Context) (*pool.Message, error) { return conn.Get(ctx, "", proxied) })
					require.Equal(t, codes.Content, in.Code(), "%d bytes down", size)
					got, err := in.ReadBody()
					require.NoError(t, err)
					require.Equal(t, sha256.Sum256(body), sha256.Sum256(got), "%d bytes, got %d", size, len(got))
				}
				o.keep(path, []byte("first"))
				states := make(chan []byte, 16)
				observation, err := conn.Observe(ctx, "", func(m *pool.Message) {
					body, _ := m.ReadBody()
					states <- body
				}, proxied)
				require.NoError(t, err)
				next := func() []byte {
					select {
					case body := <-states:
						return body
					case <-time.After(patience):
						require.FailNow(t, "no notification")
						return nil
					}
				}
				require.Equal(t, "first", string(next()))
				for i := range 3 {
					state := fmt.Appendf(nil, "state %d", i)
					o.notify(t, path, state)
					require.Equal(t, state, next())
				}
				require.NoError(t, observation.Cancel(ctx, proxied))
				eventually(t, func() bool { return !o.observed(path) }, "it is still observed")
			})
		}
	}
}
