package client

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/endpoint"
	"coapproxy/exchange"
	"coapproxy/wire"
)

// Form is how a request names its target.
type Form uint8

// The forms.
const (
	// Direct: Uri-* options alone; the peer is the server or a reverse-proxy.
	Direct Form = iota
	// ProxyURI: Proxy-Uri, as the URI is written.
	ProxyURI
	// ProxyScheme: Proxy-Scheme with all Uri-* options.
	ProxyScheme
	// ProxyCRI: Proxy-Cri.
	ProxyCRI
)

// Request is what Do sends. It is not changed and must not be while Do runs.
type Request struct {
	Method codes.Code
	// URI is the absolute target URI. With ProxyURI and ProxyCRI it may have a
	// scheme that this client does not know.
	URI  string
	Form Form
	// Confirmable sends the request as CON, and as NON otherwise.
	Confirmable bool
	// Timeout is Multicast-Timeout: when present, many responses are taken, for
	// this long (GP-114). With 0 seconds no response is wanted; No-Response 26 is
	// added unless Options have a No-Response (GP-115).
	Timeout exchange.Timeout
	// Observe registers for notifications (RFC 7641).
	Observe bool
	// Options are further ones, in any order.
	Options message.Options
	Payload []byte
	// Wait bounds the wait for a single response, for the first notification, or
	// for the acknowledgement of a group request. 0 stands for 95 s (CON) or 30 s
	// (NON).
	Wait time.Duration
}

// ErrRequest is wrapped by the error for a Request that cannot be sent as it is.
var ErrRequest = errors.New("bad request")

// Patience is how long Do waits for what Wait bounds.
func (r *Request) Patience() time.Duration {
	switch {
	case r.Wait > 0:
		return r.Wait
	case r.Confirmable:
		return 95 * time.Second // above MAX_TRANSMIT_WAIT (RFC 7252 §4.8.2)
	}
	return 30 * time.Second
}

// parsedURI is a target URI as the forms need it.
type parsedURI struct {
	text  string
	known bool // u is valid
	u     wire.URI
}

func (r *Request) parse(scheme string) (parsedURI, error) {
	u, err := wire.ParseURI(r.URI)
	switch {
	case err == nil:
		if r.Form == Direct && u.Scheme != scheme {
			return parsedURI{}, fmt.Errorf("%w: %s needs a proxy, or another client: this one speaks %s", ErrRequest, u.Scheme, scheme)
		}
		return parsedURI{text: r.URI, known: true, u: u}, nil
	case errors.Is(err, wire.ErrScheme) && (r.Form == ProxyURI || r.Form == ProxyCRI):
		return parsedURI{text: r.URI}, nil // the proxy may know better
	}
	return parsedURI{}, fmt.Errorf("%w: %w", ErrRequest, err)
}

// message makes the request to the URI, to be sent to peer.
func (r *Request) message(uri parsedURI, form Form, peer netip.AddrPort, numbers *wire.Numbers) (*wire.Message, error) {
	m := &wire.Message{Type: message.NonConfirmable, Code: r.Method, Payload: r.Payload}
	if r.Confirmable {
		m.Type = message.Confirmable
	}
	add := func(id message.OptionID, value []byte) {
		m.Options = append(m.Options, message.Option{ID: id, Value: value})
	}
	switch form {
	case Direct:
		m.Options = uri.u.AppendOptions(m.Options, peer)
	case ProxyURI:
		add(wire.ProxyURI, []byte(uri.text))
	case ProxyScheme:
		// Host and port are always written: left out, they would mean the proxy
		// itself (FP-4, FP-5).
		m.Options = uri.u.AppendOptions(m.Options, netip.AddrPort{})
		add(wire.ProxyScheme, []byte(uri.u.Scheme))
	case ProxyCRI:
		cri, err := wire.CRIFromURI(uri.text)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrRequest, err)
		}
		add(wire.ProxyCRI, cri.Append(nil))
	}
	if r.Timeout.Present {
		add(numbers.MulticastTimeout, wire.AppendUint(nil, r.Timeout.Seconds))
		if r.Timeout.Seconds == 0 && !wire.Has(r.Options, wire.NoResponse) {
			add(wire.NoResponse, []byte{wire.NoResponseAll}) // GP-115
		}
	}
	if r.Observe {
		add(wire.Observe, nil) // 0: register
	}
	m.Options = append(m.Options, r.Options...)
	slices.SortStableFunc(m.Options, func(a, b message.Option) int { return cmp.Compare(a.ID, b.ID) })
	for _, o := range m.Options {
		switch o.ID {
		case wire.URIHost, wire.ProxyURI, wire.ProxyScheme, wire.ProxyCRI:
			if d, _ := wire.Lookup(o.ID); !d.Valid(o.Value) {
				return nil, fmt.Errorf("%w: %s of %d bytes", ErrRequest, d.Name, len(o.Value))
			}
		}
	}
	return m, nil
}

