package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"go.uber.org/zap"

	"coapproxy/config"
	"coapproxy/endpoint"
	"coapproxy/exchange"
)

// listening is what the listeners of a proxy share.
type listening struct {
	engine   *exchange.Engine
	own      *ownAddresses
	dedup    endpoint.DedupLimits
	messages *endpoint.Stats
	sessions *endpoint.DTLSStats
	wg       *sync.WaitGroup
}

// opened is a listener that is open and does not serve yet.
type opened struct {
	addr  netip.AddrPort
	close func() error
	ready func() // says so in the log
	serve func()
}

// listen opens all listeners and serves them, or none.
func (p *runningProxy) listen(ctx context.Context, c *config.Config, with listening, log *zap.Logger) error {
	var keys map[string][]byte
	if c.Credentials.PSK != "" {
		var err error
		if keys, err = config.LoadPSK(c.Credentials.PSK); err != nil {
			return err
		}
	}
	streams := p.streams(c, with.engine, log.Named("connection"))
	var all []opened
	for _, l := range c.Listen {
		var o opened
		var err error
		switch l.Scheme {
		case "coap", "coaps":
			o, err = p.datagrams(ctx, c, l, with, keys, log)
		default:
			o, err = connections(ctx, l, streams, log)
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
		with.own.add(o.addr)
	}
	for _, o := range all {
		o.ready()
		with.wg.Go(o.serve)
		p.listeners = append(p.listeners, o.addr)
	}
	return nil
}

// datagrams opens a listener over UDP, or over DTLS for the clients that have
// one of the keys.
func (p *runningProxy) datagrams(ctx context.Context, c *config.Config, l config.Listener, with listening, keys map[string][]byte, log *zap.Logger) (opened, error) {
	conn, err := endpoint.ListenUDP(ctx, l.Addr, endpoint.UDPOptions{ReceiveBuffer: int(c.Limits.ReceiveBuffer),
		SendBuffer: int(c.Limits.ReceiveBuffer), PacketInfo: true})
	if err != nil {
		return opened{}, err
	}
	var packets endpoint.PacketConn = conn
	if l.Scheme == "coaps" {
		if packets, err = endpoint.NewDTLSServer(endpoint.DTLSConfig{Conn: conn, Engine: with.engine, Limits: endpoint.DefaultDTLSLimits(),
			Credentials: endpoint.DTLSCredentials{Key: func(identity string) ([]byte, bool) { k, ok := keys[identity]; return k, ok }},
			Stats:       with.sessions, Log: log.Named("dtls")}); err != nil {
			return opened{}, errors.Join(err, conn.Close())
		}
	}
	e := endpoint.New(endpoint.Config{Conn: packets, Engine: with.engine, Requests: p.front, Params: endpoint.DefaultParams(),
		Dedup: with.dedup, MaxToken: c.Limits.MaxToken, Stats: with.messages, Log: log.Named("coap")})
	return opened{addr: conn.LocalAddr(), close: packets.Close, ready: func() {
		log.Info("listening", zap.String("uri", l.Scheme+"://"+conn.LocalAddr().String()), zap.Int("receive_buffer", conn.ReceiveBuffer()))
		if got := conn.ReceiveBuffer(); got < int(c.Limits.ReceiveBuffer) {
			log.Warn("the kernel gave a smaller receive buffer than wanted; raise net.core.rmem_max",
				zap.Int("wanted", int(c.Limits.ReceiveBuffer)), zap.Int("got", got))
		}
	}, serve: func() { _ = e.Serve(ctx) }}, nil
}

// streams is the server of all connections over TCP and WebSocket.
func (p *runningProxy) streams(c *config.Config, engine *exchange.Engine, log *zap.Logger) *endpoint.StreamServer {
	stats := &endpoint.StreamStats{}
	p.metrics.Register("coap", stats, nil)
	limits := endpoint.DefaultStreamLimits()
	limits.Message = streamMessage
	return endpoint.NewStreamServer(endpoint.StreamConfig{Engine: engine, Requests: p.front, MaxToken: c.Limits.MaxToken,
		Limits: limits, Stats: stats, Log: log}, endpoint.DefaultServerLimits())
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
