// Package packet builds and takes apart the few CoAP messages that the benchmark tools exchange. It is
// written for templates that are built once and patched for every message, and is no codec: the proxy under
// measurement has one, and the tools must not share its mistakes.
package packet

import "encoding/binary"

// Message types (RFC 7252 §3).
const (
	CON = 0
	NON = 1
	ACK = 2
	RST = 3
)

// Codes the tools send or look for (RFC 7252 §12.1).
const (
	Empty   = 0x00
	GET     = 0x01
	Content = 0x45
)

// Option numbers the tools send.
const (
	MulticastTimeout = 2
	Observe          = 6
	URIPath          = 11
	MaxAge           = 14
	URIQuery         = 15
	ProxyURI         = 35
)

// TokenLen is the length of every Token the tools make; the null relays need two bytes of it.
const TokenLen = 4

// Header is the fixed part of a received message and its Token.
type Header struct {
	Type, Code byte
	ID         uint16
	Token      []byte // aliases the message
}

// Parse reads the header of a CoAP message; ok is false when it is none.
func Parse(b []byte) (h Header, ok bool) {
	if len(b) < 4 || b[0]>>6 != 1 {
		return Header{}, false
	}
	n := int(b[0] & 15)
	if n > 8 || len(b) < 4+n {
		return Header{}, false
	}
	return Header{Type: b[0] >> 4 & 3, Code: b[1], ID: binary.BigEndian.Uint16(b[2:]), Token: b[4 : 4+n]}, true
}

// IsRequest reports whether code is that of a request.
func IsRequest(code byte) bool { return code != Empty && code < 0x20 }

// AppendHeader appends a header with the given Token.
func AppendHeader(b []byte, typ, code byte, id uint16, token []byte) []byte {
	b = append(b, 1<<6|typ<<4|byte(len(token)), code, byte(id>>8), byte(id))
	return append(b, token...)
}

// AppendOption appends one option; prev is the number of the one before it, 0 for the first, and not above
// number. The option's number and the length of the value are at most 268.
func AppendOption(b []byte, prev, number int, value []byte) []byte {
	delta, deltaExt := nibble(number - prev)
	length, lengthExt := nibble(len(value))
	b = append(b, delta<<4|length)
	b = append(b, deltaExt...)
	b = append(b, lengthExt...)
	return append(b, value...)
}

func nibble(n int) (nib byte, ext []byte) {
	if n < 13 {
		return byte(n), nil
	}
	return 13, []byte{byte(n - 13)}
}

// FirstOption is the number of a message's first option, of those up to 12; 0 when it has none such.
func FirstOption(message []byte) int {
	h, ok := Parse(message)
	if !ok || len(message) <= 4+len(h.Token) {
		return 0
	}
	if delta := message[4+len(h.Token)] >> 4; delta < 13 {
		return int(delta)
	}
	return 0
}

// SetID writes a Message ID into a message.
func SetID(b []byte, id uint16) { binary.BigEndian.PutUint16(b[2:], id) }

// SetToken writes a Token of TokenLen into a message made with one.
func SetToken(b []byte, token uint32) { binary.BigEndian.PutUint32(b[4:], token) }

// Token returns the Token as SetToken wrote it; ok is false for one of another length.
func Token(h Header) (token uint32, ok bool) {
	if len(h.Token) != TokenLen {
		return 0, false
	}
	return binary.BigEndian.Uint32(h.Token), true
}
