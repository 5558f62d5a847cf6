package proxy

import (
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// Local is the handler of requests for the proxy itself.
type Local struct{}

// Exchange implements exchange.Handler.
func (Local) Exchange(r *exchange.Request, w exchange.Sink) exchange.Canceler {
	path := ""
	for segment := range wire.All(r.Options, wire.URIPath) {
		path += "/" + string(segment)
	}
	switch {
	case path != "/.well-known/core":
		return exchange.Fail(w, exchange.Failf(exchange.NotFound, "this is a proxy; name a target with Proxy-Uri or Proxy-Scheme"))
	case r.Method != codes.GET:
		return exchange.Fail(w, exchange.Failf(exchange.MethodNotAllowed, "only GET"))
	case !accepts(r.Options, linkFormat):
		w.Respond(&exchange.Response{Code: codes.NotAcceptable, Payload: []byte("only application/link-format")})
		w.End(nil)
		return exchange.Ended{}
	}
	// Nothing is offered here yet: an empty list of links (RFC 6690).
	w.Respond(&exchange.Response{Code: codes.Content,
		Options: message.Options{{ID: wire.ContentFormat, Value: []byte{linkFormat}}}})
	w.End(nil)
	return exchange.Ended{}
}

const linkFormat = 40 // application/link-format

// accepts reports whether a client takes a content format (RFC 7252 §5.10.4).
func accepts(options message.Options, format uint32) bool {
	value, ok := wire.First(options, wire.Accept)
	if !ok {
		return true
	}
	wanted, _ := wire.Uint(value)
	return wanted == format
}
