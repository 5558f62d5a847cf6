// Command groupnullrelay is the physical limit of a group relay in Go on a given machine: it multicasts each
// request out of one interface and forwards each response datagram to the client that asked, with Token and
// Message ID swapped from a fixed table and nothing added. One socket, one goroutine.
package main

import (
	"flag"
	"log"
	"net"
	"net/netip"

	"golang.org/x/net/ipv4"
)

// An entry is what must be known of a request to bring its responses home. A is the kind of address that the
// calls in use want: netip.AddrPort or net.Addr.
type entry[A any] struct {
	from  A
	token [8]byte
	used  bool
}

type relay[A any] struct {
	group   A
	table   [65536]entry[A]
	next    uint16 // the last index used: first two bytes of the Token, and Message ID, towards the group
	replyID uint16 // the last Message ID used towards clients
}

func main() {
	listen := flag.String("l", "127.0.0.1:5690", "listen on this `address`")
	group := flag.String("group", "224.0.1.187:5683", "multicast requests to this `address`")
	ifname := flag.String("i", "lo", "out of this `interface`")
	batch := flag.Int("batch", 0, "datagrams per read and write; 0: one by one, with the plain calls")
	flag.Parse()

	addr, err := net.ResolveUDPAddr("udp4", *listen)
	if err != nil {
		log.Fatal(err)
	}
	gaddr, err := net.ResolveUDPAddr("udp4", *group)
	if err != nil {
		log.Fatal(err)
	}
	ifi, err := net.InterfaceByName(*ifname)
	if err != nil {
		log.Fatal(err)
	}
	conn, err := net.ListenUDP("udp4", addr)
	if err != nil {
		log.Fatal(err)
	}
	p := ipv4.NewPacketConn(conn)
	for _, err := range []error{conn.SetReadBuffer(4 << 20), conn.SetWriteBuffer(4 << 20), p.SetMulticastInterface(ifi)} {
		if err != nil {
			log.Fatal(err)
		}
	}
	if *batch > 0 {
		err = serveBatch(p, &relay[net.Addr]{group: gaddr}, *batch)
	} else {
		err = serve(conn, &relay[netip.AddrPort]{group: gaddr.AddrPort()})
	}
	log.Fatal(err)
}

// swap patches a message that came from a peer and says where it goes; ok is false when it goes nowhere.
func (r *relay[A]) swap(b []byte, from A) (to A, ok bool) {
	if len(b) < 4 {
		return to, false
	}
	tkl := int(b[0] & 15)
	if len(b) < 4+tkl || tkl < 2 || tkl > 8 {
		return to, false
	}
	if b[1]>>5 != 0 { // a response
		e := &r.table[uint16(b[4])<<8|uint16(b[5])]
		r.replyID++
		b[2], b[3] = byte(r.replyID>>8), byte(r.replyID)
		copy(b[4:4+tkl], e.token[:])
		return e.from, e.used
	}
	r.next++
	e := &r.table[r.next]
	e.from, e.used = from, true
	copy(e.token[:], b[4:4+tkl])
	b[2], b[3], b[4], b[5] = byte(r.next>>8), byte(r.next), byte(r.next>>8), byte(r.next)
	return r.group, true
}

func serve(conn *net.UDPConn, r *relay[netip.AddrPort]) error {
	buf := make([]byte, 2048)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return err
		}
		if to, ok := r.swap(buf[:n], from); ok {
			_, _ = conn.WriteToUDPAddrPort(buf[:n], to) // a client that is gone gets nothing
		}
	}
}

func serveBatch(p *ipv4.PacketConn, r *relay[net.Addr], size int) error {
	in, out := make([]ipv4.Message, size), make([]ipv4.Message, size)
	for i := range in {
		in[i].Buffers = [][]byte{make([]byte, 2048)}
		out[i].Buffers = [][]byte{nil}
	}
	for {
		n, err := p.ReadBatch(in, 0)
		if err != nil {
			return err
		}
		k := 0
		for i := range in[:n] {
			b := in[i].Buffers[0][:in[i].N]
			if to, ok := r.swap(b, in[i].Addr); ok {
				out[k].Buffers[0], out[k].Addr = b, to
				k++
			}
		}
		for done := 0; done < k; {
			w, err := p.WriteBatch(out[done:k], 0)
			if err != nil {
				w = 1 // that client is gone; go on with the next
			}
			done += w
		}
	}
}
