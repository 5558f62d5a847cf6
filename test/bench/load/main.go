// Command load sends CoAP GET requests in a closed loop from a number of clients, through a proxy or straight
// to an origin, and prints what came of it as JSON (measure.Load). It shares the machine with what it measures,
// so it costs little: messages are patched templates, and one thread serves all sockets.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"log"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"coapproxy/test/bench/internal/packet"
)

// maxWindow is set by the Token, which has one byte for the place in the window.
const maxWindow = 256

type settings struct {
	to       netip.AddrPort // where the datagrams go
	uri      string         // target; {client} becomes the client's number
	direct   bool           // send Uri-Path, not Proxy-Uri
	con      bool
	clients  int // each with a socket of its own
	window   int // requests of one client under way at a time
	duration time.Duration
	timeout  time.Duration // a request without a response for so long is lost
	once     bool          // fill every window once, all at the same time, and end
	warm     int           // endpoints that ask once before the clock starts
	observe  bool          // what they ask for is to observe
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("load: ")
	var s settings
	flag.TextVar(&s.to, "to", netip.AddrPort{}, "send to this IPv4 `address:port`")
	flag.StringVar(&s.uri, "uri", "coap://127.0.0.1:5700/x/{client}", "ask for this URI; {client} is replaced by the client's number")
	flag.BoolVar(&s.direct, "direct", false, "the address is the origin, not a proxy: send Uri-Path instead of Proxy-Uri")
	flag.BoolVar(&s.con, "con", false, "confirmable requests")
	flag.IntVar(&s.clients, "clients", 32, "clients, each with its own socket")
	flag.IntVar(&s.window, "window", 1, "requests under way per client")
	flag.DurationVar(&s.duration, "duration", 3*time.Second, "how long")
	flag.DurationVar(&s.timeout, "timeout", time.Second, "give a request up after this time")
	flag.BoolVar(&s.once, "once", false, "a burst: every client fills its window once")
	flag.IntVar(&s.warm, "warm", 0, "first let this many other client endpoints ask once")
	flag.BoolVar(&s.observe, "observe", false, "the other endpoints of -warm register to observe, each what {client} in the URI makes of its number")
	flag.Parse()
	if err := s.check(); err != nil {
		log.Print(err)
		flag.Usage()
		os.Exit(2)
	}

	var warmLost uint64
	if s.warm > 0 {
		var err error
		if warmLost, err = warmUp(&s); err != nil {
			log.Fatal(err)
		}
	}
	result, err := run(&s)
	if err != nil {
		log.Fatal(err)
	}
	result.WarmLost = warmLost
	if err := json.NewEncoder(os.Stdout).Encode(result); err != nil {
		log.Fatal(err)
	}
}

func (s *settings) check() error {
	switch {
	case !s.to.Addr().Is4():
		return errors.New("-to wants an IPv4 address and a port")
	case s.clients < 1:
		return errors.New("-clients must be at least 1")
	case s.window < 1 || s.window > maxWindow:
		return errors.New("-window must be 1 to 256")
	case s.warm < 0 || s.warm > maxWarm:
		return errors.New("-warm must be 0 to 1000000")
	case len(s.uri) > 250:
		return errors.New("-uri is too long")
	}
	_, err := url.Parse(s.target(0))
	return err
}

func (s *settings) target(client int) string {
	return strings.ReplaceAll(s.uri, "{client}", strconv.Itoa(client))
}

// request is the template of a client's requests, with a Token of packet.TokenLen.
func (s *settings) request(client int) []byte {
	typ := byte(packet.NON)
	if s.con {
		typ = packet.CON
	}
	b := packet.AppendHeader(nil, typ, packet.GET, 0, make([]byte, packet.TokenLen))
	target := s.target(client)
	if !s.direct {
		return packet.AppendOption(b, 0, packet.ProxyURI, []byte(target))
	}
	u, err := url.Parse(target)
	if err != nil {
		return b // check has refused it
	}
	prev := 0
	for segment := range strings.SplitSeq(strings.TrimPrefix(u.Path, "/"), "/") {
		b = packet.AppendOption(b, prev, packet.URIPath, []byte(segment))
		prev = packet.URIPath
	}
	return b
}
