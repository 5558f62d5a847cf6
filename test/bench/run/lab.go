package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"math"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"time"

	"coapproxy/test/bench/internal/measure"
	"coapproxy/test/bench/internal/packet"
)

const (
	libcoapServer = "coap-server-notls"
	// groupFlow is about how many responses per second the group sends, whatever its size.
	groupFlow = 20_000
	// maxUnderWay bounds the group requests under way that small groups need for that.
	maxUnderWay = 1024
	// mostBehind is how late members may answer at worst for a measurement to be worth something.
	mostBehind = 100 * time.Millisecond
	// leastCPU is the least CPU time that the 10 ms ticks of the kernel tell well enough to divide it.
	leastCPU = 50 * time.Millisecond
	// groupTimeout is the Multicast-Timeout in seconds: more than spread.
	groupTimeout = 2
)

// A lab carries out measurements: it starts the programs, lets the load run, and reads what the kernel says of
// the proxy process. Every program it starts has ended when a method returns.
type lab struct {
	dir      string // of the binaries, the configuration and the logs
	binary   string // coapproxy
	duration time.Duration
	clients  int
	private  netip.AddrPort // where coapproxy tells of itself
}

// measure measures one contender in one scenario.
func (l *lab) measure(ctx context.Context, sc *scenario, contender string) (s sample, err error) {
	listen, err := freePort()
	if err != nil {
		return s, err
	}
	if l.private, err = freePort(); err != nil {
		return s, err
	}
	// Where responses come from: the origin, or, in a group scenario, the members, which the load brings along.
	source, err := freePort()
	if err != nil {
		return s, err
	}
	var origin *process
	if sc.members == 0 {
		origin, err = l.start(ctx, "origin", source, filepath.Join(l.dir, "origin"), "-l", source.String(), "-max-age", strconv.Itoa(sc.maxAge))
		if err != nil {
			return s, err
		}
		defer origin.stop()
	} else {
		source = netip.AddrPortFrom(netip.AddrFrom4([4]byte{224, 0, 1, 187}), source.Port())
	}
	if contender == direct {
		s, err = l.ask(ctx, sc, source, source, "-direct")
	} else {
		s, err = l.measureProxy(ctx, sc, contender, listen, source)
	}
	if err != nil || origin == nil {
		return s, err
	}
	s.origin, err = originRequests(source)
	return s, err
}

func (l *lab) measureProxy(ctx context.Context, sc *scenario, contender string, listen, source netip.AddrPort) (s sample, err error) {
	args, err := l.command(sc, contender, listen, source)
	if err != nil {
		return s, err
	}
	proxy, err := l.start(ctx, contender, listen, args...)
	if err != nil {
		return s, err
	}
	defer proxy.stop()
	if sc.observers > 0 {
		return l.register(ctx, sc, proxy, listen, source)
	}
	if sc.warm > 0 {
		var warm measure.Load
		err := l.run(ctx, &warm, "load", "-to", listen.String(), "-uri", "coap://"+source.String()+"/x", "-warm", strconv.Itoa(sc.warm), "-duration", "1ms")
		if err != nil {
			return s, err
		}
		s.lost = warm.WarmLost
	}
	before, err := measure.CPU(proxy.pid())
	if err != nil {
		return s, err
	}
	lost := s.lost
	if sc.members > 0 {
		s, err = l.askGroup(ctx, sc, listen, source)
	} else {
		s, err = l.ask(ctx, sc, listen, source)
	}
	if err != nil {
		return s, err
	}
	s.lost += lost
	after, err := measure.CPU(proxy.pid())
	if err != nil {
		return s, fmt.Errorf("%s did not survive: %w\n%s", contender, err, proxy.output())
	}
	rss, peak, err := measure.RSS(proxy.pid())
	if err != nil {
		return s, err
	}
	s.cpu = math.NaN()
	if s.exchanges > 0 && after-before >= leastCPU {
		s.cpu = (after - before).Seconds() * 1e6 / float64(s.exchanges)
	}
	s.rss, s.peak = float64(rss)/(1<<20), float64(peak)/(1<<20)
	return s, nil
}

// command is the command line of a proxy.
func (l *lab) command(sc *scenario, contender string, listen, source netip.AddrPort) ([]string, error) {
	batch := "0"
	switch contender {
	case httpFloor:
		return []string{filepath.Join(l.dir, "httpfloor"), "-l", listen.String(), "-o", source.String()}, nil
	case libcoap:
		return []string{libcoapServer, "-A", listen.Addr().String(), "-p", strconv.Itoa(int(listen.Port())), "-P", ",px"}, nil
	case subject:
		file := filepath.Join(l.dir, "config.yaml")
		return []string{l.binary, "serve", "--config", file}, writeConfig(file, sc, listen, source, l.private)
	case nullBatched:
		batch = "64"
	}
	if sc.members > 0 {
		return []string{filepath.Join(l.dir, "groupnullrelay"), "-l", listen.String(), "-group", source.String(), "-batch", batch}, nil
	}
	return []string{filepath.Join(l.dir, "nullrelay"), "-l", listen.String(), "-o", source.String(), "-batch", batch}, nil
}

