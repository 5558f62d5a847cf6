package chain

import (
	"slices"

	"github.com/plgd-dev/go-coap/v3/message"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// maxProxyURI is the greatest length of a Proxy-Uri value, in bytes (FP-3).
const maxProxyURI = 1034

// options returns the options of a request as the next proxy gets them: with the
// target in the form in which the client gave it (FP-39), or in the only one that
// the next proxy understands. They are sorted and alias those of r.
func options(r *exchange.Request, only exchange.Form) message.Options {
	if r.Form == exchange.FormServer {
		return r.Options
	}
	u := wire.URI{Scheme: r.Target.Scheme, Host: r.Target.Host, Port: r.Target.Addr.Port()}
	if u.Host == "" {
		u.Addr = r.Target.Addr.Addr()
	}
	for segment := range wire.All(r.Options, wire.URIPath) {
		u.Path = append(u.Path, string(segment))
	}
	for item := range wire.All(r.Options, wire.URIQuery) {
		u.Query = append(u.Query, string(item))
	}
	if len(u.Path) == 1 && u.Path[0] == "" {
		u.Path = nil // the same URI (RFC 7252 §6.5)
	}
	form := r.Form
	if only != exchange.NoForm {
		form = only
	}
	zoned := u.Addr.Zone() != "" // a zone is never in Uri-Host (GP-57)
	if form == exchange.NoForm || zoned && form != exchange.FormCRI {
		form = exchange.FormURI
	}
	var id message.OptionID
	var value []byte
	kept, written := wire.First(r.Options, wire.ProxyURI) // of an HTTP server, where an encoded delimiter means something else than a plain one
	switch form {
	case exchange.FormCRI:
		var ok bool
		if value, ok = u.AppendProxyCRI(nil); ok {
			id = wire.ProxyCRI
		}
	case exchange.FormURI:
		if value = kept; !written {
			value = []byte(u.String())
		}
		if len(value) <= maxProxyURI {
			id = wire.ProxyURI
		}
	}
	out := make(message.Options, 0, len(r.Options)+4)
	whole := id != 0
	if !whole {
		id, value = wire.ProxyScheme, []byte(u.Scheme)
		if number, ok := wire.SchemeNumber(u.Scheme); ok && form == exchange.FormSchemeNumber {
			id, value = wire.ProxySchemeNumber, wire.AppendUint(nil, number)
		}
	}
	for _, o := range r.Options {
		if o.ID == wire.ProxyURI || whole && (o.ID == wire.URIPath || o.ID == wire.URIQuery) {
			continue // Proxy-Uri and Proxy-Cri override them (FP-2)
		}
		out = append(out, o)
	}
	if !whole {
		out = insert(out, wire.URIHost, host(u))
		out = insert(out, wire.URIPort, wire.AppendUint(nil, uint32(u.Port))) // which the next proxy would take for its own otherwise (FP-5)
	}
	return insert(out, id, value)
}

// host is a host as it stands in Uri-Host.
func host(u wire.URI) []byte {
	u.Port, _ = wire.DefaultPort(u.Scheme)
	return []byte(u.Authority())
}

// withTimeout returns the options with a Multicast-Timeout for the next proxy
// (GP-92, GP-94).
func (h *hop) withTimeout(o message.Options, seconds uint32) message.Options {
	numbers := h.chain.config.Numbers
	id := numbers.MulticastTimeout
	if h.Dialect == exchange.Legacy && numbers.LegacyTimeout != 0 {
		id = numbers.LegacyTimeout // GP-127
	}
	return insert(slices.Clone(o), id, wire.AppendUint([]byte{}, seconds))
}

// insert puts an option behind all of the same or a lower number.
func insert(options message.Options, id message.OptionID, value []byte) message.Options {
	i := len(options)
	for i > 0 && options[i-1].ID > id {
		i--
	}
	return slices.Insert(options, i, message.Option{ID: id, Value: value})
}
