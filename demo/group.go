package demo

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"

	"coapproxy/endpoint"
	"coapproxy/exchange"
)

// Bounds and defaults of Options.
const (
	MaxDevices     = 250 // 127.0.0.11 to 127.0.1.4
	DefaultDevices = 5
	DefaultLeisure = 300 * time.Millisecond
	MaxLeisure     = time.Minute
)

// Interface is the name of the network interface that the devices live on.
const Interface = "lo"

// DefaultGroup is "All CoAP Nodes" on the default port (RFC 7252 §12.8).
func DefaultGroup() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{224, 0, 1, 187}), defaultPort)
}

// Options say what devices Start makes.
type Options struct {
	// Devices is how many there are, 1 to MaxDevices.
	Devices int
	// Group is the IPv4 multicast address they join, and the port wanted. Where
	// one of the devices cannot have it, or when it is 0, they all get another.
	Group netip.AddrPort
	// Leisure is the time over which each device spreads its responses to
	// group requests, 0 to MaxLeisure (RFC 7252 §8.2, GC-35).
	Leisure time.Duration
	// Seed decides what is random about the devices: readings and delays.
	Seed uint64
	Log  *zap.Logger
}

// Group is the devices, members of one CoAP group.
type Group struct {
	addr    netip.AddrPort
	devices []*device
	stats   *Stats
	wg      sync.WaitGroup
}

// Device is how a device can be told and reached.
type Device struct {
	Name string // "kitchen"
	Addr netip.AddrPort
}

// Stats counts what the devices do, all of them together.
type Stats struct {
	Messages endpoint.Stats
	// Overrun are group requests that a device did not answer because too many
	// of its answers were waiting for their time.
	Overrun atomic.Uint64
}

// Start makes the devices and has them join the group. Their goroutines end
// with ctx; Wait waits for them.
func Start(ctx context.Context, o Options) (*Group, error) {
	switch {
	case o.Devices < 1 || o.Devices > MaxDevices:
		return nil, fmt.Errorf("%d devices: not 1 to %d", o.Devices, MaxDevices)
	case o.Leisure < 0 || o.Leisure > MaxLeisure:
		return nil, fmt.Errorf("leisure %v: not 0 to %v", o.Leisure, MaxLeisure)
	case !o.Group.Addr().Is4() || !o.Group.Addr().IsMulticast():
		return nil, fmt.Errorf("group %v: not an IPv4 multicast address", o.Group.Addr())
	}
	iface, err := net.InterfaceByName(Interface)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", Interface, err)
	}
	port, sockets, err := openAll(ctx, o, iface)
	if err != nil {
		return nil, err
	}
	g := &Group{addr: netip.AddrPortFrom(o.Group.Addr(), port), stats: &Stats{}}
	engine := exchange.NewEngine()
	g.wg.Go(func() { engine.Run(ctx) })
	began := time.Now()
	for i, s := range sockets {
		d := newDevice(i, o, began)
		d.engine, d.stats = engine, g.stats
		member := endpoint.Config{Conn: s.group, Engine: engine, Requests: d, Params: endpoint.DefaultParams(),
			Dedup: dedupLimits(), MaxToken: maxToken, Stats: &g.stats.Messages, Log: o.Log.Named(d.name)}
		single := member
		single.Conn = s.own
		d.own = endpoint.New(single)
		g.devices = append(g.devices, d)
		for _, e := range []*endpoint.Endpoint{d.own, endpoint.New(member)} {
			g.wg.Go(func() { _ = e.Serve(ctx) })
		}
	}
	return g, nil
}

// Addr is the group's address and the port that the devices have got.
func (g *Group) Addr() netip.AddrPort { return g.addr }

// Devices returns the devices in the order of their addresses. The caller owns
// the list.
func (g *Group) Devices() []Device {
	list := make([]Device, len(g.devices))
	for i, d := range g.devices {
		list[i] = Device{Name: d.name, Addr: d.own.LocalAddr()}
	}
	return list
}

// Wait waits until the devices have gone, after the context of Start has ended.
func (g *Group) Wait() { g.wg.Wait() }

const (
	defaultPort = 5683 // of coap URIs (RFC 7252 §6.1)
	maxToken    = 8
	firstHost   = 11 // in 127.0.0.0/8; the ones before are for the proxy and others
)

// dedupLimits are those of a small device with few clients.
func dedupLimits() endpoint.DedupLimits {
	limits := endpoint.DefaultDedupLimits()
	limits.Idempotent, limits.NonIdempotent, limits.ReplyBytes = 1024, 1024, 1<<20
	return limits
}

// deviceAddr is the address of the device with the index i. All of 127.0.0.0/8
// belongs to the loopback interface, so that none has to be set up.
func deviceAddr(i int) netip.Addr {
	n := firstHost + i
	return netip.AddrFrom4([4]byte{127, 0, byte(n >> 8), byte(n)})
}

// deviceName is the room that the device with the index i stands in.
func deviceName(i int) string {
	rooms := [...]string{"kitchen", "hall", "bedroom", "study", "bathroom", "living-room", "nursery", "attic", "cellar",
		"garage", "workshop", "conservatory"}
	name := rooms[i%len(rooms)]
	if again := i / len(rooms); again > 0 {
		name += "-" + strconv.Itoa(again+1)
	}
	return name
}

// randomFor returns a source of random numbers for the n-th use in the device
// with the index i.
func randomFor(seed uint64, i, n int) *rand.Rand {
	//nolint:gosec // readings and delays of simulated devices, repeatable on purpose
	return rand.New(rand.NewPCG(seed, uint64(i)<<8|uint64(n)))
}

// deviceSockets are what one device listens on: its own address, from which
// all its responses leave, and the group's.
type deviceSockets struct {
	own   *endpoint.UDPConn
	group *memberConn
}

// openAll opens the sockets of all devices on one port.
func openAll(ctx context.Context, o Options, iface *net.Interface) (uint16, []deviceSockets, error) {
	const attempts = 16 // a port that the kernel finds free for one device is hardly ever taken for another
	port := o.Group.Port()
	for attempt := 0; ; attempt++ {
		got, sockets, err := openOn(ctx, o, port, iface)
		if err == nil || !errors.Is(err, syscall.EADDRINUSE) || attempt == attempts {
			return got, sockets, err
		}
		port = 0
	}
}

// openOn opens the sockets on the given port, or, if that is 0, on the one that
// the kernel finds for the first device.
func openOn(ctx context.Context, o Options, port uint16, iface *net.Interface) (_ uint16, sockets []deviceSockets, err error) {
	defer func() {
		if err != nil {
			for _, s := range sockets {
				err = errors.Join(err, s.own.Close(), s.group.Close())
			}
			sockets = nil
		}
	}()
	for i := range o.Devices {
		own, err := endpoint.ListenUDP(ctx, netip.AddrPortFrom(deviceAddr(i), port), endpoint.UDPOptions{})
		if err != nil {
			return 0, sockets, fmt.Errorf("device %s: %w", deviceName(i), err)
		}
		port = own.LocalAddr().Port()
		group, err := joinGroup(netip.AddrPortFrom(o.Group.Addr(), port), iface)
		if err != nil {
			return 0, sockets, errors.Join(fmt.Errorf("device %s: %w", deviceName(i), err), own.Close())
		}
		sockets = append(sockets, deviceSockets{own, group})
	}
	return port, slices.Clip(sockets), nil
}
