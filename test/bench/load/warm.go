package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/net/ipv4"

	"coapproxy/test/bench/internal/packet"
)

const maxWarm = 1_000_000

// warmUp sends one request from each of s.warm endpoints and waits for the responses; lost is the number of
// those that did not come. Endpoints differ in their address, from 127.2.0.0 upwards, and share a socket, so
// there may be more of them than descriptors or ports.
func warmUp(s *settings) (lost uint64, err error) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{})
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if err := conn.SetReadBuffer(4 << 20); err != nil {
		return 0, err
	}
	p := ipv4.NewPacketConn(conn)

	const batch = 64
	in, out := make([]ipv4.Message, batch), make([]ipv4.Message, batch)
	request := s.warmRequest(0)
	for i := range in {
		in[i].Buffers = [][]byte{make([]byte, 2048)}
		out[i] = ipv4.Message{Buffers: [][]byte{nil}, Addr: net.UDPAddrFromAddrPort(s.to)}
	}
	for next := 0; next < s.warm; {
		n := min(batch, s.warm-next)
		for i := range n {
			if s.observe {
				request = s.warmRequest(next + i)
			}
			b := append(out[i].Buffers[0][:0], request...)
			out[i].Buffers[0] = b
			packet.SetID(b, uint16(next+i))
			packet.SetToken(b, uint32(next+i))
			from := endpoint(next + i)
			out[i].OOB = (&ipv4.ControlMessage{Src: from[:]}).Marshal()
		}
		for done := 0; done < n; {
			w, err := p.WriteBatch(out[done:n], 0)
			if err != nil {
				return 0, fmt.Errorf("warm-up: %w", err)
			}
			done += w
		}
		got, err := collect(p, in, uint32(next), n, s)
		if err != nil {
			return 0, err
		}
		lost += uint64(n - got)
		next += n
	}
	return lost, nil
}

// warmRequest is what the endpoint asks. It is non-confirmable: nobody here would acknowledge a separate response.
func (s *settings) warmRequest(client int) []byte {
	if !s.observe {
		non := *s
		non.con = false
		return non.request(0)
	}
	b := packet.AppendHeader(nil, packet.NON, packet.GET, 0, make([]byte, packet.TokenLen))
	return packet.AppendOption(packet.AppendOption(b, 0, packet.Observe, nil), packet.Observe, packet.ProxyURI, []byte(s.target(client)))
}

func endpoint(i int) [4]byte { return [4]byte{127, 2 + byte(i>>16), byte(i >> 8), byte(i)} }

// collect reads until the n Tokens from first have been answered, with notifications if that was wanted, or the
// time is up.
func collect(p *ipv4.PacketConn, in []ipv4.Message, first uint32, n int, s *settings) (got int, err error) {
	if err := p.SetReadDeadline(time.Now().Add(s.timeout)); err != nil {
		return 0, err
	}
	answered := make([]bool, n)
	for got < n {
		k, err := p.ReadBatch(in, 0)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return got, nil
		}
		if err != nil {
			return got, fmt.Errorf("warm-up: %w", err)
		}
		for _, m := range in[:k] {
			h, ok := packet.Parse(m.Buffers[0][:m.N])
			if !ok || h.Code == packet.Empty || len(h.Token) != packet.TokenLen ||
				s.observe && packet.FirstOption(m.Buffers[0][:m.N]) != packet.Observe {
				continue
			}
			if i := binary.BigEndian.Uint32(h.Token) - first; i < uint32(n) && !answered[i] {
				answered[i] = true
				got++
			}
		}
	}
	return got, nil
}
