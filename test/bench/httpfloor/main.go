// Command httpfloor is the least that an HTTP server in front of a CoAP server has to do: a handler of net/http
// that sends one datagram, waits for one, and writes its payload. It keeps to no rule of HTTP or CoAP beyond
// that, and shows what is possible with Go's HTTP server.
package main

import (
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"coapproxy/test/bench/internal/packet"
)

func main() {
	var listen, origin netip.AddrPort
	flag.TextVar(&listen, "l", netip.MustParseAddrPort("127.0.0.1:8080"), "listen on this `address`")
	flag.TextVar(&origin, "o", netip.MustParseAddrPort("127.0.0.1:5700"), "ask the CoAP server at this `address`")
	flag.Parse()
	log.Fatal(http.ListenAndServe(listen.String(), newFloor(origin)))
}

// floor asks one CoAP server. Every request under way has a socket of its own.
type floor struct {
	origin netip.AddrPort
	free   chan *net.UDPConn
	token  atomic.Uint32
}

// payloadLen is the length of what the origin of the benchmark answers.
const payloadLen = 16

// maxFree bounds the sockets that are kept.
const maxFree = 1024

func newFloor(origin netip.AddrPort) *floor {
	return &floor{origin: origin, free: make(chan *net.UDPConn, maxFree)}
}

// ServeHTTP implements http.Handler for /hc/coap://ORIGIN/PATH.
func (f *floor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, path, ok := strings.Cut(strings.TrimPrefix(r.RequestURI, "/hc/coap://"), "/")
	if !ok {
		http.Error(w, "no target", http.StatusBadRequest)
		return
	}
	payload, err := f.ask(path)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	_, _ = w.Write(payload)
}

func (f *floor) ask(path string) ([]byte, error) {
	var conn *net.UDPConn
	select {
	case conn = <-f.free:
	default:
		var err error
		if conn, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(f.origin)); err != nil {
			return nil, err
		}
	}
	token := f.token.Add(1)
	b := packet.AppendHeader(make([]byte, 0, 256), packet.NON, packet.GET, uint16(token), make([]byte, packet.TokenLen))
	packet.SetToken(b, token)
	previous := 0
	for segment := range strings.SplitSeq(path, "/") {
		b = packet.AppendOption(b, previous, packet.URIPath, []byte(segment))
		previous = packet.URIPath
	}
	payload, err := exchange(conn, b, token)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	select {
	case f.free <- conn:
	default:
		_ = conn.Close()
	}
	return payload, nil
}

func exchange(conn *net.UDPConn, request []byte, token uint32) ([]byte, error) {
	if _, err := conn.Write(request); err != nil {
		return nil, err
	}
	if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		return nil, err
	}
	in := make([]byte, 2048)
	for {
		n, err := conn.Read(in)
		if err != nil {
			return nil, err
		}
		h, ok := packet.Parse(in[:n])
		if got, _ := packet.Token(h); !ok || got != token {
			continue
		}
		if h.Code != packet.Content || n < payloadLen {
			return nil, fmt.Errorf("code %d, %d bytes", h.Code, n)
		}
		return in[n-payloadLen : n], nil
	}
}
