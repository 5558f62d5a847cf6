package proxy

import (
	"hash/maphash"
	"net/netip"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// HoldBack remembers servers' 4.29 responses and answers similar requests of
// the same client from memory until their time is over (FP-36). Similar are
// requests with the same method and URI. Safe for concurrent use.
type HoldBack struct {
	seed  maphash.Seed
	used  atomic.Bool // until may have something
	until *lru.Cache[holdKey, time.Time]
}

// holdKey is a kind of request. A client is known by its entry and its address:
// many take another port for each request.
type holdKey struct {
	name   string
	client netip.Addr
	server netip.AddrPort
	method codes.Code
	uri    uint64 // hash of scheme, host name, path and query
}

const maxHoldBacks = 4096

// NewHoldBack returns an empty HoldBack.
func NewHoldBack() *HoldBack {
	c, err := lru.New[holdKey, time.Time](maxHoldBacks)
	if err != nil {
		panic(err) // the size is a positive constant
	}
	return &HoldBack{seed: maphash.MakeSeed(), until: c}
}

func (h *HoldBack) key(r *exchange.Request) holdKey {
	var room [256]byte // on the stack, as long as it is enough
	text := append(append(append(room[:0], r.Target.Scheme...), 0), r.Target.Host...)
	for _, o := range r.Options {
		if o.ID == wire.URIPath || o.ID == wire.URIQuery || o.ID == wire.URIPathAbbrev {
			text = append(text, byte(o.ID), byte(len(o.Value)), byte(len(o.Value)>>8))
			text = append(text, o.Value...)
		}
	}
	return holdKey{name: nameOf(r.Client), client: r.Peer.Addr(), server: r.Target.Addr, method: r.Method, uri: maphash.Bytes(h.seed, text)}
}

// check returns the failure for a request that is held back.
func (h *HoldBack) check(r *exchange.Request) *exchange.Failure {
	if !h.used.Load() {
		return nil
	}
	key := h.key(r)
	until, ok := h.until.Get(key)
	if !ok {
		return nil
	}
	left := until.Sub(r.Arrival)
	if left <= 0 {
		h.until.Remove(key)
		return nil
	}
	return &exchange.Failure{Reason: exchange.TooManyRequests, Detail: "the server asked to wait", RetryAfter: left}
}

// hold remembers a 4.29 for its Max-Age (RFC 8516 §3).
func (h *HoldBack) hold(key holdKey, p *exchange.Response) {
	seconds := uint32(60)
	if value, ok := wire.First(p.Options, wire.MaxAge); ok {
		seconds, _ = wire.Uint(value)
	}
	if seconds > 0 {
		h.used.Store(true)
		h.until.Add(key, time.Now().Add(time.Duration(seconds)*time.Second))
	}
}
