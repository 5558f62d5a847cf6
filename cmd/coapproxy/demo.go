package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"

	"coapproxy/config"
	"coapproxy/demo"
	"coapproxy/service"
)

// demoSettings are the flags of the subcommand demo.
type demoSettings struct {
	devices     int
	leisure     time.Duration
	seed        uint64
	listen      netip.AddrPort
	listenAsked bool // --listen was given: no other port will do
	http        netip.AddrPort
	httpAsked   bool // as listenAsked
	verbose     bool
	program     string // as it was started, for the commands to try
}

// runDemo is the subcommand demo.
func runDemo(ctx context.Context, io stdio, args []string) int {
	flags := newFlags(io, "demo", "[flags]", "Runs a proxy and simulated devices, members of a multicast group on this host's loopback interface, and\n"+
		"asks the whole group once. Then it goes on until SIGINT or SIGTERM, for requests of your own. Needs no\n"+
		"privileges and no other set-up; takes other ports where 5683 is in use.")
	s := demoSettings{program: os.Args[0]}
	flags.IntVar(&s.devices, "devices", demo.DefaultDevices, fmt.Sprintf("simulate `N` devices, 1 to %d", demo.MaxDevices))
	timeVar(flags, &s.leisure, "leisure", demo.DefaultLeisure, "the `TIME` over which the devices spread their answers, up to "+demo.MaxLeisure.String())
	flags.Uint64Var(&s.seed, "seed", 0, "same readings and same delays with the same `NUMBER`; 0: others each time")
	listen := flags.String("listen", "", "have the proxy listen on `ADDRESS:PORT` (default 127.0.0.1:5683, or another port)")
	http := flags.String("http", "", "have it take HTTP requests on `ADDRESS:PORT` (default 127.0.0.1:8080, or another port)")
	flags.BoolVar(&s.verbose, "verbose", false, "show the proxy's log, every exchange in it")
	printConfig := flags.Bool("print-config", false, "print the proxy's configuration and do nothing else")
	if code, done := parse(flags, args, 0, 0); done {
		return code
	}
	if err := s.check(*listen, *http); err != nil {
		fmt.Fprintln(io.err, "coapproxy demo:", err)
		return exitUsage
	}
	if s.seed == 0 {
		s.seed = rand.Uint64() //nolint:gosec // readings of simulated devices
	}
	var err error
	if *printConfig {
		err = printDemoConfig(io, s)
	} else {
		err = runDemonstration(ctx, io, s)
	}
	if err != nil {
		fmt.Fprintln(io.err, "coapproxy demo:", err)
		return exitFailed
	}
	return exitOK
}

// check completes the settings and finds what is wrong with them.
func (s *demoSettings) check(listen, http string) error {
	s.listen = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), demo.DefaultGroup().Port())
	if listen != "" {
		var err error
		if s.listen, err = netip.ParseAddrPort(strings.TrimPrefix(listen, "coap://")); err != nil || s.listen.Addr().IsMulticast() {
			return fmt.Errorf("--listen %q: write e.g. 127.0.0.1:5683", listen)
		}
		s.listenAsked = true
	}
	s.http = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), demoHTTPPort)
	if http != "" {
		var err error
		if s.http, err = netip.ParseAddrPort(strings.TrimPrefix(http, "http://")); err != nil || s.http.Addr().IsMulticast() {
			return fmt.Errorf("--http %q: write e.g. 127.0.0.1:8080", http)
		}
		s.httpAsked = true
	}
	switch {
	case s.devices < 1 || s.devices > demo.MaxDevices:
		return fmt.Errorf("--devices %d: not 1 to %d", s.devices, demo.MaxDevices)
	case s.leisure < 0 || s.leisure > demo.MaxLeisure:
		return fmt.Errorf("--leisure %v: not 0 to %v", s.leisure, demo.MaxLeisure)
	}
	return nil
}

// demoHTTPPort is where the demo takes HTTP requests, if it can.
const demoHTTPPort = 8080

// config returns the proxy's configuration, as text and read.
func (s *demoSettings) config(listen, http, group netip.AddrPort) ([]byte, *config.Config, error) {
	level := config.LogWarn
	if s.verbose {
		level = config.LogDebug
	}
	text, err := demo.Proxy{Listen: listen, HTTP: http, Group: group, Leisure: s.leisure, LogLevel: string(level)}.Config()
	if err != nil {
		return nil, nil, err
	}
	c, err := config.Parse("configuration", text)
	return text, c, err
}

