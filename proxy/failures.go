package proxy

import (
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// failureCodes is the one place where a reason becomes a response code.
var failureCodes = [exchange.Reasons]codes.Code{
	exchange.Internal:         codes.InternalServerError,
	exchange.BadRequest:       codes.BadRequest,
	exchange.TimeoutMissing:   codes.BadRequest,
	exchange.TokenReused:      codes.BadRequest,
	exchange.Denied:           codes.Unauthorized,
	exchange.BadOption:        codes.BadOption,
	exchange.NotFound:         codes.NotFound,
	exchange.MethodNotAllowed: codes.MethodNotAllowed,
	exchange.Incomplete:       codes.RequestEntityIncomplete,
	exchange.TooLarge:         codes.RequestEntityTooLarge,
	exchange.TooManyRequests:  codes.TooManyRequests,
	exchange.GroupsDisabled:   codes.NotImplemented,
	exchange.Unreachable:      codes.BadGateway,
	exchange.BadResponse:      codes.BadGateway,
	exchange.Overloaded:       codes.ServiceUnavailable,
	exchange.NoAnswer:         codes.GatewayTimeout,
	exchange.NotProxied:       codes.ProxyingNotSupported,
	exchange.TimeoutTooShort:  codes.ProxyingNotSupported,
	exchange.HopLimitReached:  wire.HopLimitReached,
}

// failureResponse makes the response for a failure. Its options are sorted.
func failureResponse(f *exchange.Failure, numbers *wire.Numbers) *exchange.Response {
	p := &exchange.Response{Code: failureCodes[f.Reason], Payload: []byte(f.Detail)}
	var maxAge []byte
	hasMaxAge := false
	switch f.Reason {
	case exchange.TimeoutMissing:
		p.Options = append(p.Options, message.Option{ID: numbers.MulticastTimeout, Value: []byte{}}) // GP-26
	case exchange.TimeoutTooShort:
		p.Options = append(p.Options, message.Option{ID: numbers.MulticastTimeout, Value: wire.AppendUint(nil, f.MinTimeout)}) // GP-96
	case exchange.Overloaded, exchange.TooManyRequests:
		seconds := (f.RetryAfter + time.Second - 1) / time.Second
		maxAge, hasMaxAge = wire.AppendUint(nil, uint32(max(seconds, 1))), true // FP-34, FP-37
	case exchange.Denied, exchange.BadRequest, exchange.TokenReused, exchange.GroupsDisabled, exchange.NotProxied,
		exchange.MethodNotAllowed:
		hasMaxAge = true // GP-27, GC-70; where Multicast-Timeout is in the response, it does this
	case exchange.TooLarge:
		if f.Limit > 0 {
			p.Options = append(p.Options, message.Option{ID: wire.Size1, Value: wire.AppendUint(nil, f.Limit)}) // GC-52
		}
	}
	if hasMaxAge {
		p.Options = insertOption(p.Options, wire.MaxAge, maxAge)
	}
	return p
}

// challengeResponse makes the response that asks for an Echo (FP-81).
func challengeResponse(value []byte) *exchange.Response {
	return &exchange.Response{Code: codes.Unauthorized, Options: message.Options{
		{ID: wire.MaxAge, Value: []byte{}}, {ID: wire.Echo, Value: value}}} // GP-27
}

// notDone says of which failures it is certain that the request was not carried
// out, not even by a server.
var notDone = [exchange.Reasons]bool{exchange.BadRequest: true, exchange.TimeoutMissing: true, exchange.TokenReused: true,
	exchange.Denied: true, exchange.BadOption: true, exchange.NotFound: true, exchange.MethodNotAllowed: true,
	exchange.TooManyRequests: true, exchange.GroupsDisabled: true, exchange.NotProxied: true}

// insertOption puts an option behind all of the same or a lower number.
func insertOption(options message.Options, id message.OptionID, value []byte) message.Options {
	i := len(options)
	for i > 0 && options[i-1].ID > id {
		i--
	}
	options = append(options, message.Option{})
	copy(options[i+1:], options[i:])
	options[i] = message.Option{ID: id, Value: value}
	return options
}
