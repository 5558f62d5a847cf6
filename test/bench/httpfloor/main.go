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
	free   chan *socket
	token  atomic.Uint32
}

// socket is connected to the server, and comes with room for a datagram: a request
// allocates no more than what net/http does for it.
type socket struct {
	*net.UDPConn
	room [2048]byte
}

// payloadLen is the length of what the origin of the benchmark answers.
const payloadLen = 16

// maxFree bounds the sockets that are kept.
const maxFree = 1024

func newFloor(origin netip.AddrPort) *floor {
	return &floor{origin: origin, free: make(chan *socket, maxFree)}
}

// ServeHTTP implements http.Handler for /hc/coap://ORIGIN/PATH.
func (f *floor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, path, ok := strings.Cut(strings.TrimPrefix(r.RequestURI, "/hc/coap://"), "/")
	if !ok {
		http.Error(w, "no target", http.StatusBadRequest)
		return
	}
	s, err := f.take()
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	payload, err := s.ask(path, f.token.Add(1))
	if err != nil {
		_ = s.Close()
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	_, _ = w.Write(payload)
	f.give(s)
}

func (f *floor) take() (*socket, error) {
	select {
	case s := <-f.free:
		return s, nil
	default:
	}
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(f.origin))
	return &socket{UDPConn: conn}, err
}

func (f *floor) give(s *socket) {
	select {
	case f.free <- s:
	default:
		_ = s.Close()
	}
}

// ask returns the payload of the response, which is part of the room.
func (s *socket) ask(path string, token uint32) ([]byte, error) {
	b := packet.AppendHeader(s.room[:0], packet.NON, packet.GET, uint16(token), make([]byte, packet.TokenLen))
	packet.SetToken(b, token)
	previous := 0
	for segment := range strings.SplitSeq(path, "/") {
		b = packet.AppendOption(b, previous, packet.URIPath, []byte(segment))
		previous = packet.URIPath
	}
	if _, err := s.Write(b); err != nil {
		return nil, err
	}
	if err := s.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		return nil, err
	}
	for {
		n, err := s.Read(s.room[:])
		if err != nil {
			return nil, err
		}
		h, ok := packet.Parse(s.room[:n])
		if got, _ := packet.Token(h); !ok || got != token {
			continue
		}
		if h.Code != packet.Content || n < payloadLen {
			return nil, fmt.Errorf("code %d, %d bytes", h.Code, n)
		}
		return s.room[n-payloadLen : n], nil
	}
}