func printDemoConfig(io stdio, s demoSettings) error {
	text, _, err := s.config(s.listen, s.http, demo.DefaultGroup())
	if err == nil {
		_, err = io.out.Write(text)
	}
	return err
}

// runDemonstration shows everything until ctx ends.
func runDemonstration(ctx context.Context, io stdio, s demoSettings) error {
	wanted := demo.DefaultGroup()
	if s.listen.Addr().IsUnspecified() && s.listen.Port() == wanted.Port() {
		wanted = netip.AddrPortFrom(wanted.Addr(), 0) // leave the port to the proxy
	}
	_, c, err := s.config(s.listen, s.http, wanted)
	if err != nil {
		return err
	}
	log := service.NewLog(c.Log, io.err)
	defer func() { _ = log.Sync() }()

	living, kill := context.WithCancel(context.WithoutCancel(ctx)) // the devices outlive the proxy
	devices, err := demo.Start(living, demo.Options{Devices: s.devices, Group: wanted, Leisure: s.leisure, Seed: s.seed, Log: log.Named("device")})
	if err != nil {
		kill()
		return err
	}
	defer func() { kill(); devices.Wait() }()

	p, err := s.startProxy(ctx, devices.Addr(), log)
	if err != nil {
		return err
	}
	defer func() { p.Stop(log) }()

	listeners := p.Addrs()
	show := demonstration{out: io.out, program: s.program, devices: devices.Devices(), group: devices.Addr(),
		proxy: reachable(listeners[0]), http: reachable(listeners[1]), httpWanted: s.http.Port(), timeout: max(shortest, wholeSeconds(s.leisure)+1)}
	show.introduce()
	switch server, err := show.ask(ctx, log.Named("client")); {
	case ctx.Err() != nil:
		return nil
	case err != nil:
		return err
	default:
		show.suggest(server)
	}
	<-ctx.Done()
	return nil
}

// shortest is the least Multicast-Timeout of the first request, in seconds.
const shortest = 2

func wholeSeconds(d time.Duration) uint32 { return uint32((d + time.Second - 1) / time.Second) }

// startProxy starts the proxy on the port wanted, or, if that is taken and
// nobody insists on it, on any other.
func (s *demoSettings) startProxy(ctx context.Context, group netip.AddrPort, log *zap.Logger) (*service.Proxy, error) {
	listen := s.listen
	if !s.listenAsked && isTaken(listen) {
		listen = netip.AddrPortFrom(listen.Addr(), 0)
	}
	http := s.http
	if !s.httpAsked && isTakenTCP(http) {
		http = netip.AddrPortFrom(http.Addr(), 0)
	}
	p, err := s.startProxyOn(ctx, listen, http, group, log)
	if !errors.Is(err, syscall.EADDRINUSE) || s.listenAsked && s.httpAsked {
		return p, err
	}
	// Somebody was faster, at one of them.
	if !s.listenAsked {
		listen = netip.AddrPortFrom(listen.Addr(), 0)
	}
	if !s.httpAsked {
		http = netip.AddrPortFrom(http.Addr(), 0)
	}
	return s.startProxyOn(ctx, listen, http, group, log)
}

func (s *demoSettings) startProxyOn(ctx context.Context, listen, http, group netip.AddrPort, log *zap.Logger) (*service.Proxy, error) {
	_, c, err := s.config(listen, http, group)
	if err != nil {
		return nil, err
	}
	c.Control.Socket, c.Metrics.Listen = config.ControlOff, config.MetricsOff // those belong to a proxy that serves
	return service.Start(ctx, c, log)
}

// isTaken reports whether somebody else listens on the address.
func isTaken(addr netip.AddrPort) bool {
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
	if err == nil {
		_ = conn.Close()
	}
	return errors.Is(err, syscall.EADDRINUSE)
}

func isTakenTCP(addr netip.AddrPort) bool {
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr))
	if err == nil {
		_ = l.Close()
	}
	return errors.Is(err, syscall.EADDRINUSE)
}

// reachable is an address under which a listener of this host is reached.
func reachable(listener netip.AddrPort) netip.AddrPort {
	switch {
	case !listener.Addr().IsUnspecified():
		return listener
	case listener.Addr().Is4():
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), listener.Port())
	default:
		return netip.AddrPortFrom(netip.IPv6Loopback(), listener.Port())
	}
}
