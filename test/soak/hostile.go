package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"coapproxy/test/internal/coap"
)

// hostile does its worst until ctx ends: strangers from 127.9.0.0/16, and a client with an entry that behaves badly.
// Each goes at a rate that a stranger on the Internet has for nothing, not at that of the loopback interface: what
// is tried is whether the proxy keeps its head, not whether a machine can be kept busy.
func hostile(ctx context.Context, p *proxy) {
	var wg sync.WaitGroup
	for _, attack := range []func(context.Context, *proxy){noise, ports, replays, posts, halfOpen, slowloris, unruly} {
		wg.Go(func() {
			for ctx.Err() == nil {
				attack(ctx, p)
			}
		})
	}
	wg.Wait()
}

func stranger() *net.UDPAddr {
	return &net.UDPAddr{IP: net.IPv4(127, 9, byte(rand.Uint32()), byte(1+rand.IntN(250)))}
}

// send sends datagrams from one new socket, a thousandth of a second after another.
func send(ctx context.Context, from *net.UDPAddr, p *proxy, n int, datagram func(i int) []byte) {
	conn, err := net.DialUDP("udp4", from, p.coap)
	if err != nil {
		sleep(ctx, time.Second)
		return
	}
	defer conn.Close()
	for i := range n {
		if !sleep(ctx, time.Millisecond) {
			return
		}
		_, _ = conn.Write(datagram(i))
	}
}

// noise is random bytes, and requests with some bytes changed.
func noise(ctx context.Context, p *proxy) {
	send(ctx, stranger(), p, 500, func(i int) []byte {
		if i%2 == 0 {
			b := make([]byte, rand.IntN(200))
			for i := range b {
				b[i] = byte(rand.Uint32())
			}
			return b
		}
		b := ask(i%4 == 1, "coap://127.3.0.1/temp", coap.Uint(coap.MulticastTimeout, 5), coap.Uint(coap.Observe, 0)).Bytes()
		for range 1 + rand.IntN(4) {
			b[rand.IntN(len(b))] = byte(rand.Uint32())
		}
		return b
	})
}

// ports is requests from ever new addresses and ports.
func ports(ctx context.Context, p *proxy) {
	send(ctx, stranger(), p, 1, func(int) []byte { return ask(true, "coap://127.3.0.1/temp").Bytes() })
}

// replays is one message over and over.
func replays(ctx context.Context, p *proxy) {
	m := ask(true, "coap://127.3.0.1/temp").Bytes()
	send(ctx, stranger(), p, 500, func(int) []byte { return m })
}

// posts is small requests that have to be remembered.
func posts(ctx context.Context, p *proxy) {
	send(ctx, stranger(), p, 1000, func(int) []byte {
		return binary.BigEndian.AppendUint16([]byte{0x40, byte(coap.POST)}, uint16(rand.Uint32()))
	})
}

// halfOpen opens connections and says nothing, or half of a message.
func halfOpen(ctx context.Context, p *proxy) {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 9, 1, 1)}, Timeout: time.Second}
	var open []net.Conn
	for i := 0; i < 50 && sleep(ctx, 20*time.Millisecond); i++ {
		conn, err := dialer.DialContext(ctx, "tcp4", p.stream)
		if err != nil {
			continue
		}
		open = append(open, conn)
		if i%2 == 0 {
			_, _ = conn.Write([]byte{0x00, 0xe1}[:1+rand.IntN(2)])
		} else {
			_, _ = conn.Write([]byte{0xf0, 0xff, 0xff, 0xff, 0xff, 0x01}) // very long
		}
	}
	sleep(ctx, 3*time.Second)
	for _, conn := range open {
		_ = conn.Close()
	}
}

// slowloris sends HTTP request headers a byte at a time.
func slowloris(ctx context.Context, p *proxy) {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 9, 1, 2)}, Timeout: time.Second}
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			conn, err := dialer.DialContext(ctx, "tcp4", p.http)
			if err != nil {
				return
			}
			defer conn.Close()
			header := "GET /hc/coap://127.3.0.1/temp HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Long: "
			for i := 0; i < 60 && sleep(ctx, 250*time.Millisecond); i++ {
				if _, err := conn.Write([]byte{header[i%len(header)]}); err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	sleep(ctx, time.Second)
}

// unruly is a client with an entry: group requests whose responses it rejects or never acknowledges, observations
// it forgets, requests to servers that are not there.
func unruly(ctx context.Context, p *proxy) {
	from := &net.UDPAddr{IP: net.IPv4(127, 2, 0, byte(1+rand.IntN(250)))}
	send(ctx, from, p, 200, func(i int) []byte {
		switch i % 4 {
		case 0:
			return ask(true, "coap://224.0.1.187/temp", coap.Uint(coap.MulticastTimeout, uint32(rand.IntN(600)))).Bytes()
		case 1:
			return ask(true, fmt.Sprintf("coap://127.3.0.1/temp?%d", rand.IntN(1<<20)), coap.Uint(coap.Observe, 0)).Bytes()
		case 2:
			return ask(false, fmt.Sprintf("coap://127.3.7.%d/nobody", 1+rand.IntN(250))).Bytes()
		default:
			rst := coap.Message{Type: coap.RST, ID: uint16(rand.Uint32())}
			return rst.Bytes()
		}
	})
}
