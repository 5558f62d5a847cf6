package wire

import (
	"fmt"
	"strings"

	"github.com/plgd-dev/go-coap/v3/message/codes"
)

// Codes that go-coap does not name.
const (
	FETCH  codes.Code = 5 // RFC 8132 §2
	PATCH  codes.Code = 6 // RFC 8132 §3
	IPATCH codes.Code = 7 // RFC 8132 §3

	Conflict            codes.Code = 4<<5 | 9  // 4.09, RFC 8132 §3.4
	UnprocessableEntity codes.Code = 4<<5 | 22 // 4.22, RFC 8132 §3.4
	HopLimitReached     codes.Code = 5<<5 | 8  // 5.08, RFC 8768 §3
)

// IsRequest reports whether code is a method, known or not (RFC 7252 §12.1).
func IsRequest(code codes.Code) bool { return 1 <= code && code < 1<<5 }

// IsResponse reports whether code is a response code, known or not. Class 3,
// which nothing uses, counts as one (RFC 7252 §12.1).
func IsResponse(code codes.Code) bool { return 2<<5 <= code && code < 6<<5 }

// CodeString returns a code as it is usually written: "2.05 Content",
// "0.05 FETCH", and the number alone when nothing is registered for it.
func CodeString(code codes.Code) string {
	number := fmt.Sprintf("%d.%02d", code>>5, code&0x1f)
	if name := codeName(code); name != "" {
		return number + " " + name
	}
	return number
}

// codeName returns the name in the IANA registry "CoAP Codes", or "".
func codeName(code codes.Code) string {
	switch code {
	case codes.Empty:
		return "Empty"
	case codes.GET:
		return "GET"
	case codes.POST:
		return "POST"
	case codes.PUT:
		return "PUT"
	case codes.DELETE:
		return "DELETE"
	case FETCH:
		return "FETCH"
	case PATCH:
		return "PATCH"
	case IPATCH:
		return "iPATCH"
	case codes.Created:
		return "Created"
	case codes.Deleted:
		return "Deleted"
	case codes.Valid:
		return "Valid"
	case codes.Changed:
		return "Changed"
	case codes.Content:
		return "Content"
	case codes.Continue:
		return "Continue"
	case codes.BadRequest:
		return "Bad Request"
	case codes.Unauthorized:
		return "Unauthorized"
	case codes.BadOption:
		return "Bad Option"
	case codes.Forbidden:
		return "Forbidden"
	case codes.NotFound:
		return "Not Found"
	case codes.MethodNotAllowed:
		return "Method Not Allowed"
	case codes.NotAcceptable:
		return "Not Acceptable"
	case codes.RequestEntityIncomplete:
		return "Request Entity Incomplete"
	case Conflict:
		return "Conflict"
	case codes.PreconditionFailed:
		return "Precondition Failed"
	case codes.RequestEntityTooLarge:
		return "Request Entity Too Large"
	case codes.UnsupportedMediaType:
		return "Unsupported Content-Format"
	case UnprocessableEntity:
		return "Unprocessable Entity"
	case codes.TooManyRequests:
		return "Too Many Requests"
	case codes.InternalServerError:
		return "Internal Server Error"
	case codes.NotImplemented:
		return "Not Implemented"
	case codes.BadGateway:
		return "Bad Gateway"
	case codes.ServiceUnavailable:
		return "Service Unavailable"
	case codes.GatewayTimeout:
		return "Gateway Timeout"
	case codes.ProxyingNotSupported:
		return "Proxying Not Supported"
	case HopLimitReached:
		return "Hop Limit Reached"
	case codes.CSM:
		return "CSM"
	case codes.Ping:
		return "Ping"
	case codes.Pong:
		return "Pong"
	case codes.Release:
		return "Release"
	case codes.Abort:
		return "Abort"
	}
	return ""
}

// ParseMethod returns the method with the given name, in any letter case.
func ParseMethod(name string) (codes.Code, error) {
	for code := codes.GET; code <= IPATCH; code++ {
		if strings.EqualFold(codeName(code), name) {
			return code, nil
		}
	}
	return 0, fmt.Errorf("unknown method %q", name)
}
