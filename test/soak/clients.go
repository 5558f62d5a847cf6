package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"coapproxy/test/internal/coap"
)

// kind is a kind of request that well-behaved clients send.
type kind int

const (
	single kind = iota
	group
	observation
	web
	webGroup
	kinds
)

func (k kind) String() string {
	return [...]string{"single", "group", "observe", "http", "http group"}[k]
}

// tally counts what became of requests of one kind.
type tally struct {
	tried, succeeded int
	latencies        []time.Duration // until the first response
	failures         map[string]int  // by what came instead
}

// quantile is the time within which a share of them were answered.
func (t *tally) quantile(share float64) time.Duration {
	if len(t.latencies) == 0 {
		return 0
	}
	slices.Sort(t.latencies)
	return t.latencies[min(int(share*float64(len(t.latencies))), len(t.latencies)-1)]
}

// clients are the well-behaved clients.
type clients struct {
	proxy   *proxy
	devices *devices
	seed    uint64
	http    *http.Client

	mu      sync.Mutex
	tallies [kinds]tally
	next    uint32 // address of a client
}

// take returns the tallies since the last call.
func (c *clients) take() [kinds]tally {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.tallies
	c.tallies = [kinds]tally{}
	return t
}

// count counts a request; failure is what came instead of success, empty for that.
func (c *clients) count(k kind, failure string, latency time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := &c.tallies[k]
	t.tried++
	if failure != "" {
		if t.failures == nil {
			t.failures = make(map[string]int)
		}
		t.failures[failure]++
		return
	}
	t.succeeded++
	t.latencies = append(t.latencies, latency)
}

// workers is how many clients of each kind there are; they share the rate.
var workers = [kinds]int{single: 16, group: 4, web: 8, webGroup: 2}

// start lets the clients ask until ctx ends.
func (c *clients) start(ctx context.Context, wg *sync.WaitGroup, o *options) {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 1, 255, 1)}, Timeout: 10 * time.Second}
	transport := &http.Transport{DialContext: dialer.DialContext, MaxIdleConnsPerHost: workers[web]}
	c.http = &http.Client{Transport: transport, Timeout: patience}
	context.AfterFunc(ctx, transport.CloseIdleConnections)
	// Seven of ten requests are for one server over CoAP, two over HTTP; a group costs as much as its members do.
	perSecond := [kinds]float64{single: 0.7 * float64(o.rate), web: 0.2 * float64(o.rate), group: 4, webGroup: 2}
	for k, n := range workers {
		pause := time.Duration(float64(n) / max(perSecond[k], 0.1) * float64(time.Second))
		for range n {
			wg.Go(func() { c.work(ctx, kind(k), pause) })
		}
	}
	for range o.observers {
		wg.Go(func() {
			for ctx.Err() == nil {
				c.observe(ctx)
			}
		})
	}
}

// perSocket is how many requests a client sends from one port before it takes another.
const perSocket = 50

// work sends requests of one kind, one after the other.
func (c *clients) work(ctx context.Context, k kind, pause time.Duration) {
	var conn *socket
	defer func() {
		if conn != nil {
			_ = conn.Close()
		}
	}()
	for n := 0; sleep(ctx, pause/2+rand.N(pause)); n++ {
		if k == web || k == webGroup {
			c.web(ctx, k)
			continue
		}
		if n%perSocket == 0 {
			if conn != nil {
				_ = conn.Close()
			}
			conn = c.dial()
		}
		if conn == nil {
			return
		}
		if k == group {
			c.group(ctx, conn)
		} else {
			c.single(ctx, conn, n%2 == 0)
		}
	}
}

// sleep waits; it reports false when ctx has ended.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// socket is a client's socket. Its Message IDs are in sequence: one that came again would be a repetition.
type socket struct {
	*net.UDPConn
	id uint16
}

// dial opens a socket at a new address of the known network.
func (c *clients) dial() *socket {
	c.mu.Lock()
	c.next++
	n := c.next
	c.mu.Unlock()
	conn, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 1, byte(n>>8&0x7f), byte(n))}, c.proxy.coap)
	if err != nil {
		return nil
	}
	return &socket{conn, uint16(rand.Uint32())}
}

// patience is how long a client waits for a response before it calls the request failed.
const patience = 10 * time.Second

// target is a URI at a device that lives.
func (c *clients) target() string {
	return fmt.Sprintf("coap://%v/temp?%d", netip.AddrPortFrom(deviceAddr(rand.IntN(deviceCount-1)), uint16(c.devices.port)), rand.IntN(100))
}

// ask is a GET request with a new Token and a random Message ID.
func ask(con bool, uri string, options ...coap.Option) *coap.Message {
	m := &coap.Message{Type: coap.NON, Code: coap.GET, ID: uint16(rand.Uint32()), Token: binary.BigEndian.AppendUint64(nil, rand.Uint64()),
		Options: append(options, coap.Opt(coap.ProxyURI, uri))}
	if con {
		m.Type = coap.CON
	}
	return m
}

