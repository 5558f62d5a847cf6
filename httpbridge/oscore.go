package httpbridge

import (
	"encoding/base64"
	"mime"
	"net/http"

	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// OSCORE over HTTP (RFC 8613 §11; HC-107, OH-77): a request that its client has
// protected for the server goes through as it is, and so does the response. Layers
// for this proxy itself are not served here; TLS does that.

const (
	fieldOSCORE = "Oscore" // in the canonical form of net/http
	mediaOSCORE = "application/oscore"
	// emptyOSCORE stands for an option without any byte.
	emptyOSCORE = "AA"
)

// readOSCORE reads the OSCORE field. Together with it there is nothing that the
// proxy would have to understand.
func (q *query) readOSCORE() *problem {
	values, contentType := q.r.Header[fieldOSCORE], first(q.r.Header, "Content-Type")
	if len(values) == 0 && contentType == "" {
		return nil
	}
	mediaType, _, _ := mime.ParseMediaType(contentType)
	switch {
	case len(values) == 0 && (mediaType != mediaOSCORE || !q.call.front.OSCORE):
		return nil
	case len(values) == 0:
		return refuse(http.StatusBadRequest, "application/oscore needs an OSCORE field", "")
	case !q.call.front.OSCORE:
		return refuse(http.StatusNotImplemented, "OSCORE over HTTP is not enabled", "http.oscore in the configuration of the proxy enables it")
	case q.r.Method != http.MethodPost:
		return refuse(http.StatusBadRequest, "a request protected with OSCORE is a POST", "")
	case mediaType != mediaOSCORE:
		return refuse(http.StatusUnsupportedMediaType, "a request protected with OSCORE is of the type application/oscore", "")
	case len(values) > 1:
		return refuse(http.StatusBadRequest, "several OSCORE fields", "")
	}
	value, err := parseOSCORE(values[0])
	if err != nil {
		return refuse(http.StatusBadRequest, "the OSCORE field is not base64url without padding", "")
	}
	q.protected, q.accept = true, nil
	q.add(wire.OSCORE, value)
	return nil
}

// parseOSCORE reads the value of an OSCORE field: that of the option in base64url,
// or AA for an empty one.
func parseOSCORE(field string) ([]byte, error) {
	if field == emptyOSCORE {
		return []byte{}, nil
	}
	value, err := base64.RawURLEncoding.Strict().DecodeString(field)
	if err == nil && (len(value) == 0 || len(value) > 255) {
		err = base64.CorruptInputError(0)
	}
	return value, err
}

func formatOSCORE(option []byte) string {
	if len(option) == 0 {
		return emptyOSCORE
	}
	return base64.RawURLEncoding.EncodeToString(option)
}

// protectedAnswer is the answer for a protected response, which is 200 whatever is
// inside; ok is false for a response that is not protected, an error of somebody on
// the way.
func protectedAnswer(p *exchange.Response, fields http.Header) (answer, bool) {
	option, ok := wire.First(p.Options, wire.OSCORE)
	if !ok || p.Code != codes.Changed && p.Code != codes.Content {
		return answer{}, false
	}
	fields[fieldOSCORE] = []string{formatOSCORE(option)}
	fields["Content-Type"] = []string{mediaOSCORE}
	return answer{status: http.StatusOK, fields: fields, body: p.Payload}, true
}
