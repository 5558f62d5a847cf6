// Command group is a CoAP group of simulated members on loopback multicast and, in the same process, the
// clients that ask it through a proxy. Every member answers from an address of its own and the group's port,
// after a random time. It prints as JSON (measure.Group) how many responses came and how long the way from a
// member to a client took, which one clock can tell.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"log"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"coapproxy/test/bench/internal/measure"
)

const maxMembers = 10_000

type settings struct {
	to       netip.AddrPort // the proxy
	group    netip.AddrPort
	ifname   string
	members  int
	spread   time.Duration // members answer at a random time within it
	clients  int           // each with a socket of its own
	window   int           // group requests of one client under way at a time
	timeout  int           // Multicast-Timeout in seconds
	duration time.Duration // no new request is sent after it
	http     bool          // the clients speak HTTP/1.1, and get batches
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("group: ")
	var s settings
	flag.TextVar(&s.to, "to", netip.AddrPort{}, "the proxy's IPv4 `address:port`")
	flag.TextVar(&s.group, "group", netip.MustParseAddrPort("224.0.1.187:5683"), "the group's IPv4 `address:port`")
	flag.StringVar(&s.ifname, "i", "lo", "members listen on this `interface`")
	flag.IntVar(&s.members, "members", 100, "members of the group")
	flag.DurationVar(&s.spread, "spread", time.Second, "members answer at a random time within this")
	flag.IntVar(&s.clients, "clients", 20, "clients, each with its own socket")
	flag.IntVar(&s.window, "window", 1, "group requests under way per client")
	flag.IntVar(&s.timeout, "timeout", 2, "Multicast-Timeout in `seconds`")
	flag.DurationVar(&s.duration, "duration", 3*time.Second, "send requests for this time, then wait for the last responses")
	flag.BoolVar(&s.http, "http", false, "the clients speak HTTP/1.1, each with one request under way, and get batches")
	flag.Parse()
	if err := s.check(); err != nil {
		log.Print(err)
		flag.Usage()
		os.Exit(2)
	}
	result, err := run(&s)
	if err != nil {
		log.Fatal(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(result); err != nil {
		log.Fatal(err)
	}
}

func (s *settings) check() error {
	switch {
	case !s.to.Addr().Is4():
		return errors.New("-to wants an IPv4 address and a port")
	case !s.group.Addr().Is4() || !s.group.Addr().IsMulticast() || s.group.Port() == 0:
		return errors.New("-group wants an IPv4 multicast address and a port")
	case s.members < 1 || s.members > maxMembers:
		return errors.New("-members must be 1 to 10000")
	case s.spread < 0 || s.spread > time.Minute:
		return errors.New("-spread must be 0 to 1m")
	case s.clients < 1 || s.window < 1:
		return errors.New("-clients and -window must be at least 1")
	case s.timeout < 1 || s.timeout > 255:
		return errors.New("-timeout must be 1 to 255")
	}
	return nil
}

// run lets all clients do their work and ends the members then.
func run(s *settings) (measure.Group, error) {
	began := time.Now()
	clock := func() time.Duration { return time.Since(began) }

	m, err := listen(s, clock)
	if err != nil {
		return measure.Group{}, err
	}
	ctx, stop := context.WithCancel(context.Background())
	members, alive := errgroup.WithContext(ctx)
	members.Go(func() error { return m.receive(alive) })
	members.Go(func() error { return m.send(alive) })
	context.AfterFunc(alive, m.close)

	crowd := newCrowd(s, clock)
	clients, asking := errgroup.WithContext(alive) // without members there is nobody to ask
	for i := range s.clients {
		clients.Go(func() error {
			if s.http {
				return crowd.askHTTP(asking, i)
			}
			return crowd.ask(asking, i)
		})
	}
	err = clients.Wait()
	stop()
	err = errors.Join(err, members.Wait())
	result := crowd.result()
	result.Behind = m.lag()
	return result, err
}
