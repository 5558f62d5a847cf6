package service

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"coapproxy/config"
	"coapproxy/endpoint"
	"coapproxy/exchange"
	"coapproxy/httpbridge"
)

// listener is an open listener.
type listener struct {
	name   string // what the configuration calls it
	uri    string // with the port it got
	scheme string
	addr   netip.AddrPort
	close  func() error // what takes the place of serve
	ready  func()       // says so in the log
	serve  func(ctx context.Context)
	// revoke ends the DTLS sessions of clients whose proof does not count any more;
	// nil where there are none.
	revoke func(stale func(*exchange.Security) bool)
	web    *httpbridge.Listener // nil for CoAP

	cancel context.CancelFunc
	done   chan struct{}
	reopen func() (*listener, error) // the same again, once it is closed
}

// start serves a listener until stop, or the end of ctx.
func (l *listener) start(ctx context.Context) {
	ctx, l.cancel = context.WithCancel(ctx)
	l.done = make(chan struct{})
	l.ready()
	go func() {
		defer close(l.done)
		l.serve(ctx)
	}()
}

// stop closes a listener that serves, its clients' sessions and connections too.
func (l *listener) stop() {
	l.cancel()
	<-l.done
}

// transition is the step from the listeners that are open to those that a
// configuration names. Those in both stay as they are.
type transition struct {
	proxy      *Proxy
	generation *generation
	log        *zap.Logger
	next       []*listener // in the order of the configuration
	added      []*listener
	removed    []*listener
	// closed are those of removed that had to make room for one of added.
	closed map[*listener]bool
}

// listen opens what c names and is not open yet. Nothing serves before apply; an
// error leaves everything as it was.
func (p *Proxy) listen(c *config.Config, g *generation, log *zap.Logger) (*transition, error) {
	t := &transition{proxy: p, generation: g, log: log, closed: make(map[*listener]bool)}
	names, kept := listenerNames(c.Listen), make(map[string]*listener)
	for _, l := range p.listeners {
		if slices.Contains(names, l.name) {
			kept[l.name] = l
		} else {
			t.removed = append(t.removed, l)
		}
	}
	for i, l := range c.Listen {
		if k := kept[names[i]]; k != nil {
			t.next = append(t.next, k)
			continue
		}
		o, err := t.open(c, l, names[i])
		if err != nil && optionalListener(l, err) {
			log.Warn("not listening", zap.Stringer("listener", l), zap.Error(err))
			continue
		}
		if err != nil {
			t.abandon()
			return nil, fmt.Errorf("listen on %s: %w", l, err)
		}
		t.next, t.added = append(t.next, o), append(t.added, o)
	}
	if len(t.next) == 0 {
		t.abandon()
		return nil, errors.New("no listener works")
	}
	return t, nil
}

// listenerNames tells the listeners of a configuration apart, those too that
// leave the port to the system.
func listenerNames(listen []config.Listener) []string {
	names := make([]string, len(listen))
	count := make(map[string]int)
	for i, l := range listen {
		names[i] = l.String()
		if count[names[i]]++; count[l.String()] > 1 {
			names[i] += fmt.Sprintf(" (%d)", count[l.String()])
		}
	}
	return names
}

// open opens a listener. Where an address is taken by one that is to go, as when
// a wildcard replaces an address or the other way round, that one goes first.
func (t *transition) open(c *config.Config, l config.Listener, name string) (*listener, error) {
	o, err := t.proxy.open(c, t.generation, l, name, t.log)
	if !errors.Is(err, syscall.EADDRINUSE) {
		return o, err
	}
	again := false
	for _, r := range t.removed {
		if r.addr.Port() == l.Addr.Port() && !t.closed[r] {
			r.stop()
			t.closed[r] = true
			again = true
		}
	}
	if !again {
		return nil, err
	}
	return t.proxy.open(c, t.generation, l, name, t.log)
}

// apply serves what was added and closes what was removed.
func (t *transition) apply() {
	p := t.proxy
	p.listeners = t.next
	p.own.set(p.listeners)
	p.bound.set(p.listeners)
	for _, l := range t.added {
		l.start(p.ctx)
	}
	for _, l := range t.removed {
		if !t.closed[l] {
			l.stop()
		}
		t.log.Info("not listening any more", zap.String("uri", l.uri))
	}
}

// abandon closes what was added and opens again what had to make room for it.
func (t *transition) abandon() {
	for _, l := range t.added {
		_ = l.close()
	}
	for l := range t.closed {
		o, err := l.reopen()
		if err != nil {
			t.log.Error("a listener is lost", zap.String("uri", l.uri), zap.Error(err))
			continue
		}
		*l = *o
		l.start(t.proxy.ctx)
	}
}

