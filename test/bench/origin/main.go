// Command origin is a CoAP server that answers every request at once with 2.05 and 16 bytes, as fast as one
// goroutine can: a non-confirmable request with a non-confirmable response, a confirmable one in its
// acknowledgement. A registration to observe gets a notification, and no second one. A request whose message ends in "stats", such as GET /stats, is answered with the number
// of other requests so far and not counted.
package main

import (
	"encoding/binary"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"

	"golang.org/x/net/ipv4"

	"coapproxy/test/bench/internal/packet"
)

func main() {
	listen := flag.String("l", "127.0.0.1:5700", "listen on this `address`")
	batch := flag.Int("batch", 64, "datagrams per read and write")
	maxAge := flag.Uint("max-age", 0, "Max-Age of the responses in `seconds`, up to 255; 0 keeps them out of caches")
	flag.Parse()
	if *batch < 1 || *maxAge > 255 {
		flag.Usage()
		os.Exit(2)
	}

	addr, err := net.ResolveUDPAddr("udp4", *listen)
	if err != nil {
		log.Fatal(err)
	}
	conn, err := net.ListenUDP("udp4", addr)
	if err != nil {
		log.Fatal(err)
	}
	for _, set := range []func(int) error{conn.SetReadBuffer, conn.SetWriteBuffer} {
		if err := set(4 << 20); err != nil {
			log.Fatal(err)
		}
	}

	o := newOrigin(byte(*maxAge))
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-stop
		fmt.Println("requests:", o.requests.Load())
		os.Exit(0)
	}()
	log.Fatal(o.serve(ipv4.NewPacketConn(conn), *batch))
}

// An origin makes responses.
type origin struct {
	tail     []byte // options and payload of every response
	notice   []byte // the same of a notification
	id       uint16 // the last Message ID used
	requests atomic.Uint64
}

func newOrigin(maxAge byte) *origin {
	value := []byte{maxAge}
	if maxAge == 0 {
		value = nil
	}
	const payload = "\xff0123456789abcdef"
	tail := packet.AppendOption(nil, 0, packet.MaxAge, value)
	notice := packet.AppendOption(packet.AppendOption(nil, 0, packet.Observe, []byte{1}), packet.Observe, packet.MaxAge, value)
	return &origin{tail: append(tail, payload...), notice: append(notice, payload...)}
}

// serve answers requests until reading fails.
func (o *origin) serve(conn *ipv4.PacketConn, batch int) error {
	in, out := make([]ipv4.Message, batch), make([]ipv4.Message, batch)
	for i := range in {
		in[i].Buffers = [][]byte{make([]byte, 2048)}
		out[i].Buffers = [][]byte{make([]byte, 0, 128)}
	}
	for {
		n, err := conn.ReadBatch(in, 0)
		if err != nil {
			return err
		}
		k := 0
		for _, m := range in[:n] {
			b := o.answer(out[k].Buffers[0][:0], m.Buffers[0][:m.N])
			if len(b) == 0 {
				continue
			}
			out[k].Buffers[0], out[k].Addr = b, m.Addr
			k++
		}
		for done := 0; done < k; {
			w, err := conn.WriteBatch(out[done:k], 0)
			if err != nil {
				w = 1 // that peer is gone; go on with the next
			}
			done += w
		}
	}
}

// answer appends the answer to a message, nothing when it gets none.
func (o *origin) answer(b, message []byte) []byte {
	h, ok := packet.Parse(message)
	switch {
	case !ok || h.Type == packet.ACK || h.Type == packet.RST:
		return b
	case !packet.IsRequest(h.Code):
		if h.Type == packet.CON {
			return packet.AppendHeader(b, packet.RST, packet.Empty, h.ID, nil)
		}
		return b
	case h.Type == packet.CON:
		b = packet.AppendHeader(b, packet.ACK, packet.Content, h.ID, h.Token)
	default:
		o.id++
		b = packet.AppendHeader(b, packet.NON, packet.Content, o.id, h.Token)
	}
	if isStats(message) {
		b = packet.AppendOption(b, 0, packet.MaxAge, nil)
		return strconv.AppendUint(append(b, 0xff), o.requests.Load(), 10)
	}
	o.requests.Add(1)
	if packet.FirstOption(message) == packet.Observe { // nobody here ends an observation
		return append(b, o.notice...)
	}
	return append(b, o.tail...)
}

// isStats compares the last five bytes with "stats".
func isStats(m []byte) bool {
	return len(m) > 9 && m[len(m)-1] == 's' && binary.BigEndian.Uint32(m[len(m)-5:]) == 's'<<24|'t'<<16|'a'<<8|'t'
}
