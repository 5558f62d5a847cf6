package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/ipv4"

	"coapproxy/test/bench/internal/packet"
)

const (
	batchSize  = 64
	tick       = time.Millisecond // resolution of the times at which members answer
	payloadLen = 16               // time stamp (8 bytes), member (4), zero (4)
)

// members is the simulated group: one socket that hears for all and answers for each.
type members struct {
	clock  func() time.Duration
	conn   *net.UDPConn
	packet *ipv4.PacketConn
	spread int      // in ticks
	source [][]byte // control message that sets a member's address
	ids    []uint16 // last Message ID of a member

	mu     sync.Mutex
	at     int64      // the next tick to be sent
	behind int64      // the most ticks by which one was sent late
	ring   [][]answer // answers due at a tick, by its number modulo the length
}

// An answer is a response that a member has yet to send.
type answer struct {
	to     *inquiry
	member int32
}

// An inquiry is a group request that was heard.
type inquiry struct {
	from  net.Addr
	token []byte
}

func listen(s *settings, clock func() time.Duration) (*members, error) {
	ifi, err := net.InterfaceByName(s.ifname)
	if err != nil {
		return nil, err
	}
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{Port: int(s.group.Port())})
	if err != nil {
		return nil, err
	}
	p := ipv4.NewPacketConn(conn)
	for _, err := range []error{
		conn.SetReadBuffer(4 << 20), conn.SetWriteBuffer(4 << 20),
		p.JoinGroup(ifi, net.UDPAddrFromAddrPort(s.group)),
	} {
		if err != nil {
			conn.Close()
			return nil, err
		}
	}
	spread := int(s.spread / tick)
	m := &members{
		clock: clock, conn: conn, packet: p, spread: spread,
		source: make([][]byte, s.members), ids: make([]uint16, s.members), ring: make([][]answer, spread+2),
	}
	for i := range m.source {
		n := i + 1
		m.source[i] = (&ipv4.ControlMessage{Src: net.IPv4(127, 1, byte(n>>8), byte(n))}).Marshal()
		m.ids[i] = uint16(rand.Uint32())
	}
	return m, nil
}

// lag is how late the members were at worst.
func (m *members) lag() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Duration(m.behind) * tick
}

func (m *members) close() { _ = m.conn.Close() }

// receive hears requests until ctx ends.
func (m *members) receive(ctx context.Context) error {
	in := make([]ipv4.Message, batchSize)
	for i := range in {
		in[i].Buffers = [][]byte{make([]byte, 2048)}
	}
	for {
		n, err := m.packet.ReadBatch(in, 0)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("members: %w", err)
		}
		for i := range in[:n] {
			h, ok := packet.Parse(in[i].Buffers[0][:in[i].N])
			if ok && packet.IsRequest(h.Code) {
				m.schedule(&inquiry{from: in[i].Addr, token: slices.Clone(h.Token)})
			}
		}
	}
}

// schedule gives every member a time for its answer.
func (m *members) schedule(q *inquiry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.source {
		due := (m.at + int64(rand.IntN(m.spread+1))) % int64(len(m.ring))
		m.ring[due] = append(m.ring[due], answer{to: q, member: int32(i)})
	}
}

// send sends the answers that are due, tick by tick, until ctx ends.
func (m *members) send(ctx context.Context) error {
	out := make([]ipv4.Message, batchSize)
	for i := range out {
		out[i].Buffers = [][]byte{make([]byte, 0, 64)}
	}
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	var due []answer
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		now := int64(m.clock() / tick)
		due = m.take(due[:0], now)
		for some := range slices.Chunk(due, batchSize) {
			if err := m.write(out, some); err != nil && ctx.Err() == nil {
				return fmt.Errorf("members: %w", err)
			}
		}
	}
}

// take moves what is due up to and including tick now into due.
func (m *members) take(due []answer, now int64) []answer {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.behind = max(m.behind, now-m.at)
	for ; m.at <= now; m.at++ {
		slot := &m.ring[m.at%int64(len(m.ring))]
		due = append(due, *slot...)
		clear(*slot)
		*slot = (*slot)[:0]
	}
	return due
}

func (m *members) write(out []ipv4.Message, some []answer) error {
	for i, a := range some {
		m.ids[a.member]++
		b := packet.AppendHeader(out[i].Buffers[0][:0], packet.NON, packet.Content, m.ids[a.member], a.to.token)
		b = packet.AppendOption(b, 0, packet.MaxAge, nil)
		b = append(b, 0xff)
		b = binary.BigEndian.AppendUint64(b, uint64(m.clock()))
		b = binary.BigEndian.AppendUint32(b, uint32(a.member))
		b = append(b, 0, 0, 0, 0)
		out[i].Buffers[0], out[i].OOB, out[i].Addr = b, m.source[a.member], a.to.from
	}
	for done := 0; done < len(some); {
		n, err := m.packet.WriteBatch(out[done:len(some)], 0)
		if err != nil {
			return err
		}
		done += n
	}
	return nil
}
