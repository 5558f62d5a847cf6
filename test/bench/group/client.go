package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/ipv4"

	"coapproxy/test/bench/internal/measure"
	"coapproxy/test/bench/internal/packet"
)

const (
	// grace is how long a client waits for responses after T', which the proxy counts from a little later.
	grace = 200 * time.Millisecond
	// lateBy is how much after T', counted at the client, a response may arrive and be in time.
	lateBy = 50 * time.Millisecond
	// look is the longest time between two looks at the running exchanges.
	look = 50 * time.Millisecond
)

// A crowd is all clients together.
type crowd struct {
	*settings
	clock func() time.Duration
	token atomic.Uint32 // the last one used: no two exchanges have the same

	mu      sync.Mutex
	total   measure.Group
	latency measure.Histogram
}

// An asker is one client.
type asker struct {
	*crowd
	conn     *net.UDPConn
	template []byte
	digits   int                  // where in the template the part of the URI begins that differs
	id       uint16               // the last Message ID used
	running  map[uint32]*exchange // by Token
	free     []*exchange

	total   measure.Group
	latency measure.Histogram
}

// An exchange is one group request and its responses so far.
type exchange struct {
	sent  time.Duration
	count int
	heard []bool // by member
}

func newCrowd(s *settings, clock func() time.Duration) *crowd {
	return &crowd{settings: s, clock: clock}
}

func (c *crowd) result() measure.Group {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.total
	r.Members = c.members
	r.Elapsed = c.clock()
	r.P50, r.P99 = c.latency.Quantile(0.5), c.latency.Quantile(0.99)
	return r
}

// ask runs client number i until the duration is over and its last exchange has ended.
func (c *crowd) ask(ctx context.Context, i int) error {
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(c.to))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetReadBuffer(4 << 20); err != nil {
		return err
	}
	a := &asker{crowd: c, conn: conn, running: make(map[uint32]*exchange, c.window)}
	a.template, a.digits = c.request()
	err = a.loop(ctx, i)

	c.mu.Lock()
	defer c.mu.Unlock()
	t := &c.total
	t.Exchanges += a.total.Exchanges
	t.Complete += a.total.Complete
	t.Responses += a.total.Responses
	t.Duplicates += a.total.Duplicates
	t.Late += a.total.Late
	t.Errors += a.total.Errors
	c.latency.Merge(&a.latency)
	return err
}

// request is the template of all requests. Their URIs differ in eight digits, so that no proxy can answer two
// with one group request.
func (c *crowd) request() (template []byte, digits int) {
	uri := fmt.Sprintf("coap://%v/b?00000000", c.group)
	b := packet.AppendHeader(nil, packet.NON, packet.GET, 0, make([]byte, packet.TokenLen))
	b = packet.AppendOption(b, 0, packet.MulticastTimeout, []byte{byte(c.timeout)})
	b = packet.AppendOption(b, packet.MulticastTimeout, packet.ProxyURI, []byte(uri))
	return b, len(b) - 8
}

func (a *asker) loop(ctx context.Context, i int) error {
	p := ipv4.NewPacketConn(a.conn)
	in := make([]ipv4.Message, batchSize)
	for j := range in {
		in[j].Buffers = [][]byte{make([]byte, 2048)}
	}
	// The first requests are spread over the members' time, so that the responses come evenly.
	begin := func(n int) time.Duration {
		return a.spread * time.Duration(n*a.clients+i) / time.Duration(a.clients*a.window)
	}
	started := 0
	for ctx.Err() == nil {
		now := a.clock()
		for ; started < a.window && begin(started) <= now; started++ {
			if err := a.start(now); err != nil {
				return err
			}
		}
		if now > a.duration && len(a.running) == 0 {
			return nil
		}
		wait := look
		if started < a.window {
			wait = min(wait, begin(started)-now)
		}
		if err := a.conn.SetReadDeadline(time.Now().Add(wait)); err != nil {
			return err
		}
		n, err := p.ReadBatch(in, 0)
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("client: %w", err)
		}
		now = a.clock()
		for _, m := range in[:max(n, 0)] {
			if err := a.handle(m.Buffers[0][:m.N], now); err != nil {
				return err
			}
		}
		if err := a.expire(now); err != nil {
			return err
		}
	}
	return nil
}

func (a *asker) start(now time.Duration) error {
	if now > a.duration {
		return nil
	}
	token := a.token.Add(1)
	a.id++
	packet.SetID(a.template, a.id)
	packet.SetToken(a.template, token)
	const hexDigits = "0123456789abcdef"
	for i := range 8 {
		a.template[a.digits+i] = hexDigits[token>>(28-4*i)&15]
	}
	x := &exchange{}
	if n := len(a.free); n > 0 {
		x, a.free = a.free[n-1], a.free[:n-1]
		clear(x.heard)
	} else {
		x.heard = make([]bool, a.members)
	}
	x.sent, x.count = now, 0
	a.running[token] = x
	if _, err := a.conn.Write(a.template); err != nil {
		return fmt.Errorf("client: %w", err)
	}
	return nil
}

// end counts an exchange that is over and starts the next.
func (a *asker) end(token uint32, x *exchange, now time.Duration) error {
	delete(a.running, token)
	a.free = append(a.free, x)
	a.total.Exchanges++
	if x.count == a.members {
		a.total.Complete++
	}
	return a.start(now)
}

func (a *asker) handle(b []byte, now time.Duration) error {
	h, ok := packet.Parse(b)
	if !ok || h.Code == packet.Empty {
		return nil
	}
	if h.Type == packet.CON {
		if _, err := a.conn.Write(packet.AppendHeader(nil, packet.ACK, packet.Empty, h.ID, nil)); err != nil {
			return err
		}
	}
	token, _ := packet.Token(h)
	x, ok := a.running[token]
	switch {
	case !ok:
		return nil // of an exchange that was given up
	case h.Code != packet.Content || len(b) < payloadLen:
		a.total.Errors++
		return nil
	}
	payload := b[len(b)-payloadLen:]
	member := binary.BigEndian.Uint32(payload[8:])
	switch {
	case member >= uint32(a.members):
		a.total.Errors++
		return nil
	case x.heard[member]:
		a.total.Duplicates++
		return nil
	}
	x.heard[member] = true
	x.count++
	a.total.Responses++
	a.latency.Add(now - time.Duration(binary.BigEndian.Uint64(payload)))
	if now-x.sent > time.Duration(a.timeout)*time.Second+lateBy {
		a.total.Late++
	}
	if x.count == a.members {
		return a.end(token, x, now)
	}
	return nil
}

func (a *asker) expire(now time.Duration) error {
	for token, x := range a.running {
		if now-x.sent > time.Duration(a.timeout)*time.Second+grace {
			if err := a.end(token, x, now); err != nil {
				return err
			}
		}
	}
	return nil
}