// silent reports a request that no response whatsoever is wanted for (GP-115).
func (r *Request) silent() bool {
	if !r.Timeout.Present || r.Timeout.Seconds > 0 {
		return false
	}
	value, ok := wire.First(r.Options, wire.NoResponse)
	if !ok {
		return true
	}
	v, _ := wire.Uint(value)
	return v == wire.NoResponseAll
}

// WithTimeout returns the request to send after the response p, a 5.05 that
// asks for a longer Multicast-Timeout. ok is false when p is not that, or asks
// for no more than r had (GP-99).
func (r *Request) WithTimeout(p *Response) (next *Request, ok bool) {
	least, ok := p.MinTimeout()
	if !ok || !r.Timeout.Present || least <= r.Timeout.Seconds {
		return nil, false
	}
	n := *r
	n.Timeout.Seconds = least
	return &n, true
}

// WithEcho returns the request to send after the response p, a 4.01 with an Echo
// challenge to r: the same with the value of the option (RFC 9175 §2.3). ok is
// false when p is not that, or r carried an Echo option already. A challenge of
// one server of a group is none to the whole group request.
func (r *Request) WithEcho(p *Response) (next *Request, ok bool) {
	value, ok := wire.First(p.Options, wire.Echo)
	if !ok || p.Code != codes.Unauthorized || r.Timeout.Present && p.From != nil || wire.Has(r.Options, wire.Echo) {
		return nil, false
	}
	n := *r
	n.Options = append(slices.Clone(r.Options), message.Option{ID: wire.Echo, Value: value})
	return &n, true
}

// way is where a request goes, and in which form.
type way struct {
	peer endpoint.Peer
	form Form
	uri  parsedURI
}

var (
	errNoAddress  = errors.New("its server is not named by an address")
	errOtherPlace = errors.New("its server cannot be asked in the same way")
	errNoIdentity = errors.New("its server is not known")
)

// followUp returns the way for a request to the one server that sent p, a
// response to r (GP-117, GP-118).
func (r *Request) followUp(w way, p *Response) (way, error) {
	if !r.Timeout.Present {
		return w, nil // it was one server from the beginning
	}
	if p.From == nil || !w.uri.known {
		return way{}, errNoIdentity
	}
	server := p.From.Server
	u := w.uri.u
	asked := u.Scheme
	u.Scheme, u.Host, u.Addr, u.Port, u.ExplicitPort = server.Scheme, server.Host, server.Addr, server.Port, server.ExplicitPort
	u.Userinfo, u.HasUserinfo = "", false
	if w.form != Direct { // GP-117
		form := w.form
		if u.Addr.Zone() != "" && form == ProxyScheme {
			form = ProxyCRI // Uri-Host cannot carry the zone (GP-57)
		}
		return way{peer: w.peer, form: form, uri: parsedURI{text: u.String(), known: true, u: u}}, nil
	}
	// GP-118
	if !u.Addr.IsValid() {
		return way{}, errNoAddress
	}
	if u.Scheme != asked || u.Addr.Is4() != w.peer.Addr.Addr().Is4() {
		return way{}, errOtherPlace
	}
	addr := u.Addr.WithZone("")
	if addr.IsLinkLocalUnicast() {
		addr = addr.WithZone(w.peer.Addr.Addr().Zone()) // a zone is of use to its own host only
	}
	peer := endpoint.PeerOf(netip.AddrPortFrom(addr, u.Port))
	if ref := p.From.Ref; ref != nil {
		if ref.Host != "" || ref.Addr.IsValid() {
			u.Host, u.Addr = ref.Host, ref.Addr
			if ref.Port != 0 {
				u.Port = ref.Port
			}
		}
		u.Path = append(slices.Clone(ref.Path), u.Path...)
	}
	return way{peer: peer, form: Direct, uri: parsedURI{text: u.String(), known: true, u: u}}, nil
}
