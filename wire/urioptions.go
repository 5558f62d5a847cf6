package wire

import (
	"net/netip"

	"github.com/plgd-dev/go-coap/v3/message"
)

// AppendOptions appends the Uri-* options that, in a request sent to dst, stand
// for a CoAP URI (RFC 7252 §6.4): Uri-Host unless the host is the address of dst
// itself, Uri-Port unless the port is dst's. A request to a group therefore
// carries Uri-Host only for a group that was given by name, and no Uri-Port
// (GC-72). A zone is never written (GP-57).
//
// opts must hold no number above Uri-Host and none of the four. When it has
// other options between 4 and 14 to add, the caller sorts afterwards.
func (u URI) AppendOptions(opts message.Options, dst netip.AddrPort) message.Options {
	switch {
	case !u.Addr.IsValid():
		opts = append(opts, message.Option{ID: URIHost, Value: []byte(u.Host)})
	case u.Addr.WithZone("") != dst.Addr().Unmap().WithZone(""):
		value := appendHost(nil, "", u.Addr.WithZone(""))
		opts = append(opts, message.Option{ID: URIHost, Value: value})
	}
	if u.Port != dst.Port() {
		opts = append(opts, message.Option{ID: URIPort, Value: AppendUint(nil, uint32(u.Port))})
	}
	for _, segment := range u.Path {
		opts = append(opts, message.Option{ID: URIPath, Value: []byte(segment)})
	}
	for _, item := range u.Query {
		opts = append(opts, message.Option{ID: URIQuery, Value: []byte(item)})
	}
	return opts
}

// ExpandPathAbbrev returns the path that a value of the Uri-Path-Abbrev option
// stands for (FP-9, GC-73), or ok = false for a value that is not registered.
// The caller owns the result.
func ExpandPathAbbrev(value uint32) (path []string, ok bool) {
	const wellKnown = ".well-known"
	switch value {
	case 0:
		return []string{wellKnown, "core"}, true
	case 1:
		return []string{wellKnown, "rd"}, true
	case 2:
		return []string{wellKnown, "edhoc"}, true
	case 301:
		return []string{wellKnown, "est", "crts"}, true
	case 302:
		return []string{wellKnown, "est", "sen"}, true
	case 303:
		return []string{wellKnown, "est", "sren"}, true
	case 304:
		return []string{wellKnown, "est", "skg"}, true
	case 305:
		return []string{wellKnown, "est", "skc"}, true
	case 306:
		return []string{wellKnown, "est", "att"}, true
	case 401:
		return []string{wellKnown, "brski", "es"}, true
	case 402:
		return []string{wellKnown, "brski", "rv"}, true
	case 403:
		return []string{wellKnown, "brski", "vs"}, true
	}
	return nil, false
}
