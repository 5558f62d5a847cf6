package oscorehop

import (
	"cmp"
	"errors"
	"slices"

	"github.com/plgd-dev/go-coap/v3/message"

	"coapproxy/wire"
)

var errUserinfo = errors.New("userinfo in a Proxy-Uri cannot be divided between inside and outside")

// splitProxyURI divides a Proxy-Uri that stays outside: its path and query become
// options of their own, which go inside, and the proxy learns scheme, host and
// port only. Where the classes put Proxy-Uri inside, as on a hop, it is left
// whole, because a path beside it would be ignored (OH-36).
func splitProxyURI(options message.Options, classes Classes) (message.Options, error) {
	value, present := wire.First(options, wire.ProxyURI)
	if !present || classes(wire.ProxyURI) != ClassU {
		return options, nil
	}
	u, err := wire.ParseURI(string(value))
	if err != nil {
		return nil, err
	}
	if u.HasUserinfo {
		return nil, errUserinfo
	}
	parts := make(message.Options, 0, len(options)+len(u.Path)+len(u.Query))
	for _, o := range options {
		switch o.ID {
		case wire.ProxyURI, wire.URIHost, wire.URIPort, wire.URIPath, wire.URIQuery:
			// Proxy-Uri takes the place of Uri-* (RFC 7252 §5.10.2).
		default:
			parts = append(parts, o)
		}
	}
	for _, segment := range u.Path {
		parts = append(parts, message.Option{ID: wire.URIPath, Value: []byte(segment)})
	}
	for _, item := range u.Query {
		parts = append(parts, message.Option{ID: wire.URIQuery, Value: []byte(item)})
	}
	parts = append(parts, message.Option{ID: wire.ProxyURI, Value: []byte(u.Scheme + "://" + u.Authority())})
	slices.SortStableFunc(parts, func(a, b message.Option) int { return cmp.Compare(a.ID, b.ID) })
	return parts, nil
}
