package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"coapproxy/test/internal/coap"
)

const (
	deviceCount = 20
	// lossPermille of what devices are sent gets lost.
	lossPermille = 5
	// leisure is the time over which they answer a group.
	leisure = 300 * time.Millisecond
	// notifyEvery is the time between two notifications.
	notifyEvery = 2 * time.Second
	// deadTime is how long the last device is dead, and then alive.
	deadTime = 20 * time.Second
)

// devices are CoAP servers, all members of one group.
type devices struct {
	port  int
	group *net.UDPConn
	all   []*device
	start time.Time
}

type device struct {
	addr netip.AddrPort
	conn *net.UDPConn

	mu        sync.Mutex
	id        uint16
	observers map[string]observer
}

type observer struct {
	to    netip.AddrPort
	token []byte
	seq   uint32
}

func deviceAddr(n int) netip.Addr { return netip.AddrFrom4([4]byte{127, 3, 0, byte(n + 1)}) }

func newDevices(n int) (*devices, error) {
	d := &devices{start: time.Now()}
	for i := range n {
		conn, err := listen(netip.AddrPortFrom(deviceAddr(i), uint16(d.port)))
		if err != nil {
			return nil, errors.Join(err, d.close())
		}
		d.port = conn.LocalAddr().(*net.UDPAddr).Port
		d.all = append(d.all, &device{addr: netip.AddrPortFrom(deviceAddr(i), uint16(d.port)), conn: conn, id: uint16(rand.Uint32()),
			observers: make(map[string]observer)})
	}
	var err error
	if d.group, err = listen(netip.AddrPortFrom(netip.AddrFrom4([4]byte{224, 0, 1, 187}), uint16(d.port))); err != nil {
		return nil, errors.Join(err, d.close())
	}
	lo, err := net.InterfaceByName("lo")
	if err == nil {
		err = ipv4.NewPacketConn(d.group).JoinGroup(lo, &net.UDPAddr{IP: net.IPv4(224, 0, 1, 187)})
	}
	if err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

// listen opens a socket at an address, beside others at the same port.
func listen(at netip.AddrPort) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) }); e != nil {
			return e
		}
		return err
	}}
	conn, err := lc.ListenPacket(context.Background(), "udp4", at.String())
	if err != nil {
		return nil, err
	}
	return conn.(*net.UDPConn), nil
}

func (d *devices) close() error {
	var errs error
	if d.group != nil {
		errs = d.group.Close()
	}
	for _, v := range d.all {
		errs = errors.Join(errs, v.conn.Close())
	}
	return errs
}

// serve answers until ctx ends.
func (d *devices) serve(ctx context.Context) {
	var wg sync.WaitGroup
	for i, v := range d.all {
		mortal := i == len(d.all)-1
		read(ctx, &wg, v.conn, func(m *coap.Message, from netip.AddrPort) {
			if mortal && d.dead() || lost() {
				return
			}
			v.handle(m, from, 0)
		})
		wg.Go(func() { v.notify(ctx) })
	}
	read(ctx, &wg, d.group, func(m *coap.Message, from netip.AddrPort) {
		for i, v := range d.all {
			if i == len(d.all)-1 && d.dead() || lost() {
				continue
			}
			time.AfterFunc(rand.N(leisure), func() { v.handle(m, from, 1) })
		}
	})
	wg.Wait()
}

// dead tells whether the mortal device is dead now.
func (d *devices) dead() bool { return time.Since(d.start)/deadTime%2 == 1 }

func lost() bool { return rand.IntN(1000) < lossPermille }

// read hands what conn receives to f, until ctx ends.
func read(ctx context.Context, wg *sync.WaitGroup, conn *net.UDPConn, f func(*coap.Message, netip.AddrPort)) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Now()) })
	wg.Go(func() {
		defer stop()
		b := make([]byte, 2048)
		for ctx.Err() == nil {
			n, from, err := conn.ReadFromUDPAddrPort(b)
			if err != nil {
				continue // an ICMP error, or the end
			}
			if m, err := coap.Parse(append([]byte(nil), b[:n]...)); err == nil {
				f(m, from)
			}
		}
	})
}

// handle answers a request; quiet ones came to the group.
func (v *device) handle(m *coap.Message, from netip.AddrPort, group int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	key := from.String() + string(m.Token)
	switch {
	case m.Type == coap.RST:
		for k, o := range v.observers {
			if o.to == from {
				delete(v.observers, k)
			}
		}
		return
	case m.Type == coap.ACK || m.Code == coap.Empty:
		return
	}
	answer := coap.Message{Type: coap.NON, Code: coap.CodeOf(2, 5), Token: m.Token, Payload: []byte("21.5 °C"),
		Options: []coap.Option{coap.Uint(coap.MaxAge, 1)}}
	if m.Code != coap.GET {
		answer.Code, answer.Options, answer.Payload = coap.CodeOf(2, 4), nil, nil
	}
	if o, ok := m.Option(coap.Observe); ok && m.Code == coap.GET {
		if o.Uint() == 0 {
			w := v.observers[key]
			w.to, w.token, w.seq = from, m.Token, w.seq+1
			v.observers[key] = w
			answer.Options = append([]coap.Option{coap.Uint(coap.Observe, w.seq)}, answer.Options...)
		} else {
			delete(v.observers, key)
		}
	}
	if m.Type == coap.CON && group == 0 {
		answer.Type, answer.ID = coap.ACK, m.ID
	} else {
		v.id++
		answer.ID = v.id
	}
	_, _ = v.conn.WriteToUDPAddrPort(answer.Bytes(), from)
}

// notify sends notifications until ctx ends.
func (v *device) notify(ctx context.Context) {
	tick := time.NewTicker(notifyEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		v.mu.Lock()
		for k, o := range v.observers {
			o.seq++
			v.id++
			v.observers[k] = o
			m := coap.Message{Type: coap.NON, Code: coap.CodeOf(2, 5), ID: v.id, Token: o.token,
				Options: []coap.Option{coap.Uint(coap.Observe, o.seq), coap.Uint(coap.MaxAge, 5)}, Payload: fmt.Appendf(nil, "%d", o.seq)}
			_, _ = v.conn.WriteToUDPAddrPort(m.Bytes(), o.to)
		}
		v.mu.Unlock()
	}
}
