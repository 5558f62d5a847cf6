package client

import (
	"bytes"
	"net/netip"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// Response is one response. Its owner is whom Do yields it to.
type Response struct {
	Type    message.Type
	Code    codes.Code
	Options message.Options // sorted; of the first block when there are several
	// Payload is the whole body, or its beginning when Incomplete is set.
	Payload []byte
	// Blocks is the number of messages that Payload came in.
	Blocks int
	// Incomplete says why Payload is not the whole body; nil when it is.
	Incomplete error
	// Elapsed is the time from the sending of the request to the arrival of the
	// (first) message of the response.
	Elapsed time.Duration
	// Peer is who sent the message, the proxy or the server itself, and Scheme how.
	Peer   netip.AddrPort
	Scheme string
	// From is the server that Reply-From names (GP-116), or, in the legacy
	// dialect, Response-Forwarding; nil when neither says. The response to a
	// group request that has none was made by the proxy (GP-39).
	From *wire.ReplyFromValue
	// Timeout is the Multicast-Timeout of an error response, see TimeoutMissing
	// and MinTimeout.
	Timeout exchange.Timeout
	// Unprotected marks a response that came without the protection it should have
	// had: an error that somebody on the way made, or forged.
	Unprotected bool
	// Stale marks a notification that is older than one that came before it
	// (RFC 7641 §3.4).
	Stale bool

	bert bool // blocks may be as RFC 8323 §6 has them
}

// newResponse makes a Response that owns its bytes. groupPort is the port of the
// URI of the request.
func newResponse(m *wire.Message, numbers *wire.Numbers, groupPort uint16) *Response {
	p := &Response{Type: m.Type, Code: m.Code, Options: exchange.CloneOptions(m.Options), Payload: bytes.Clone(m.Payload), Blocks: 1}
	if value, ok := wire.First(p.Options, numbers.ReplyFrom); ok {
		if from, err := wire.ParseReplyFrom(value); err == nil { // GP-10
			p.From = &from
		}
	}
	if value, ok := wire.First(p.Options, numbers.ResponseForwarding); ok && p.From == nil {
		if tp, server, err := wire.ParseResponseForwarding(value, groupPort); err == nil { // GP-124
			if u, err := wire.ParseURI(wire.ResponseForwardingURI(tp, server)); err == nil {
				p.From = &wire.ReplyFromValue{Server: u}
			}
		}
	}
	if value, ok := wire.First(p.Options, numbers.MulticastTimeout); ok {
		p.Timeout.Seconds, p.Timeout.Present = wire.Uint(value)
	}
	return p
}

// Success reports a 2.xx response.
func (p *Response) Success() bool { return p.Code>>5 == 2 }

// TimeoutMissing reports the answer of a proxy to a group request without
// Multicast-Timeout: 4.00 with an empty one (GP-26).
func (p *Response) TimeoutMissing() bool {
	return p.Code == codes.BadRequest && p.Timeout.Present && p.Timeout.Seconds == 0
}

// MinTimeout is the smallest Multicast-Timeout in seconds that a chain of
// proxies accepts, when this is the 5.05 that says so (GP-96).
func (p *Response) MinTimeout() (seconds uint32, ok bool) {
	return p.Timeout.Seconds, p.Code == codes.ProxyingNotSupported && p.Timeout.Present && p.Timeout.Seconds > 0
}

// observe returns the value of the Observe option of a notification.
func (p *Response) observe() (sequence uint32, ok bool) {
	value, ok := wire.First(p.Options, wire.Observe)
	if !ok || !p.Success() {
		return 0, false
	}
	sequence, ok = wire.Uint(value)
	return sequence & 0xffffff, ok
}

// parseBlock reads the value of a block option of the peer.
func (p *Response) parseBlock(value []byte) (wire.Block, error) {
	if p.bert {
		return wire.ParseBERTBlock(value)
	}
	return wire.ParseBlock(value)
}

// block returns the Block2 option when it says that the body goes on.
func (p *Response) block() (b wire.Block, more bool) {
	value, ok := wire.First(p.Options, wire.Block2)
	if !ok {
		return b, false
	}
	b, err := p.parseBlock(value)
	return b, err == nil && b.More
}
