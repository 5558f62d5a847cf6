package endpoint

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"coapproxy/exchange"
)

// DTLSLeg is the leg that carries a request to one server over DTLS. It is made of
// Clients, each with source ports of its own: a server has one session with a port
// (RFC 6347 §4.2.8), so that one that is asked under several names, and has another
// certificate or key for each, is asked from as many ports. It implements
// exchange.Handler.
type DTLSLeg struct {
	ctx     context.Context
	clients ClientConfig
	secure  DTLSConfig

	mu      sync.Mutex
	lanes   []*dtlsLane // at most maxNames; the first one is there from the beginning
	servers *simplelru.LRU[netip.AddrPort, *dtlsNames]
}

// maxNames is how many sessions there may be with one address.
const maxNames = 8

// dtlsLane is a Client and the connections that it has opened.
type dtlsLane struct {
	*Client

	mu    sync.Mutex
	conns []*DTLSConn
}

// dtlsNames are what the server at an address goes by in each of the lanes.
type dtlsNames [maxNames]dtlsName

type dtlsName struct {
	as   string
	used time.Time // zero: it goes by nothing there
}

// NewDTLSLeg returns a DTLSLeg; what clients.Open opens carries the records of
// sessions made by secure, whose Conn is not used. It ends when ctx does; Wait waits
// for that.
func NewDTLSLeg(ctx context.Context, clients ClientConfig, secure DTLSConfig) (*DTLSLeg, error) {
	servers, err := simplelru.NewLRU[netip.AddrPort, *dtlsNames](clients.Servers, nil)
	if err != nil {
		return nil, err
	}
	if secure.Dial == nil {
		secure.Dial = func(ctx context.Context, server netip.AddrPort) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "udp", server.String())
		}
	}
	l := &DTLSLeg{ctx: ctx, clients: clients, secure: secure, servers: servers}
	_, err = l.addLane()
	return l, err
}

// addLane is called under the lock, or before anybody knows l.
func (l *DTLSLeg) addLane() (*dtlsLane, error) {
	lane := &dtlsLane{}
	config := l.clients
	config.Open = func(ctx context.Context, wildcard netip.Addr) (PacketConn, error) {
		records, err := l.clients.Open(ctx, wildcard)
		if err != nil {
			return nil, err
		}
		secure := l.secure
		secure.Conn = records
		conn, err := NewDTLSClient(secure)
		if err != nil {
			return nil, errors.Join(err, records.Close())
		}
		lane.mu.Lock()
		lane.conns = append(lane.conns, conn)
		lane.mu.Unlock()
		return conn, nil
	}
	var err error
	if lane.Client, err = NewClient(l.ctx, config); err != nil {
		return nil, err
	}
	l.lanes = append(l.lanes, lane)
	return lane, nil
}

// Exchange implements exchange.Handler.
func (l *DTLSLeg) Exchange(r *exchange.Request, w exchange.Sink) exchange.Canceler {
	lane, err := l.laneOf(r.Target.Addr, r.Target.Host, time.Now())
	if err != nil {
		return exchange.Fail(w, err)
	}
	return lane.Exchange(r, w)
}

// laneOf returns the lane in which the server at an address is asked under a name.
func (l *DTLSLeg) laneOf(addr netip.AddrPort, name string, now time.Time) (*dtlsLane, error) {
	as := l.goesBy(addr, name)
	l.mu.Lock()
	defer l.mu.Unlock()
	names, ok := l.servers.Get(addr)
	if !ok {
		names = &dtlsNames{}
		l.servers.Add(addr, names)
	}
	free, oldest := -1, 0
	for i := range names {
		switch n := &names[i]; {
		case n.used.IsZero():
			if free < 0 {
				free = i
			}
		case n.as == as:
			n.used = now
			return l.lanes[i], nil
		case n.used.Before(names[oldest].used):
			oldest = i
		}
	}
	for i, lane := range l.lanes {
		if lane.proven(addr, name) { // by a certificate for several names, as it turned out
			if names[i].used.IsZero() {
				names[i].as = as
			}
			names[i].used = now
			return lane, nil
		}
	}
	if free < 0 {
		if now.Sub(names[oldest].used) < minSilence {
			return nil, errTooManyNames
		}
		free = oldest
	}
	lane := (*dtlsLane)(nil)
	if free < len(l.lanes) {
		lane = l.lanes[free]
	} else {
		var err error
		if lane, err = l.addLane(); err != nil {
			return nil, &exchange.Failure{Reason: exchange.Internal, Detail: "no source port", Err: err}
		}
	}
	names[free] = dtlsName{as, now}
	return lane, nil
}

var errTooManyNames = &exchange.Failure{Reason: exchange.Overloaded, Detail: "the server is asked under too many names", RetryAfter: minSilence}

// goesBy is what tells sessions with an address apart: the key, where there is one
// for the server, and the name in its certificate otherwise.
func (l *DTLSLeg) goesBy(addr netip.AddrPort, name string) string {
	if c := l.secure.Credentials(); c.KeyFor != nil {
		if identity, key, ok := c.KeyFor(addr, name); ok {
			return "key " + identity + "\x00" + string(key)
		}
	}
	return "name " + name
}

// proven reports whether the lane has a session in which the server at the address
// has proven to go by the name, too.
func (l *dtlsLane) proven(addr netip.AddrPort, name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns {
		if s := c.at(addr); s != nil && s.provenFor(name) {
			return true
		}
	}
	return false
}

// Queued is the number of requests that wait for their turn.
func (l *DTLSLeg) Queued() int {
	n := 0
	for _, lane := range l.all() {
		n += lane.Queued()
	}
	return n
}

// Wait is Client.Wait.
func (l *DTLSLeg) Wait() {
	for _, lane := range l.all() {
		lane.Wait()
	}
}

func (l *DTLSLeg) all() []*dtlsLane {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lanes[:len(l.lanes):len(l.lanes)]
}