// open opens one listener, for the generation that is about to serve.
func (p *Proxy) open(c *config.Config, g *generation, l config.Listener, name string, log *zap.Logger) (*listener, error) {
	var o *listener
	var err error
	switch l.Scheme {
	case "coap", "coaps":
		o, err = p.datagrams(c, l, log)
	case "http", "https":
		o, err = p.listenHTTP(c, l, g.web, log)
	default:
		o, err = p.connections(l, log)
	}
	if err != nil {
		return nil, err
	}
	o.name, o.uri, o.scheme = name, l.Scheme+"://"+o.addr.String(), l.Scheme
	again := l
	again.Addr = o.addr
	o.reopen = func() (*listener, error) { return p.open(c, g, again, name, log) }
	return o, nil
}

// datagrams opens a listener over UDP, or over DTLS: with pre-shared keys, a
// certificate, or both, by the choice of the client.
func (p *Proxy) datagrams(c *config.Config, l config.Listener, log *zap.Logger) (*listener, error) {
	passed, err := p.sockets.take(l.Addr, unix.SOCK_DGRAM)
	if err != nil {
		return nil, err
	}
	conn, err := endpoint.ListenUDP(p.ctx, l.Addr, endpoint.UDPOptions{ReceiveBuffer: int(c.Limits.ReceiveBuffer),
		SendBuffer: int(c.Limits.ReceiveBuffer), PacketInfo: true, Socket: passed})
	if err != nil {
		return nil, err
	}
	var packets endpoint.PacketConn = conn
	if l.Scheme == "coaps" {
		if packets, err = endpoint.NewDTLSServer(endpoint.DTLSConfig{Conn: conn, Engine: p.engine, Limits: endpoint.DefaultDTLSLimits(),
			Credentials: p.dtlsCredentials, Stats: &p.stats.sessions, Log: log.Named("dtls")}); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
	}
	var revoke func(func(*exchange.Security) bool)
	if d, ok := packets.(*endpoint.DTLSConn); ok {
		revoke = d.EndSessions
	}
	e := endpoint.New(endpoint.Config{Conn: packets, Engine: p.engine, Requests: p.front, Params: endpoint.DefaultParams(),
		Dedup: dedupOf(c), MaxToken: c.Limits.MaxToken, RoundTrips: p.roundTrips, Stats: &p.stats.messages, Log: log.Named("coap")})
	return &listener{addr: conn.LocalAddr(), close: packets.Close, revoke: revoke, ready: func() {
		log.Info("listening", zap.String("uri", l.Scheme+"://"+conn.LocalAddr().String()), zap.Int("receive_buffer", conn.ReceiveBuffer()))
		if got := conn.ReceiveBuffer(); got < int(c.Limits.ReceiveBuffer) {
			log.Warn("the kernel gave a smaller receive buffer than wanted; raise net.core.rmem_max",
				zap.Int("wanted", int(c.Limits.ReceiveBuffer)), zap.Int("got", got))
		}
	}, serve: func(ctx context.Context) { _ = e.Serve(ctx) }}, nil
}

// streamServer is the server of all connections over TCP and WebSocket.
func (p *Proxy) streamServer(c *config.Config, log *zap.Logger) *endpoint.StreamServer {
	limits := connectionsWithin(descriptorLimit(), c)
	limits.tell(log)
	return endpoint.NewStreamServer(endpoint.StreamConfig{Engine: p.engine, Requests: p.front, MaxToken: c.Limits.MaxToken,
		Limits: endpoint.DefaultStreamLimits(), Stats: &p.stats.streams, Log: log}, limits.streams)
}

// connections opens a listener over TCP or WebSocket.
func (p *Proxy) connections(l config.Listener, log *zap.Logger) (*listener, error) {
	socket, err := p.sockets.listenTCP(p.ctx, l.Addr)
	if err != nil {
		return nil, err
	}
	bound := socket.Addr().(*net.TCPAddr).AddrPort()
	addr := netip.AddrPortFrom(bound.Addr().Unmap(), bound.Port())
	uri := zap.String("uri", l.Scheme+"://"+addr.String())
	return &listener{addr: addr, close: socket.Close, ready: func() { log.Info("listening", uri) }, serve: func(ctx context.Context) {
		var err error
		secure := p.secureServer(l.Scheme)
		if strings.HasSuffix(l.Scheme, "+ws") {
			err = p.streams.ServeWebSocket(ctx, socket, secure, endpoint.WebPages{KnownHost: p.knownHost})
		} else {
			err = p.streams.Serve(ctx, socket, secure)
		}
		if err != nil && ctx.Err() == nil {
			log.Error("listener ended", uri, zap.Error(err))
		}
	}}, nil
}

// optionalListener reports whether the proxy may do without a listener that
// failed: the IPv6 loopback address, which is among the defaults, on a host
// without IPv6.
func optionalListener(l config.Listener, err error) bool {
	return l.Addr.Addr() == netip.IPv6Loopback() && isNoFamily(err)
}
