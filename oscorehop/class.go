package oscorehop

import (
	"github.com/plgd-dev/go-coap/v3/message"

	"coapproxy/wire"
)

// Class says where in a protected message an option goes (RFC 8613 §4.1).
type Class uint8

// The classes of options.
const (
	// ClassUnknown: a message with such an option is not protected (OH-34); on
	// arrival an outer copy is dropped (OH-23).
	ClassUnknown Class = iota
	// ClassE: inside, encrypted and authenticated. Outer copies are dropped on
	// arrival.
	ClassE
	// ClassU: outside, unprotected.
	ClassU
	// ClassBoth: inside, with an outer instance of another meaning (OC-41). The
	// instances of a message to be protected are the inner ones; Observe gets its
	// outer copy here, outer Block, Max-Age, No-Response and Echo options are added
	// by the caller after protecting. Outer copies are dropped on arrival.
	ClassBoth
)

// Classes decides the class of every option of one message, for one layer. It
// is how a hop applies its U-to-E rule (OH-30).
type Classes func(message.OptionID) Class

// DefaultClasses is the table of OC-40 for a single layer, in which options that
// are not known are Class E (RFC 8613 §4.1).
func DefaultClasses(id message.OptionID) Class {
	if c := KnownClasses(id); c != ClassUnknown {
		return c
	}
	return ClassE
}

// KnownClasses is the table of OC-40 with ClassUnknown for what is not in it, as
// a proxy needs it (OH-34). Numbers that a deployment moves (GP-1) are mapped
// back by the caller.
func KnownClasses(id message.OptionID) Class {
	switch id {
	case wire.IfMatch, wire.ETag, wire.IfNoneMatch, wire.LocationPath, wire.LocationQuery,
		wire.URIPath, wire.URIQuery, wire.URIPathAbbrev, wire.ContentFormat, wire.Accept:
		return ClassE
	case wire.OCFAcceptContentFormatVersion, wire.OCFContentFormatVersion:
		return ClassE // no class in their specification: the default of RFC 8613 §4.1
	case wire.Observe, wire.MaxAge, wire.Block1, wire.Block2, wire.Size1, wire.Size2,
		wire.QBlock1, wire.QBlock2, wire.Echo, wire.NoResponse, wire.RequestTag:
		return ClassBoth
	case wire.URIHost, wire.URIPort, wire.OSCORE, wire.ProxyURI, wire.ProxyScheme, wire.EDHOC,
		wire.RequestHash:
		return ClassU
	case wire.HopLimit, wire.MulticastTimeout, wire.ReplyFrom, wire.GroupETag,
		wire.ProxyCRI, wire.ProxySchemeNumber: // OH-35, GP-11
		return ClassU
	}
	return ClassUnknown
}

// split divides the options of a message to be protected. Both results are
// sorted because the options are.
func split(options message.Options, classes Classes, response bool) (inner, outer message.Options, err error) {
	inner = make(message.Options, 0, len(options))
	outer = make(message.Options, 0, len(options)+1) // room for the OSCORE option
	for _, o := range options {
		switch class := classes(o.ID); {
		case class == ClassUnknown:
			return nil, nil, &UnknownOptionError{ID: o.ID}
		case o.ID == wire.OSCORE && class == ClassU:
			return nil, nil, ErrOutside
		case o.ID == wire.Observe: // OH-47
			outer = append(outer, o)
			if response {
				o.Value = nil
			}
			inner = append(inner, o)
		case class == ClassU:
			outer = append(outer, o)
		default:
			inner = append(inner, o)
		}
	}
	return inner, outer, nil
}

// merge returns the options of a verified message: those inside, and of those
// outside the ones of Class U that are not inside as well.
func merge(inner, outer message.Options, classes Classes) message.Options {
	merged := make(message.Options, 0, len(inner)+len(outer))
	for _, o := range outer {
		// Whatever is not Class U has no business outside (OH-23), and what was
		// authenticated wins over what was not (OH-24).
		for len(inner) > 0 && inner[0].ID < o.ID {
			merged, inner = append(merged, inner[0]), inner[1:]
		}
		if o.ID == wire.OSCORE || o.ID == wire.Observe || classes(o.ID) != ClassU {
			continue
		}
		if len(inner) > 0 && inner[0].ID == o.ID {
			continue
		}
		merged = append(merged, o)
	}
	return append(merged, inner...)
}

// withOSCORE puts the OSCORE option into sorted outer options.
func withOSCORE(outer message.Options, value []byte) message.Options {
	at := len(outer)
	for at > 0 && outer[at-1].ID > wire.OSCORE {
		at--
	}
	outer = append(outer, message.Option{})
	copy(outer[at+1:], outer[at:])
	outer[at] = message.Option{ID: wire.OSCORE, Value: value}
	return outer
}
