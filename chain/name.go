package chain

import (
	"bytes"
	"net/netip"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// name finds out which server a response is from, by what the next proxy says in
// its generation of the group options, and takes that out of the options (GP-101,
// GP-116). It reports false if the next proxy does not say.
//
// The client gets the same bytes where they can be kept: in ReplyFrom. From is
// the server for those who store the response or follow it up, if it is one that
// a CoAP request over UDP can go to.
func (g *group) name(p *exchange.Response) bool {
	h := g.hop
	numbers := h.chain.config.Numbers
	value, named := wire.First(p.Options, numbers.ReplyFrom)
	older, known := wire.First(p.Options, numbers.ResponseForwarding)
	p.From, p.ReplyFrom = netip.AddrPort{}, nil
	g.options = g.options[:0]
	for _, o := range p.Options {
		if o.ID == numbers.ReplyFrom || o.ID == numbers.ResponseForwarding && h.Dialect == exchange.Legacy {
			continue
		}
		g.options = append(g.options, o)
	}
	p.Options = g.options
	if known && h.Dialect == exchange.Legacy {
		transport, server, err := wire.ParseResponseForwarding(older, g.port)
		if err == nil {
			setOlder(p, transport, server)
			return true
		}
		g.misbehaves(malformed) // GP-124
	}
	if named {
		g.setName(p, value)
	}
	return named
}

// setName sets the server by a Reply-From.
func (g *group) setName(p *exchange.Response, value []byte) {
	p.ReplyFrom = value
	v, err := wire.ParseReplyFrom(value)
	if err != nil {
		g.misbehaves(malformed) // passed on all the same (GP-10)
		return
	}
	if v.Ref != nil || v.Server.Scheme != "coap" || !v.Server.Addr.IsValid() {
		return
	}
	p.From = netip.AddrPortFrom(v.Server.Addr, v.Server.Port)
	// Where the same bytes are made of the address anyway, nobody has to keep them.
	var own [32]byte
	if zone := v.Server.Addr.Zone(); zone != "" && !g.hop.chain.config.Zones || zone == "" && bytes.Equal(wire.AppendReplyFrom(own[:0], schemeCoAP, p.From), value) {
		p.ReplyFrom = nil
	}
}

// setOlder sets the server by a Response-Forwarding, from which a Reply-From is
// made for those clients that understand it (GP-101).
func setOlder(p *exchange.Response, transport uint8, server netip.AddrPort) {
	if transport == wire.TransportUDP {
		p.From = server
		return
	}
	u, err := wire.ParseURI(wire.ResponseForwardingURI(transport, server))
	if err != nil {
		return
	}
	if number, ok := wire.SchemeNumber(u.Scheme); ok {
		p.ReplyFrom = wire.AppendReplyFrom(nil, number, server)
	}
}

// schemeCoAP is the scheme number of coap (FP-6).
const schemeCoAP = 0
