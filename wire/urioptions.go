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

// ComposeURI makes the target URI of a request from its Uri-* options (RFC 7252
// §6.5). scheme, one of FP-6 in lower case, is that of Proxy-Scheme(-Number), or
// that of the transport. What Uri-Host and Uri-Port do not say comes from dst,
// the address that the request was sent to (FP-4); no default port is assumed
// (FP-5).
//
// The error is a *URIError: for ErrScheme, a host that ParseHost refuses, a port
// that is 0 or no uint16, a segment or query item that is too long or not UTF-8.
// Only the first Uri-Host and Uri-Port are read; surplus ones are for the caller
// to refuse (FP-22).
func ComposeURI(scheme string, opts message.Options, dst netip.AddrPort) (URI, error) {
	defaultPort, ok := DefaultPort(scheme)
	if !ok {
		return URI{}, &URIError{URI: scheme, Reason: ErrScheme.Error(), Err: ErrScheme}
	}
	u := URI{Scheme: scheme, Addr: dst.Addr().Unmap(), Port: dst.Port()}
	if host, ok := First(opts, URIHost); ok {
		var err error
		if u.Host, u.Addr, err = ParseHost(string(host)); err != nil {
			return URI{}, err
		}
	}
	if value, ok := First(opts, URIPort); ok {
		port, ok := Uint(value)
		if !ok || port == 0 || port > 0xffff {
			return URI{}, &URIError{URI: scheme, Reason: "port outside 1 to 65535"}
		}
		u.Port = uint16(port)
	}
	u.ExplicitPort = u.Port != defaultPort
	for i := range opts {
		var list *[]string
		switch opts[i].ID {
		case URIPath:
			list = &u.Path
		case URIQuery:
			list = &u.Query
		default:
			continue
		}
		item := string(opts[i].Value)
		if reason := u.checkItem(item); reason != "" {
			return URI{}, &URIError{URI: item, Reason: reason}
		}
		*list = append(*list, item)
	}
	if len(u.Path) == 1 && u.Path[0] == "" {
		u.Path = nil // the same URI (RFC 7252 §6.5 step 7)
	}
	return u, nil
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
