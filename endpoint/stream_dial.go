package endpoint

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// dialStream opens a connection by the scheme of the server. The function it returns
// closes what is below the Stream when that has run.
func dialStream(ctx context.Context, c *StreamClientConfig, key serverKey, owner streamOwner) (*Stream, func(), error) {
	secure := key.scheme == "coaps+tcp" || key.scheme == "coaps+ws"
	overWS := key.scheme == "coap+ws" || key.scheme == "coaps+ws"
	name := key.host
	if name == "" {
		name = key.addr.Addr().WithZone("").String()
	}
	var security *exchange.Security
	var raw, conn net.Conn
	dial := func(ctx context.Context) (net.Conn, error) {
		var err error
		if raw, err = c.Dial(ctx, key.addr); err != nil {
			return nil, err
		}
		conn = raw
		if secure {
			if c.TLS == nil {
				_ = raw.Close()
				return nil, errors.New("no credentials for TLS")
			}
			protocol := alpnCoAP
			if overWS {
				protocol = "http/1.1"
			}
			t, err := secureClient(ctx, raw, c.TLS, name, protocol)
			if err != nil {
				return nil, err
			}
			state := t.ConnectionState()
			security, conn = tlsSecurity(&state), t
		}
		return conn, nil
	}
	var t transport
	var closeConn func()
	if overWS {
		ws, err := dialWebSocket(ctx, net.JoinHostPort(name, strconv.Itoa(int(key.addr.Port()))), dial)
		if err != nil {
			return nil, nil, err
		}
		t, closeConn = newWSTransport(ctx, ws), func() { _ = raw.Close(); _ = ws.CloseNow() }
	} else {
		if _, err := dial(ctx); err != nil {
			return nil, nil, err
		}
		t, closeConn = &netTransport{conn: conn, raw: raw}, func() { _ = raw.Close() }
	}
	s := newStream(c.StreamConfig, owner, t)
	s.raw, s.peer, s.local, s.scheme, s.security = raw, key.addr, addrPortOf(raw.LocalAddr()), key.scheme, security
	return s, closeConn, nil
}

// Connection is one connection over TCP, TLS or WebSocket to a server, for a client
// that asks nobody else. Safe for concurrent use.
type Connection struct {
	stream    *Stream
	responses func(m *wire.Message) bool
	settled   chan struct{} // the server's CSM has arrived
	ended     chan struct{}
	cause     error // once ended
	once      sync.Once
}

// Connect opens a connection to a server, known by name, or by its address if that
// is empty. Of config it takes what concerns one connection. It returns when the
// server's CSM is there or ctx ends. The connection ends with life, in an orderly
// way. responses is called on the reading goroutine with each response, which is
// borrowed, and reports whether somebody waits for it.
func Connect(ctx, life context.Context, config *StreamClientConfig, scheme, name string, server netip.AddrPort, responses func(m *wire.Message) bool) (*Connection, error) {
	dialing := *config
	if dialing.Dial == nil {
		dialing.Dial = dialTCP
	}
	c := &Connection{responses: responses, settled: make(chan struct{}), ended: make(chan struct{})}
	until := time.Now().Add(config.Limits.Handshake)
	bounded, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	stream, closeConn, err := dialStream(bounded, &dialing, serverKey{scheme, name, server}, c)
	if err != nil {
		return nil, err
	}
	c.stream = stream
	go func() {
		defer close(c.ended)
		c.cause = stream.run(life, until)
		closeConn()
	}()
	select {
	case <-c.settled:
		return c, nil
	case <-c.ended:
		return nil, c.cause
	case <-ctx.Done():
		stream.end(context.Cause(ctx))
		<-c.ended
		return nil, context.Cause(ctx)
	}
}

// Send queues a message, of which Type and ID mean nothing here; Engine.Flush makes
// it leave.
func (c *Connection) Send(m *wire.Message) error { return c.stream.put(m) }

// LocalAddr is the own address.
func (c *Connection) LocalAddr() netip.AddrPort { return c.stream.local }

// Ended is closed when the connection is over, and its goroutines are.
func (c *Connection) Ended() <-chan struct{} { return c.ended }

// Cause is why the connection ended, once it has.
func (c *Connection) Cause() error {
	<-c.ended
	return c.cause
}

// ready implements streamOwner.
func (c *Connection) ready(*Stream) { c.once.Do(func() { close(c.settled) }) }

// response implements streamOwner.
func (c *Connection) response(_ *Stream, m *wire.Message) bool { return c.responses(m) }

// busy implements streamOwner: what has been asked is for the server to finish.
func (c *Connection) busy(*Stream) bool { return true }
