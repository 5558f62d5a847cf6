package wire

import "errors"

// ErrScheme is wrapped by errors about URIs and CRIs whose scheme is none of
// those of FP-6. The identifier may be right; nothing here can carry it, which
// calls for 5.05 rather than 4.02 (FP-7).
var ErrScheme = errors.New("unsupported URI scheme")

// CRI scheme numbers (FP-6).
const (
	SchemeCoAP     = 0
	SchemeCoAPS    = 1
	SchemeHTTP     = 2
	SchemeHTTPS    = 3
	SchemeCoAPTCP  = 6
	SchemeCoAPSTCP = 7
	SchemeCoAPWS   = 24
	SchemeCoAPSWS  = 25
)

// SchemeNumber returns the CRI scheme number of a scheme given in lower case
// (FP-6).
func SchemeNumber(scheme string) (uint32, bool) {
	switch scheme {
	case "coap":
		return SchemeCoAP, true
	case "coaps":
		return SchemeCoAPS, true
	case "http":
		return SchemeHTTP, true
	case "https":
		return SchemeHTTPS, true
	case "coap+tcp":
		return SchemeCoAPTCP, true
	case "coaps+tcp":
		return SchemeCoAPSTCP, true
	case "coap+ws":
		return SchemeCoAPWS, true
	case "coaps+ws":
		return SchemeCoAPSWS, true
	}
	return 0, false
}

// SchemeName returns the scheme with the given CRI scheme number, in lower case
// (FP-6).
func SchemeName(n uint32) (string, bool) {
	switch n {
	case SchemeCoAP:
		return "coap", true
	case SchemeCoAPS:
		return "coaps", true
	case SchemeHTTP:
		return "http", true
	case SchemeHTTPS:
		return "https", true
	case SchemeCoAPTCP:
		return "coap+tcp", true
	case SchemeCoAPSTCP:
		return "coaps+tcp", true
	case SchemeCoAPWS:
		return "coap+ws", true
	case SchemeCoAPSWS:
		return "coaps+ws", true
	}
	return "", false
}

// DefaultPort returns the default port of a scheme given in lower case (RFC 7252
// §6.1 and §6.2, RFC 8323 §8, RFC 9110 §4.2).
func DefaultPort(scheme string) (uint16, bool) {
	n, ok := SchemeNumber(scheme)
	if !ok {
		return 0, false
	}
	return defaultPort(n)
}

// defaultPort is DefaultPort by scheme number.
func defaultPort(scheme uint32) (uint16, bool) {
	switch scheme {
	case SchemeCoAP, SchemeCoAPTCP:
		return 5683, true
	case SchemeCoAPS, SchemeCoAPSTCP:
		return 5684, true
	case SchemeHTTP, SchemeCoAPWS:
		return 80, true
	case SchemeHTTPS, SchemeCoAPSWS:
		return 443, true
	}
	return 0, false
}

// isCoAPScheme reports whether scheme is one of the CoAP transports, whose URIs
// become options (RFC 7252 §6.4).
func isCoAPScheme(scheme string) bool {
	_, known := SchemeNumber(scheme)
	return known && scheme != "http" && scheme != "https"
}

// SecureScheme reports whether a scheme, in lower case, protects what it carries
// (FP-48, FP-87).
func SecureScheme(scheme string) bool {
	switch scheme {
	case "coaps", "coaps+tcp", "coaps+ws", "https":
		return true
	default:
		return false
	}
}