// exchange sends a request, again if it is confirmable and nothing comes, and hands what comes with its Token to f
// until f has enough or the time is up.
func exchange(ctx context.Context, conn *socket, m *coap.Message, until time.Time, f func(*coap.Message) (enough bool)) {
	b := make([]byte, 2048)
	conn.id++
	m.ID = conn.id
	request := m.Bytes()
	_, _ = conn.Write(request)
	again, heard := time.Now().Add(2*time.Second), false
	for ctx.Err() == nil && time.Now().Before(until) {
		wake := until
		if !heard && m.Type == coap.CON && again.Before(until) {
			wake = again
		}
		_ = conn.SetReadDeadline(wake)
		n, err := conn.Read(b)
		if err != nil {
			if !heard && m.Type == coap.CON && !time.Now().Before(again) {
				_, _ = conn.Write(request)
				again = time.Now().Add(4 * time.Second)
			}
			continue
		}
		r, err := coap.Parse(append([]byte(nil), b[:n]...))
		if err != nil {
			continue
		}
		if r.Type == coap.CON {
			ack := coap.Message{Type: coap.ACK, ID: r.ID}
			_, _ = conn.Write(ack.Bytes())
		}
		if r.Type == coap.ACK && r.ID == m.ID {
			heard = true
		}
		if r.Code != coap.Empty && bytes.Equal(r.Token, m.Token) {
			heard = true
			if f(r) {
				return
			}
		}
	}
}

// single asks one device.
func (c *clients) single(ctx context.Context, conn *socket, con bool) {
	began := time.Now()
	failure := "nothing"
	exchange(ctx, conn, ask(con, c.target()), began.Add(patience), func(r *coap.Message) bool {
		failure = ""
		if r.Code != coap.CodeOf(2, 5) {
			failure = r.Code.String() + " " + string(r.Payload)
		}
		return true
	})
	if ctx.Err() == nil {
		c.count(single, failure, time.Since(began))
	}
}

// group asks all devices. It is a success when as many answer as there are but for those that lose the request, the
// dead one and the unlucky.
func (c *clients) group(ctx context.Context, conn *socket) {
	began, first, heard := time.Now(), time.Duration(0), 0
	m := ask(false, fmt.Sprintf("coap://224.0.1.187:%d/temp", c.devices.port), coap.Uint(coap.MulticastTimeout, 2))
	exchange(ctx, conn, m, began.Add(2500*time.Millisecond), func(r *coap.Message) bool {
		if r.Code == coap.CodeOf(2, 5) && r.Has(coap.ReplyFrom) {
			if heard++; heard == 1 {
				first = time.Since(began)
			}
		}
		return false
	})
	if ctx.Err() == nil {
		c.count(group, few(heard, deviceCount*3/4), first)
	}
}

// few says that there were too few responses.
func few(heard, wanted int) string {
	if heard >= wanted {
		return ""
	}
	return fmt.Sprintf("%d responses", heard)
}

// observe observes a device for a while. Some observers deregister, others vanish.
func (c *clients) observe(ctx context.Context) {
	conn := c.dial()
	if conn == nil {
		return
	}
	defer conn.Close()
	began, first, heard := time.Now(), time.Duration(0), 0
	uri := fmt.Sprintf("coap://%v/temp", netip.AddrPortFrom(deviceAddr(rand.IntN(deviceCount-1)), uint16(c.devices.port)))
	m := ask(true, uri, coap.Uint(coap.Observe, 0))
	last := began.Add(5*time.Second + rand.N(20*time.Second))
	exchange(ctx, conn, m, last, func(r *coap.Message) bool {
		if r.Code == coap.CodeOf(2, 5) && r.Has(coap.Observe) {
			if heard++; heard == 1 {
				first = time.Since(began)
			}
		}
		return false
	})
	if ctx.Err() == nil {
		c.count(observation, few(heard, 2), first)
	}
	if rand.IntN(2) == 0 {
		stop := ask(true, uri, coap.Uint(coap.Observe, 1))
		stop.Token = m.Token
		exchange(ctx, conn, stop, time.Now().Add(patience), func(*coap.Message) bool { return true })
	}
}

// web asks over HTTP.
func (c *clients) web(ctx context.Context, k kind) {
	began := time.Now()
	uri := c.target()
	if k == webGroup {
		uri = fmt.Sprintf("coap://224.0.1.187:%d/temp", c.devices.port)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.proxy.http+"/hc/"+uri, http.NoBody)
	if err != nil {
		return
	}
	if k == webGroup {
		r.Header.Set("Multicast-Timeout", "1")
	}
	failure := ""
	resp, err := c.http.Do(r)
	if err == nil {
		if resp.StatusCode != http.StatusOK {
			failure = resp.Status
		}
		_, err = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	}
	if err != nil {
		failure = err.Error()
	}
	if ctx.Err() == nil {
		c.count(k, failure, time.Since(began))
	}
}
