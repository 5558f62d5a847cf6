// Package wire is the vocabulary of CoAP bytes: messages, option numbers and
// option values, URIs and CRIs, and the address options of group proxying in
// both dialects. It holds no state and opens no sockets; every function may be
// called concurrently.
package wire

import (
	"iter"

	"github.com/plgd-dev/go-coap/v3/message"
)

// CoAP option numbers (IANA "CoAP Option Numbers"; numbers marked "suggested"
// are requested from IANA by a draft, not assigned).
const (
	IfMatch                       message.OptionID = 1    // RFC 7252 §5.10.8.1
	MulticastTimeout              message.OptionID = 2    // draft-ietf-core-groupcomm-proxy-07 §2, suggested (GP-1)
	URIHost                       message.OptionID = 3    // RFC 7252 §5.10.1
	ETag                          message.OptionID = 4    // RFC 7252 §5.10.6
	IfNoneMatch                   message.OptionID = 5    // RFC 7252 §5.10.8.2
	Observe                       message.OptionID = 6    // RFC 7641 §2
	URIPort                       message.OptionID = 7    // RFC 7252 §5.10.1
	LocationPath                  message.OptionID = 8    // RFC 7252 §5.10.7
	OSCORE                        message.OptionID = 9    // RFC 8613 §2
	URIPath                       message.OptionID = 11   // RFC 7252 §5.10.1
	ContentFormat                 message.OptionID = 12   // RFC 7252 §5.10.3
	URIPathAbbrev                 message.OptionID = 13   // draft-ietf-core-uri-path-abbrev, suggested
	MaxAge                        message.OptionID = 14   // RFC 7252 §5.10.5
	URIQuery                      message.OptionID = 15   // RFC 7252 §5.10.1
	HopLimit                      message.OptionID = 16   // RFC 8768 §3
	Accept                        message.OptionID = 17   // RFC 7252 §5.10.4
	FeedbackDivider               message.OptionID = 18   // draft-ietf-core-observe-multicast-notifications, suggested
	QBlock1                       message.OptionID = 19   // RFC 9177 §4.1
	LocationQuery                 message.OptionID = 20   // RFC 7252 §5.10.7
	EDHOC                         message.OptionID = 21   // RFC 9668 §3.1
	Block2                        message.OptionID = 23   // RFC 7959 §2.1
	GroupETag                     message.OptionID = 24   // draft-ietf-core-groupcomm-proxy-07, suggested (GP-1)
	Block1                        message.OptionID = 27   // RFC 7959 §2.1
	Size2                         message.OptionID = 28   // RFC 7959 §4
	QBlock2                       message.OptionID = 31   // RFC 9177 §4.1
	ProxyURI                      message.OptionID = 35   // RFC 7252 §5.10.2
	ProxyScheme                   message.OptionID = 39   // RFC 7252 §5.10.2
	ListenToMulticastResponses    message.OptionID = 47   // draft-ietf-core-multicast-notifications-proxy, suggested
	Size1                         message.OptionID = 60   // RFC 7252 §5.10.9
	ResponseForwarding            message.OptionID = 96   // draft-ietf-core-groupcomm-proxy-00, unassigned (GP-122)
	ProxyCRI                      message.OptionID = 235  // draft-ietf-core-href §8.2.1, suggested
	ProxySchemeNumber             message.OptionID = 239  // draft-ietf-core-href §8.2.2, suggested
	ReplyFrom                     message.OptionID = 248  // draft-ietf-core-groupcomm-proxy-07 §3, suggested (GP-1)
	Echo                          message.OptionID = 252  // RFC 9175 §2.2
	NoResponse                    message.OptionID = 258  // RFC 7967 §2
	RequestTag                    message.OptionID = 292  // RFC 9175 §3.2
	RequestHash                   message.OptionID = 548  // draft-ietf-core-cacheable-oscore, suggested
	OCFAcceptContentFormatVersion message.OptionID = 2049 // Open Connectivity Foundation
	OCFContentFormatVersion       message.OptionID = 2053 // Open Connectivity Foundation
)

// Numbers are the option numbers that a deployment may move, because IANA has
// assigned none of them yet (GP-1).
type Numbers struct {
	MulticastTimeout   message.OptionID
	LegacyTimeout      message.OptionID // second number for Multicast-Timeout in the legacy dialect; 0 = none (GP-127)
	ReplyFrom          message.OptionID
	GroupETag          message.OptionID
	ResponseForwarding message.OptionID // legacy dialect only (GP-122)
}

// DefaultNumbers are the numbers that the drafts suggest, and 96 for
// Response-Forwarding (GP-1, GP-122).
func DefaultNumbers() Numbers {
	return Numbers{
		MulticastTimeout:   MulticastTimeout,
		ReplyFrom:          ReplyFrom,
		GroupETag:          GroupETag,
		ResponseForwarding: ResponseForwarding,
	}
}

// Critical reports whether a recipient that does not understand the option must
// reject the message (RFC 7252 §5.4.1).
func Critical(id message.OptionID) bool { return id&1 != 0 }

// Unsafe reports whether a proxy that does not understand the option must not
// forward the message (RFC 7252 §5.4.2).
func Unsafe(id message.OptionID) bool { return id&2 != 0 }

// NoCacheKey reports whether the option is safe to forward and not part of the
// cache key (RFC 7252 §5.4.6).
func NoCacheKey(id message.OptionID) bool { return id&0x1e == 0x1c }

// Uint reads a uint value (RFC 7252 §3.2). Leading zero bytes are accepted
// (GP-2); ok is false when the value is longer than four bytes.
func Uint(value []byte) (v uint32, ok bool) {
	if len(value) > 4 {
		return 0, false
	}
	for _, b := range value {
		v = v<<8 | uint32(b)
	}
	return v, true
}

// AppendUint appends the shortest form of v; zero is the empty value (GP-2).
func AppendUint(buf []byte, v uint32) []byte {
	switch {
	case v == 0:
		return buf
	case v < 1<<8:
		return append(buf, byte(v))
	case v < 1<<16:
		return append(buf, byte(v>>8), byte(v))
	case v < 1<<24:
		return append(buf, byte(v>>16), byte(v>>8), byte(v))
	}
	return append(buf, byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
}

// First returns the value of the first occurrence of an option.
func First(opts message.Options, id message.OptionID) ([]byte, bool) {
	for i := range opts {
		if opts[i].ID == id {
			return opts[i].Value, true
		}
	}
	return nil, false
}

// Has reports whether an option occurs.
func Has(opts message.Options, id message.OptionID) bool {
	_, ok := First(opts, id)
	return ok
}

// All yields the values of every occurrence of an option, in order.
func All(opts message.Options, id message.OptionID) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for i := range opts {
			if opts[i].ID == id && !yield(opts[i].Value) {
				return
			}
		}
	}
}
