// Command nullrelay is the physical limit of a UDP relay in Go on a given machine: it swaps Token and Message ID
// between a listening port and an origin, from a fixed table, and does nothing else. One socket, one goroutine.
package main

import (
	"flag"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/ipv4"
)

type ent struct {
	from netip.AddrPort
	ua   *net.UDPAddr
	tok  [8]byte
	mid  [2]byte
}

var tab [65536]ent

func main() {
	l := flag.String("l", "127.0.0.1:5690", "listen")
	o := flag.String("o", "127.0.0.1:5700", "origin")
	batch := flag.Int("batch", 0, "use ipv4 ReadBatch/WriteBatch of this size")
	life := flag.Duration("life", time.Hour, "exit after")
	flag.Parse()
	time.AfterFunc(*life, func() { os.Exit(0) })
	la, _ := net.ResolveUDPAddr("udp4", *l)
	c, err := net.ListenUDP("udp4", la)
	if err != nil {
		panic(err)
	}
	_ = c.SetReadBuffer(4 << 20)
	_ = c.SetWriteBuffer(4 << 20)
	oa := netip.MustParseAddrPort(*o)
	if *batch > 0 {
		runBatch(c, oa, *batch)
		return
	}
	buf := make([]byte, 2048)
	var ctr uint16
	for {
		n, a, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		if n < 4 {
			continue
		}
		tkl := int(buf[0] & 15)
		if n < 4+tkl || tkl < 2 {
			continue
		}
		if a == oa {
			e := &tab[uint16(buf[4])<<8|uint16(buf[5])]
			if buf[0]>>4&3 == 2 {
				buf[2], buf[3] = e.mid[0], e.mid[1]
			}
			copy(buf[4:4+tkl], e.tok[:])
			_, _ = c.WriteToUDPAddrPort(buf[:n], e.from)
			continue
		}
		ctr++
		e := &tab[ctr]
		e.from = a
		e.mid = [2]byte{buf[2], buf[3]}
		copy(e.tok[:], buf[4:4+tkl])
		buf[2], buf[3], buf[4], buf[5] = byte(ctr>>8), byte(ctr), byte(ctr>>8), byte(ctr)
		_, _ = c.WriteToUDPAddrPort(buf[:n], oa)
	}
}

func runBatch(c *net.UDPConn, oap netip.AddrPort, bs int) {
	p := ipv4.NewPacketConn(c)
	oa := net.UDPAddrFromAddrPort(oap)
	in := make([]ipv4.Message, bs)
	out := make([]ipv4.Message, bs)
	for i := range in {
		in[i].Buffers = [][]byte{make([]byte, 2048)}
		out[i].Buffers = [][]byte{nil}
	}
	var ctr uint16
	for {
		n, err := p.ReadBatch(in, 0)
		if err != nil {
			return
		}
		k := 0
		for i := 0; i < n; i++ {
			m := &in[i]
			buf := m.Buffers[0][:m.N]
			if len(buf) < 4 {
				continue
			}
			tkl := int(buf[0] & 15)
			if len(buf) < 4+tkl || tkl < 2 {
				continue
			}
			a := m.Addr.(*net.UDPAddr)
			if a.Port == oa.Port && a.IP.Equal(oa.IP) {
				e := &tab[uint16(buf[4])<<8|uint16(buf[5])]
				if buf[0]>>4&3 == 2 {
					buf[2], buf[3] = e.mid[0], e.mid[1]
				}
				copy(buf[4:4+tkl], e.tok[:])
				out[k].Addr = e.ua
			} else {
				ctr++
				e := &tab[ctr]
				e.ua = a
				e.mid = [2]byte{buf[2], buf[3]}
				copy(e.tok[:], buf[4:4+tkl])
				buf[2], buf[3], buf[4], buf[5] = byte(ctr>>8), byte(ctr), byte(ctr>>8), byte(ctr)
				out[k].Addr = oa
			}
			out[k].Buffers[0] = buf
			k++
		}
		for off := 0; off < k; {
			w, err := p.WriteBatch(out[off:k], 0)
			if err != nil {
				off++
				continue
			}
			off += w
		}
	}
}
