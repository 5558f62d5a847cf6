package multicast

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"coapproxy/endpoint"
)

// way identifies the sockets that group requests leave by: nothing about a
// socket changes once it is open.
type way struct {
	v6       bool
	iface    string
	hopLimit int
	loopback bool
}

// egress is one way out with its current source port. Guarded by the leg's
// lock.
type egress struct {
	way      way
	endpoint *endpoint.Endpoint
	stop     context.CancelFunc
	users    int // transactions that were sent by it
	retired  bool
	freed    *freedTokens
	index    int       // of the interface when the socket was opened
	checked  time.Time // when the interface was last looked at
}

// checkInterval is how long a socket trusts its interface to be the one with
// that name: dongles and tunnels come back with another index, and a socket that
// holds the old one sends nowhere.
const checkInterval = time.Second

// Open opens a packet connection for sending to groups.
type Open func(ctx context.Context, local netip.AddrPort, m endpoint.MulticastOptions) (endpoint.PacketConn, error)

// open makes the egress for a way. Called under the lock.
func (l *Leg) open(w way) (*egress, error) {
	if l.closed {
		return nil, net.ErrClosed
	}
	iface, err := l.config.Interface(w.iface)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", w.iface, err)
	}
	local, err := sourceAddress(iface, w.v6)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(l.ctx)
	conn, err := l.config.Open(ctx, netip.AddrPortFrom(local, 0), endpoint.MulticastOptions{Interface: iface, HopLimit: w.hopLimit, Loopback: w.loopback})
	if err != nil {
		stop()
		return nil, fmt.Errorf("group socket on %s: %w", w.iface, err)
	}
	e := &egress{way: w, stop: stop, freed: newFreedTokens(l.config.ReuseList), index: iface.Index, checked: l.now()}
	e.endpoint = endpoint.New(endpoint.Config{Conn: conn, Engine: l.config.Engine, Responses: l, Params: endpoint.DefaultParams(),
		Dedup: l.config.Dedup, DedupResponses: true, Stats: l.config.EndpointStats, Log: l.config.Log})
	l.ports[e.endpoint] = e
	l.wg.Add(1)
	go func() {
		defer l.wg.Done()
		_ = e.endpoint.Serve(ctx)
	}()
	return e, nil
}

// sourceAddress is the address group requests leave from: the kernel's choice
// for the outgoing interface, except on a loopback interface, whose addresses
// it would not choose.
func sourceAddress(iface *net.Interface, v6 bool) (netip.Addr, error) {
	unspecified := netip.IPv4Unspecified()
	if v6 {
		unspecified = netip.IPv6Unspecified()
	}
	if iface.Flags&net.FlagLoopback == 0 {
		return unspecified, nil
	}
	addrs, err := iface.Addrs()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("addresses of %s: %w", iface.Name, err)
	}
	for _, a := range addrs {
		if ipnet, ok := a.(*net.IPNet); ok {
			addr, _ := netip.AddrFromSlice(ipnet.IP)
			if addr = addr.Unmap(); addr.Is6() == v6 && !addr.IsLinkLocalUnicast() {
				return addr, nil
			}
		}
	}
	return netip.Addr{}, errNoAddress(iface.Name)
}

type errNoAddress string

func (e errNoAddress) Error() string {
	return "interface " + string(e) + " has no address of the group's family"
}

// ways appends the sockets for a group address to out, which is empty, opening
// those that are not there yet. A zone in the address limits it to that interface
// (GC-7). Called under the lock.
func (l *Leg) ways(out []*egress, g *group, addr netip.Addr) ([]*egress, error) {
	var errs error
	for _, name := range g.Interfaces {
		if zone := addr.Zone(); zone != "" && zone != name {
			continue
		}
		w := way{v6: addr.Is6(), iface: name, hopLimit: g.HopLimit(addr), loopback: g.Loopback}
		e := l.egress[w]
		if e != nil && l.outlived(e) {
			l.config.Log.Warn("interface has changed; its group socket is opened anew", zap.String("interface", name))
			l.retirePort(e)
			e = nil
		}
		if e == nil {
			var err error
			if e, err = l.open(w); err != nil {
				errs = errors.Join(errs, err)
				continue
			}
			l.egress[w] = e
		}
		out = append(out, e)
	}
	if len(out) == 0 {
		if errs == nil {
			errs = errors.New("the zone is none of the group's interfaces")
		}
		return nil, errs
	}
	if errs != nil {
		l.config.Log.Warn("group request leaves by some of its interfaces only", zap.String("group", g.Name), zap.Error(errs))
	}
	return out, nil
}

// outlived reports whether the interface of an egress is gone or is another one
// by now. Called under the lock.
func (l *Leg) outlived(e *egress) bool {
	now := l.now()
	if now.Sub(e.checked) < checkInterval {
		return false
	}
	e.checked = now
	iface, err := l.config.Interface(e.way.iface)
	return err != nil || iface.Index != e.index
}

// retirePort takes an egress out of use; its socket is closed when no
// transaction needs it any more. Called under the lock.
func (l *Leg) retirePort(e *egress) {
	e.retired = true
	delete(l.egress, e.way)
	if e.users == 0 {
		delete(l.ports, e.endpoint)
		e.stop()
	}
}

// release ends one use of an egress and frees the Token on it. A port with too
// many freed Tokens is replaced by a new one (GC-24). Called under the lock.
func (l *Leg) release(e *egress, token uint64) {
	e.users--
	if !e.freed.add(token, l.now()) && !e.retired {
		l.config.Stats.Rotations.Add(1)
		l.retirePort(e)
		return
	}
	if e.retired && e.users == 0 {
		delete(l.ports, e.endpoint)
		e.stop()
	}
}
