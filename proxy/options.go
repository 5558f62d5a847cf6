package proxy

import (
	"github.com/plgd-dev/go-coap/v3/message"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// badOption is the failure for an option that cannot be processed.
func badOption(id message.OptionID, format string, args ...any) *exchange.Failure {
	f := exchange.Failf(exchange.BadOption, format, args...)
	f.Option = id
	return f
}

// understoodInRequest reports whether the proxy knows how to treat an option of
// a request that is not safe to forward (FP-24). numbers holds the options that
// a deployment may have moved, second the further number of Multicast-Timeout,
// 0 for none.
func understoodInRequest(id message.OptionID, numbers *wire.Numbers, second message.OptionID) bool {
	switch id {
	case wire.URIHost, wire.URIPort, wire.URIPath, wire.URIQuery, wire.MaxAge, wire.Observe, wire.Block1, wire.Block2,
		wire.ProxyURI, wire.ProxyScheme, wire.ProxyCRI, wire.ProxySchemeNumber, wire.NoResponse, numbers.MulticastTimeout:
		return true
	}
	return second != 0 && id == second
}

// checkRequestOptions carries out FP-20 and FP-22 on the options of a proxy
// request, to a group as to a server (GC-74): an option that is unsafe to
// forward and not understood, has a value of a length it cannot have, or occurs
// too often, cannot be processed; Q-Block1 and Q-Block2 (GC-53, FP-79) and what
// drafts have for more responses (GC-77) are of this kind. What is safe to
// forward goes through, critical or not (FP-21).
func checkRequestOptions(r *exchange.Request, numbers *wire.Numbers) *exchange.Failure {
	second := legacyTimeout(r.Client, numbers)
	previous := message.OptionID(0)
	for _, o := range r.Options {
		surplus := o.ID == previous
		previous = o.ID
		if o.ID == wire.HopLimit && !surplus && (len(o.Value) != 1 || o.Value[0] == 0) {
			return exchange.Failf(exchange.BadRequest, "Hop-Limit must be 1 to 255") // FP-52
		}
		if !wire.Unsafe(o.ID) {
			continue
		}
		definition, known := definitionOf(o.ID, numbers)
		switch {
		case !known || !understoodInRequest(o.ID, numbers, second):
			return badOption(o.ID, "option %d is not supported", o.ID)
		case !definition.Valid(o.Value):
			return badOption(o.ID, "option %d (%s) has a bad length", o.ID, definition.Name)
		case surplus && !definition.Repeatable:
			return badOption(o.ID, "option %d (%s) is repeated", o.ID, definition.Name)
		}
	}
	return nil
}

// definitionOf looks an option up under the numbers of this deployment (GP-1).
func definitionOf(id message.OptionID, numbers *wire.Numbers) (wire.Definition, bool) {
	switch id {
	case numbers.MulticastTimeout, numbers.LegacyTimeout:
		return wire.Lookup(wire.MulticastTimeout)
	case numbers.ReplyFrom:
		return wire.Lookup(wire.ReplyFrom)
	case numbers.GroupETag:
		return wire.Lookup(wire.GroupETag)
	case numbers.ResponseForwarding:
		return wire.Lookup(wire.ResponseForwarding)
	}
	return wire.Lookup(id)
}

// checkResponse carries out FP-20, FP-22, FP-27 and FP-33 on what came from a
// server: a response the proxy cannot process becomes a 5.02.
func checkResponse(p *exchange.Response) *exchange.Failure {
	if class := p.Code >> 5; class != 2 && class != 4 && class != 5 {
		return exchange.Failf(exchange.BadResponse, "the server answered with code %s", wire.CodeString(p.Code))
	}
	previous := message.OptionID(0)
	for _, o := range p.Options {
		surplus := o.ID == previous
		previous = o.ID
		if !wire.Unsafe(o.ID) {
			continue
		}
		switch o.ID {
		case wire.MaxAge, wire.Observe, wire.Block1, wire.Block2:
			if definition, _ := wire.Lookup(o.ID); definition.Valid(o.Value) && !surplus {
				continue
			}
		}
		return exchange.Failf(exchange.BadResponse, "the server's response has option %d, which cannot be processed", o.ID)
	}
	return nil
}
