package oscorehop

import (
	"slices"

	"github.com/plgd-dev/go-coap/v3/message"

	"coapproxy/wire"
)

// Placement is what the sender of a message knows, as far as it knows, about an
// option that is specified as an outer one only, when it protects the message for
// another endpoint, X (OH-30, OH-31).
type Placement struct {
	Added           bool // this endpoint itself put the option into the message
	Consumer        bool // X is a consumer of it
	First           bool // X is the immediately next consumer
	NextHop         bool // X is the next hop of this endpoint
	NextHopConsumes bool // the next hop is the immediately next consumer
	NeededBefore    bool // X needs it before, or in order to, remove this layer
	Scheme          bool // the message has Proxy-Scheme or Proxy-Scheme-Number
}

// Class carries out OH-31: ClassE for an option that goes inside this layer, ClassU
// for one that stays outside.
func (p Placement) Class(id message.OptionID) Class {
	inside := false
	switch {
	case p.Added && p.Consumer && p.First: // steps 1 to 3
		inside = !p.NeededBefore // 5
	case p.Added && p.Consumer:
	default:
		inside = p.NextHop || !p.NextHopConsumes // 4
	}
	if inside && (id == wire.URIHost || id == wire.URIPort) { // 6
		inside = p.Scheme // 7
	}
	if inside {
		return ClassE // 8
	}
	return ClassU // 9
}

// Hop is what a proxy knows of the options between itself and its neighbours. It
// is not changed once it is in use.
type Hop struct {
	// Numbers are those of the group options in this deployment (GP-1).
	Numbers wire.Numbers
	// Further options that the operator says are Class E (OH-34).
	Further []message.OptionID
}

// known is KnownClasses with what this deployment adds.
func (h *Hop) known(id message.OptionID) Class {
	switch id {
	case h.Numbers.MulticastTimeout, h.Numbers.ReplyFrom, h.Numbers.GroupETag, h.Numbers.ResponseForwarding:
		return ClassU // OH-35
	case h.Numbers.LegacyTimeout:
		if id != 0 {
			return ClassU
		}
	}
	if class := KnownClasses(id); class != ClassUnknown || !slices.Contains(h.Further, id) {
		return class
	}
	return ClassE
}

// Outgoing returns the classes of a message with these options that is protected
// for the next hop, requests and responses alike (OH-32). What is added after
// protecting, an Echo for this address or the like, stays outside by that.
func (h *Hop) Outgoing(options message.Options) Classes {
	p := Placement{NextHop: true, Scheme: hasScheme(options)}
	return func(id message.OptionID) Class {
		class := h.known(id)
		if class != ClassU {
			return class
		}
		return p.Class(id)
	}
}

func hasScheme(options message.Options) bool {
	return wire.Has(options, wire.ProxyScheme) || wire.Has(options, wire.ProxySchemeNumber)
}

// UnprotectRequest is [Context.UnprotectRequest] for a request of the previous
// hop: of what is outside only Uri-Host, Uri-Port and Hop-Limit count, and only
// where there is no such option inside (OH-24). Uri-Host and Uri-Port do not count
// beside a Proxy-Scheme inside: its sender had them inside as well, so that an
// outer one would send the request where an attacker likes.
func (h *Hop) UnprotectRequest(c *Context, m Message, option Option) (Message, *Responder, error) {
	inner, r, err := c.UnprotectRequest(m, option, func(id message.OptionID) Class {
		if id == wire.HopLimit {
			return ClassU
		}
		return ClassE
	})
	if err != nil {
		return inner, r, err
	}
	if !hasScheme(inner.Options) {
		for _, id := range [...]message.OptionID{wire.URIHost, wire.URIPort} {
			if value, ok := wire.First(m.Options, id); ok && !wire.Has(inner.Options, id) {
				inner.Options = insert(inner.Options, message.Option{ID: id, Value: value})
			}
		}
	}
	for _, id := range [...]message.OptionID{h.Numbers.MulticastTimeout, h.Numbers.LegacyTimeout} {
		if id != 0 && wire.Has(inner.Options, id) {
			r.RequirePartialIV() // OH-42
		}
	}
	return inner, r, nil
}

// UnprotectResponse is [Requester.Unprotect] for a response of the next hop:
// nothing that is outside counts (OH-24).
func (h *Hop) UnprotectResponse(r *Requester, m Message) (Message, error) {
	return r.Unprotect(m, func(message.OptionID) Class { return ClassE })
}

// insert puts an option behind all of the same or a lower number.
func insert(options message.Options, o message.Option) message.Options {
	i := len(options)
	for i > 0 && options[i-1].ID > o.ID {
		i--
	}
	return slices.Insert(options, i, o)
}