// ask lets the clients of a unicast scenario ask for resources of source at to.
func (l *lab) ask(ctx context.Context, sc *scenario, to, source netip.AddrPort, more ...string) (sample, error) {
	uri := "coap://" + source.String() + "/x"
	if !sc.sameURI {
		uri += "/{client}" // so that no proxy answers two with one request
	}
	args := []string{"-to", to.String(), "-uri", uri, "-duration", l.duration.String(), "-clients", strconv.Itoa(l.clients)}
	var r measure.Load
	program := "load"
	if sc.http {
		program = "httpload"
	}
	if err := l.run(ctx, &r, program, append(append(args, sc.load...), more...)...); err != nil {
		return sample{}, err
	}
	s := sample{
		exchanges: r.Exchanges, rate: float64(r.Exchanges) / r.Elapsed.Seconds(), p50: milliseconds(r.P50), p99: milliseconds(r.P99),
		cpu: math.NaN(), rss: math.NaN(), peak: math.NaN(), lost: r.Losses,
	}
	for _, n := range r.Errors {
		s.errors += n
	}
	return s, nil
}

// askGroup starts the members of a group and lets clients ask them through the proxy at to.
func (l *lab) askGroup(ctx context.Context, sc *scenario, to, group netip.AddrPort) (sample, error) {
	clients, window := sc.crowd, 1
	if clients == 0 {
		clients, window = underWay(sc.members)
	}
	var more []string
	if sc.http { // a batch comes at T', when a client asks again
		clients, window, more = clients*window*groupTimeout, 1, []string{"-http"}
	}
	var r measure.Group
	err := l.run(ctx, &r, "group", append(more, "-to", to.String(), "-group", group.String(), "-members", strconv.Itoa(sc.members),
		"-clients", strconv.Itoa(clients), "-window", strconv.Itoa(window),
		"-spread", spread.String(), "-timeout", strconv.Itoa(groupTimeout), "-duration", l.duration.String())...)
	if err != nil {
		return sample{}, err
	}
	if r.Behind > mostBehind {
		log.Printf("the members were up to %v late: this machine is too busy to measure much now", r.Behind)
	}
	return sample{
		exchanges: r.Responses, rate: float64(r.Responses) / r.Elapsed.Seconds(), p50: milliseconds(r.P50), p99: milliseconds(r.P99),
		lost: r.Lost(), errors: r.Errors, duplicates: r.Duplicates, late: r.Late,
	}, nil
}

// underWay is how many clients with how many requests under way each make a group of so many members send about
// groupFlow responses per second.
func underWay(members int) (clients, window int) {
	n := min(max(int(groupFlow*spread.Seconds())/members, 1), maxUnderWay)
	clients = min(n, 20)
	return clients, n / clients
}

// run runs one of the load programs and decodes what it prints into result.
func (l *lab) run(ctx context.Context, result any, program string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, l.duration+2*time.Minute)
	defer cancel()
	out, err := output(ctx, filepath.Join(l.dir, program), args...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(out, result); err != nil {
		return fmt.Errorf("%s: %w", program, err)
	}
	return nil
}

func milliseconds(d time.Duration) float64 { return d.Seconds() * 1e3 }

// freePort returns an address on which nothing listens, over UDP or TCP.
func freePort() (netip.AddrPort, error) {
	for {
		conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			return netip.AddrPort{}, err
		}
		addr := conn.LocalAddr().(*net.UDPAddr).AddrPort()
		l, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(addr))
		_ = conn.Close()
		if err == nil {
			_ = l.Close()
			return addr, nil
		}
	}
}

// originRequests asks the origin how many requests it has had.
func originRequests(origin netip.AddrPort) (uint64, error) {
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(origin))
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	request := packet.AppendHeader(nil, packet.NON, packet.GET, 1, make([]byte, packet.TokenLen))
	request = packet.AppendOption(request, 0, packet.URIPath, []byte("stats"))
	if _, err := conn.Write(request); err != nil {
		return 0, err
	}
	if err := conn.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return 0, err
	}
	b := make([]byte, 128)
	n, err := conn.Read(b)
	if err != nil {
		return 0, fmt.Errorf("asking the origin for its count: %w", err)
	}
	digits := n
	for digits > 0 && b[digits-1] >= '0' && b[digits-1] <= '9' {
		digits--
	}
	return strconv.ParseUint(string(b[digits:n]), 10, 64)
}
