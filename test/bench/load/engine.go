package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sys/unix"

	"coapproxy/test/bench/internal/measure"
	"coapproxy/test/bench/internal/packet"
)

// A client has one connected socket and a window of requests under way.
type client struct {
	fd     int
	id     uint16 // the last Message ID used
	packet []byte // template of the request
	slots  []slot
}

// A slot is one place in a window.
type slot struct {
	token uint32        // of the request under way: the slot's index in the first byte, then a count
	sent  time.Duration // on the engine's clock; idle when the slot has nothing under way
}

const idle time.Duration = -1

type engine struct {
	*settings
	epoll   int
	clients []client
	start   time.Time
	open    int // requests under way
	result  measure.Load
	latency measure.Histogram
	buf     [2048]byte
}

// run carries out what the settings say. All sockets are served by the calling goroutine, with epoll: the
// runtime's own poller costs a goroutine switch and a failed read per message more.
func run(s *settings) (measure.Load, error) {
	e := &engine{settings: s, clients: make([]client, s.clients)}
	e.result.Errors = make(map[string]uint64)
	if err := e.openSockets(); err != nil {
		e.closeSockets()
		return measure.Load{}, err
	}
	defer e.closeSockets()

	cpu, err := ownCPU()
	if err != nil {
		return measure.Load{}, err
	}
	e.start = time.Now()
	for i := range e.clients {
		c := &e.clients[i]
		for n := range c.slots {
			e.send(c, n)
		}
	}
	if err := e.loop(); err != nil {
		return measure.Load{}, err
	}
	e.result.Elapsed = time.Since(e.start)
	after, err := ownCPU()
	if err != nil {
		return measure.Load{}, err
	}
	e.result.CPU = after - cpu
	e.result.P50, e.result.P99 = e.latency.Quantile(0.5), e.latency.Quantile(0.99)
	if s.once {
		e.result.Burst = uint64(s.clients * s.window)
	}
	return e.result, nil
}

func ownCPU() (time.Duration, error) {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0, fmt.Errorf("getrusage: %w", err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}

func (e *engine) openSockets() error {
	for i := range e.clients {
		e.clients[i].fd = -1
	}
	var err error
	if e.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("epoll_create1: %w", err)
	}
	to := &unix.SockaddrInet4{Addr: e.to.Addr().As4(), Port: int(e.to.Port())}
	for i := range e.clients {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("socket: %w", err)
		}
		c := &e.clients[i]
		*c = client{fd: fd, id: uint16(rand.Uint32()), packet: e.request(i), slots: make([]slot, e.window)}
		for n := range c.slots {
			c.slots[n] = slot{token: uint32(n) << 24, sent: idle}
		}
		if err := unix.Connect(fd, to); err != nil {
			return fmt.Errorf("connect: %w", err)
		}
		event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)} // the kernel hands Fd back as it is
		if err := unix.EpollCtl(e.epoll, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
			return fmt.Errorf("epoll_ctl: %w", err)
		}
	}
	return nil
}

func (e *engine) closeSockets() {
	for i := range e.clients {
		if e.clients[i].fd >= 0 {
			_ = unix.Close(e.clients[i].fd)
		}
	}
	if e.epoll > 0 {
		_ = unix.Close(e.epoll)
	}
}

func (e *engine) loop() error {
	const interval = 50 * time.Millisecond // between looks at the timeouts
	events := make([]unix.EpollEvent, 128)
	sweep := interval
	for {
		n, err := unix.EpollWait(e.epoll, events, int(interval/time.Millisecond))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("epoll_wait: %w", err)
		}
		for _, event := range events[:max(n, 0)] {
			e.receive(&e.clients[event.Fd])
		}
		now := time.Since(e.start)
		if e.once && e.open == 0 || !e.once && now >= e.duration {
			return nil
		}
		if now >= sweep {
			sweep = now + interval
			e.expire(now)
		}
	}
}

// receive reads what a window may hold; epoll says again when more is there.
func (e *engine) receive(c *client) {
	for range c.slots {
		n, err := unix.Read(c.fd, e.buf[:])
		if err != nil {
			return // nothing (more) there, or an ICMP error, which the timeout settles
		}
		e.handle(c, e.buf[:n])
	}
}

func (e *engine) handle(c *client, b []byte) {
	h, ok := packet.Parse(b)
	if !ok {
		e.result.Strays++
		return
	}
	if h.Code == packet.Empty {
		if h.Type == packet.RST {
			e.result.Errors["RST"]++ // its request times out
		}
		return
	}
	if h.Type == packet.CON {
		_, _ = unix.Write(c.fd, packet.AppendHeader(nil, packet.ACK, packet.Empty, h.ID, nil))
	}
	token, ok := packet.Token(h)
	n := int(token >> 24)
	if !ok || n >= len(c.slots) || c.slots[n].token != token || c.slots[n].sent == idle {
		e.result.Strays++
		return
	}
	if h.Code == packet.Content {
		e.result.Exchanges++
		e.latency.Add(time.Since(e.start) - c.slots[n].sent)
	} else {
		e.result.Errors[fmt.Sprintf("%d.%02d", h.Code>>5, h.Code&31)]++
	}
	e.done(c, n)
}

// done ends what a slot has under way and, unless once is set, begins the next.
func (e *engine) done(c *client, n int) {
	c.slots[n].sent = idle
	e.open--
	if !e.once {
		e.send(c, n)
	}
}

func (e *engine) send(c *client, n int) {
	s := &c.slots[n]
	s.token = s.token&0xff000000 | (s.token+1)&0x00ffffff
	c.id++
	packet.SetID(c.packet, c.id)
	packet.SetToken(c.packet, s.token)
	s.sent = time.Since(e.start)
	e.open++
	_, _ = unix.Write(c.fd, c.packet) // what cannot be sent is lost when its time is up
}

func (e *engine) expire(now time.Duration) {
	for i := range e.clients {
		c := &e.clients[i]
		for n := range c.slots {
			if c.slots[n].sent != idle && now-c.slots[n].sent > e.timeout {
				e.result.Losses++
				e.done(c, n)
			}
		}
	}
}
