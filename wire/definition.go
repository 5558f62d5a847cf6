package wire

import "github.com/plgd-dev/go-coap/v3/message"

// Format is the format of an option value (RFC 7252 §3.2).
type Format uint8

// Option value formats.
const (
	FormatEmpty  Format = iota // zero bytes
	FormatOpaque               // bytes of no common structure
	FormatUint                 // big-endian number, leading zeros left out when written
	FormatString               // UTF-8 text
)

// String names the format as RFC 7252 §3.2 does.
func (f Format) String() string {
	switch f {
	case FormatEmpty:
		return "empty"
	case FormatOpaque:
		return "opaque"
	case FormatUint:
		return "uint"
	case FormatString:
		return "string"
	}
	return "unknown"
}

// Definition says what the value of one option looks like.
type Definition struct {
	Name           string // as registered: "Uri-Path"
	Format         Format
	MinLen, MaxLen int  // bytes, both inclusive
	Repeatable     bool // may occur more than once (RFC 7252 §5.4.5)
}

// Valid reports whether value has a permitted length. An option with a value of
// another length counts as one that is not recognised (FP-22).
func (d Definition) Valid(value []byte) bool {
	return d.MinLen <= len(value) && len(value) <= d.MaxLen
}

// maxOptionValue is the longest option value that the message format can
// express (RFC 7252 §3.1).
const maxOptionValue = 269 + 1<<16 - 1

// lowDefinitions holds the options below 64: those of nearly every message.
// Like every table of this package it is never written to.
var lowDefinitions = [64]Definition{
	IfMatch:                    {"If-Match", FormatOpaque, 0, 8, true},
	MulticastTimeout:           {"Multicast-Timeout", FormatUint, 0, 4, false},
	URIHost:                    {"Uri-Host", FormatString, 1, 255, false},
	ETag:                       {"ETag", FormatOpaque, 1, 8, true},
	IfNoneMatch:                {"If-None-Match", FormatEmpty, 0, 0, false},
	Observe:                    {"Observe", FormatUint, 0, 3, false},
	URIPort:                    {"Uri-Port", FormatUint, 0, 2, false},
	LocationPath:               {"Location-Path", FormatString, 0, 255, true},
	OSCORE:                     {"OSCORE", FormatOpaque, 0, 255, false},
	URIPath:                    {"Uri-Path", FormatString, 0, 255, true},
	ContentFormat:              {"Content-Format", FormatUint, 0, 2, false},
	URIPathAbbrev:              {"Uri-Path-Abbrev", FormatUint, 0, 4, false},
	MaxAge:                     {"Max-Age", FormatUint, 0, 4, false},
	URIQuery:                   {"Uri-Query", FormatString, 0, 255, true},
	HopLimit:                   {"Hop-Limit", FormatUint, 1, 1, false},
	Accept:                     {"Accept", FormatUint, 0, 2, false},
	FeedbackDivider:            {"Feedback-Divider", FormatUint, 0, 1, false},
	QBlock1:                    {"Q-Block1", FormatUint, 0, 3, false},
	LocationQuery:              {"Location-Query", FormatString, 0, 255, true},
	EDHOC:                      {"EDHOC", FormatEmpty, 0, 0, false},
	Block2:                     {"Block2", FormatUint, 0, 3, false},
	GroupETag:                  {"Group-ETag", FormatOpaque, 1, 8, true},
	Block1:                     {"Block1", FormatUint, 0, 3, false},
	Size2:                      {"Size2", FormatUint, 0, 4, false},
	QBlock2:                    {"Q-Block2", FormatUint, 0, 3, true},
	ProxyURI:                   {"Proxy-Uri", FormatString, 1, 1034, false},
	ProxyScheme:                {"Proxy-Scheme", FormatString, 1, 255, false},
	ListenToMulticastResponses: {"Listen-To-Multicast-Responses", FormatOpaque, 3, 1024, false},
	Size1:                      {"Size1", FormatUint, 0, 4, false},
}

// Lookup returns the definition of the option that has number id by default. A
// deployment that moves numbers (GP-1) maps them back first.
func Lookup(id message.OptionID) (Definition, bool) {
	if int(id) < len(lowDefinitions) {
		d := lowDefinitions[id]
		return d, d.Name != ""
	}
	switch id {
	case ResponseForwarding: // GP-120
		return Definition{"Response-Forwarding", FormatOpaque, 10, 25, false}, true
	case ProxyCRI:
		return Definition{"Proxy-Cri", FormatOpaque, 1, 1023, false}, true
	case ProxySchemeNumber:
		return Definition{"Proxy-Scheme-Number", FormatUint, 0, 3, false}, true
	case ReplyFrom: // GP-4
		return Definition{"Reply-From", FormatOpaque, 5, 1034, false}, true
	case Echo:
		return Definition{"Echo", FormatOpaque, 1, 40, false}, true
	case NoResponse: // GC-32
		return Definition{"No-Response", FormatUint, 0, 1, false}, true
	case RequestTag:
		return Definition{"Request-Tag", FormatOpaque, 0, 8, true}, true
	case RequestHash:
		return Definition{"Request-Hash", FormatOpaque, 0, maxOptionValue, false}, true
	case OCFAcceptContentFormatVersion:
		return Definition{"OCF-Accept-Content-Format-Version", FormatUint, 2, 2, false}, true
	case OCFContentFormatVersion:
		return Definition{"OCF-Content-Format-Version", FormatUint, 2, 2, false}, true
	}
	return Definition{}, false
}
