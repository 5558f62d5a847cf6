package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"go.uber.org/zap"

	"coapproxy/config"
	"coapproxy/endpoint"
)

// opened is a listener that is open and does not serve yet.
type opened struct {
	addr  netip.AddrPort
	close func() error
	ready func() // says so in the log
	serve func()
}

// listen opens all listeners and serves them, or none.
func (p *runningProxy) listen(c *config.Config, log *zap.Logger) error {
	streams := p.streams(c, log.Named("connection"))
	var all []opened
	for _, l := range c.Listen {
		var o opened
		var err error
		switch l.Scheme {
		case "coap", "coaps":
			o, err = p.datagrams(c, l, log)
		case "http", "https":
			o, err = p.listenHTTP(c, l, log)
		default:
			o, err = connections(p.ctx, l, streams, log)
		}
		if err != nil && optionalListener(l, err) {
			log.Warn("not listening", zap.Stringer("listener", l), zap.Error(err))
			continue
		}
		if err != nil {
			for _, o := range all {
				_ = o.close()
			}
			return fmt.Errorf("listen on %s: %w", l, err)
		}
		all = append(all, o)
	}
	if len(all) == 0 {
		return errors.New("no listener works")
	}
	for _, o := range all {
		p.own.add(o.addr)
	}
	for _, o := range all {
		o.ready()
		p.wg.Go(o.serve)
		p.listeners = append(p.listeners, o.addr)
	}
	return nil
}

// datagrams opens a listener over UDP, or over DTLS for the clients that have
// a key.
func (p *runningProxy) datagrams(c *config.Config, l config.Listener, log *zap.Logger) (opened, error) {
	conn, err := endpoint.ListenUDP(p.ctx, l.Addr, endpoint.UDPOptions{ReceiveBuffer: int(c.Limits.ReceiveBuffer),
		SendBuffer: int(c.Limits.ReceiveBuffer), PacketInfo: true})
	if err != nil {
		return opened{}, err
	}
	var packets endpoint.PacketConn = conn
	if l.Scheme == "coaps" {
		if packets, err = endpoint.NewDTLSServer(endpoint.DTLSConfig{Conn: conn, Engine: p.engine, Limits: endpoint.DefaultDTLSLimits(),
			Credentials: endpoint.DTLSCredentials{Key: p.key},
			Stats:       &p.stats.sessions, Log: log.Named("dtls")}); err != nil {
			return opened{}, errors.Join(err, conn.Close())
		}
	}
	e := endpoint.New(endpoint.Config{Conn: packets, Engine: p.engine, Requests: p.front, Params: endpoint.DefaultParams(),
		Dedup: dedupOf(c), MaxToken: c.Limits.MaxToken, Stats: &p.stats.messages, Log: log.Named("coap")})
	return opened{addr: conn.LocalAddr(), close: packets.Close, ready: func() {
		log.Info("listening", zap.String("uri", l.Scheme+"://"+conn.LocalAddr().String()), zap.Int("receive_buffer", conn.ReceiveBuffer()))
		if got := conn.ReceiveBuffer(); got < int(c.Limits.ReceiveBuffer) {
			log.Warn("the kernel gave a smaller receive buffer than wanted; raise net.core.rmem_max",
				zap.Int("wanted", int(c.Limits.ReceiveBuffer)), zap.Int("got", got))
		}
	}, serve: func() { _ = e.Serve(p.ctx) }}, nil
}

// key returns the pre-shared key of a client, as of now.
func (p *runningProxy) key(identity string) ([]byte, bool) {
	k, ok := p.secrets.Load().psk[identity]
	return k, ok
}

// streams is the server of all connections over TCP and WebSocket.
func (p *runningProxy) streams(c *config.Config, log *zap.Logger) *endpoint.StreamServer {
	limits := endpoint.DefaultStreamLimits()
	limits.Message = streamMessage
	return endpoint.NewStreamServer(endpoint.StreamConfig{Engine: p.engine, Requests: p.front, MaxToken: c.Limits.MaxToken,
		Limits: limits, Stats: &p.stats.streams, Log: log}, endpoint.DefaultServerLimits())
}

// streamMessage is the Max-Message-Size of connections: the base value of
// RFC 8323 §5.3.1, since a larger one would offer BERT, whose blocks the proxy
// does not cut. Longer bodies come and go in blocks.
const streamMessage = 1152

// connections opens a listener over TCP or WebSocket.
func connections(ctx context.Context, l config.Listener, streams *endpoint.StreamServer, log *zap.Logger) (opened, error) {
	var lc net.ListenConfig
	network := "tcp4"
	if l.Addr.Addr().Is6() {
		network = "tcp6"
	}
	listener, err := lc.Listen(ctx, network, l.Addr.String())
	if err != nil {
		return opened{}, err
	}
	bound := listener.Addr().(*net.TCPAddr).AddrPort()
	addr := netip.AddrPortFrom(bound.Addr().Unmap(), bound.Port())
	uri := zap.String("uri", l.Scheme+"://"+addr.String())
	return opened{addr: addr, close: listener.Close, ready: func() { log.Info("listening", uri) }, serve: func() {
		var err error
		if l.Scheme == "coap+ws" {
			err = streams.ServeWebSocket(ctx, listener, nil, nil)
		} else {
			err = streams.Serve(ctx, listener, nil)
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
