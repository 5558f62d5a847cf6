package proxy

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/endpoint"
	"coapproxy/exchange"
	"coapproxy/wire"
)

// echoes has clients over bare UDP prove that they are where their datagrams say,
// before more than three times of what came is sent (FP-81, FP-86;
// RFC 9175 §2.4). A challenge costs no memory: its value says when it was made, and
// a MAC that it was made for this address and port.
type echoes struct {
	key   [sha256.Size]byte // of this process
	epoch time.Time

	mu     sync.Mutex
	proven *simplelru.LRU[netip.AddrPort, time.Time]
}

const (
	// echoLife is how long a challenge can be answered.
	echoLife = time.Minute
	// provenFor is how long a peer counts as proven, and maxProven how many are
	// remembered; whose proof is forgotten is challenged again.
	provenFor = time.Hour
	maxProven = 16384

	echoTime, echoMAC = 4, 8
)

func newEchoes() *echoes {
	e := &echoes{epoch: time.Now()}
	_, _ = rand.Read(e.key[:]) // never fails
	proven, err := simplelru.NewLRU[netip.AddrPort, time.Time](maxProven, nil)
	if err != nil {
		panic(err) // the size is a positive constant
	}
	e.proven = proven
	return e
}

// value makes a challenge for a peer.
func (e *echoes) value(peer netip.AddrPort, now time.Time) []byte {
	v := binary.BigEndian.AppendUint32(make([]byte, 0, echoTime+echoMAC), uint32(now.Sub(e.epoch)/time.Second))
	return e.appendMAC(v, v, peer)
}

func (e *echoes) appendMAC(out, at []byte, peer netip.AddrPort) []byte {
	mac := hmac.New(sha256.New, e.key[:])
	mac.Write(at)
	addr := peer.Addr().As16()
	mac.Write(addr[:])
	mac.Write(binary.BigEndian.AppendUint16(nil, peer.Port()))
	mac.Write([]byte(peer.Addr().Zone()))
	return append(out, mac.Sum(nil)[:echoMAC]...)
}

// take looks for a challenge of our own among the options of a request and returns
// them without it; what others made is relayed (FP-80). A valid one proves the peer.
func (e *echoes) take(options message.Options, peer netip.AddrPort, now time.Time) (rest message.Options, answered bool) {
	for i, o := range options {
		if o.ID != wire.Echo || len(o.Value) != echoTime+echoMAC ||
			!hmac.Equal(o.Value, e.appendMAC(append([]byte(nil), o.Value[:echoTime]...), o.Value[:echoTime], peer)) {
			continue
		}
		made := e.epoch.Add(time.Duration(binary.BigEndian.Uint32(o.Value)) * time.Second)
		if answered = now.Sub(made) < echoLife+time.Second; answered {
			e.mu.Lock()
			e.proven.Add(peer, now)
			e.mu.Unlock()
		}
		rest = append(append(make(message.Options, 0, len(options)), options[:i]...), options[i+1:]...)
		return rest, answered
	}
	return options, false
}

// has reports whether a peer is proven.
func (e *echoes) has(peer netip.AddrPort, now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	at, ok := e.proven.Get(peer)
	return ok && now.Sub(at) < provenFor
}

// allowance is what may be sent because of one request of an unproven peer: three
// times the size of its datagram, IP and UDP headers counted on both sides.
type allowance struct{ bytes, headers int }

// amplification is the factor up to which answering is harmless (RFC 9175 §2.4).
const amplification = 3

// allow returns the allowance of a request, nil for no limit: its client is known by
// more than an address, or trusted by it explicitly (FP-81), or its peer is proven.
func (f *Front) allow(rx *endpoint.Reception, client *exchange.Identity, protected bool) *allowance {
	if !rx.Unproven() || protected || client != nil && !client.ProveAddress || f.echoes.has(rx.Peer.Addr, rx.Now) {
		return nil
	}
	const ip4, ip6, udp = 20, 40, 8
	a := &allowance{headers: ip4 + udp}
	if rx.Peer.Addr.Addr().Is6() {
		a.headers = ip6 + udp
	}
	a.bytes = amplification * (rx.Size + a.headers)
	return a
}

// mayAnswerMuch reports whether a request can have more than one response, or one
// that cannot be made again when it turns out to be too long: then its peer is
// challenged before anything is done.
func (a *allowance) mayAnswerMuch(r *exchange.Request) bool {
	if r.Timeout.Present {
		return r.Timeout.Seconds > 0 // with 0 nothing comes back
	}
	if value, ok := wire.ObserveOf(r.Options); ok && value == 0 {
		return true
	}
	return r.Method != codes.GET && r.Method != wire.FETCH
}

// fit returns what is sent in place of a response so that the allowance of its
// request is kept: the response, an error without its text, or a challenge.
func (f *Front) fit(a *allowance, in *endpoint.Incoming, p *exchange.Response) *exchange.Response {
	if a == nil || a.fits(in, p) {
		return p
	}
	if !p.From.IsValid() && p.Code>>5 != 2 {
		f.Stats.Trimmed.Add(1)
		q := &exchange.Response{Code: p.Code, Options: p.Options}
		if !a.fits(in, q) {
			q.Options = nil
		}
		return q
	}
	return f.challenge(in.Peer.Addr)
}

// fits measures what would be sent.
func (a *allowance) fits(in *endpoint.Incoming, p *exchange.Response) bool {
	left := a.bytes - a.headers
	if in.Acked() {
		left -= a.headers + 4
	}
	encoded, err := (&wire.Message{Token: in.Token, Code: p.Code, Options: p.Options, Payload: p.Payload}).Append(nil)
	return err == nil && len(encoded) <= left
}

// challenge is the response that asks a peer to prove its address (FP-81).
func (f *Front) challenge(peer netip.AddrPort) *exchange.Response {
	f.Stats.Challenges.Add(1)
	return challengeResponse(f.echoes.value(peer, time.Now()))
}
