// Package coap is the tests' own, plain reading of CoAP messages (RFC 7252 §3,
// RFC 8974 §2.1). It shares nothing with the proxy, so that a mistake there
// cannot hide behind the same mistake here.
package coap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Type is the type of a message (RFC 7252 §3).
type Type uint8

// The message types.
const (
	CON Type = iota
	NON
	ACK
	RST
)

// String returns the name that RFC 7252 gives the type.
func (t Type) String() string { return [...]string{"CON", "NON", "ACK", "RST"}[t&3] }

// Code is a method or a response code: class in the upper three bits, detail
// in the lower five.
type Code uint8

// Methods (RFC 7252 §12.1.1, RFC 8132) and the empty message.
const (
	Empty  Code = 0
	GET    Code = 1
	POST   Code = 2
	PUT    Code = 3
	DELETE Code = 4
	FETCH  Code = 5
	PATCH  Code = 6
)

// CodeOf returns the code written "c.dd".
func CodeOf(class, detail uint8) Code { return Code(class<<5 | detail) }

// String returns the code as "c.dd".
func (c Code) String() string { return fmt.Sprintf("%d.%02d", c>>5, c&0x1f) }

// Message is a CoAP message. Options of one number keep their order.
type Message struct {
	Type    Type
	Code    Code
	ID      uint16
	Token   []byte
	Options []Option
	Payload []byte
}

// Option numbers the tests speak of.
const (
	IfMatch           = 1
	MulticastTimeout  = 2
	URIHost           = 3
	ETag              = 4
	Observe           = 6
	URIPort           = 7
	URIPath           = 11
	ContentFormat     = 12
	URIPathAbbrev     = 13
	MaxAge            = 14
	URIQuery          = 15
	HopLimit          = 16
	Accept            = 17
	Block2            = 23
	GroupETag         = 24
	Block1            = 27
	ProxyURI          = 35
	ProxyScheme       = 39
	Size1             = 60
	ForwardingOld     = 96 // Response-Forwarding of the texts of 2020
	ProxyCRI          = 235
	ProxySchemeNumber = 239
	ReplyFrom         = 248
	NoResponse        = 258
	RequestTag        = 292
)

// Option is one option.
type Option struct {
	Number uint16
	Value  []byte
}

// Opt returns an option with a text or bytes as its value.
func Opt[V string | []byte](number uint16, value V) Option { return Option{number, []byte(value)} }

// Uint returns an option with the shortest form of a number (RFC 7252 §3.2).
func Uint(number uint16, v uint32) Option {
	b := binary.BigEndian.AppendUint32(nil, v)
	for len(b) > 0 && b[0] == 0 {
		b = b[1:]
	}
	return Option{number, b}
}

// Uint returns the value of the option as a number.
func (o Option) Uint() uint64 {
	var v uint64
	for _, b := range o.Value {
		v = v<<8 | uint64(b)
	}
	return v
}

// String returns number and value, the value as text when it is one.
func (o Option) String() string {
	if len(o.Value) > 0 && !slices.ContainsFunc(o.Value, func(b byte) bool { return b < 0x20 || b > 0x7e }) {
		return fmt.Sprintf("%d:%q", o.Number, o.Value)
	}
	return fmt.Sprintf("%d:%x", o.Number, o.Value)
}

// All returns the values of all options of a number.
func (m *Message) All(number uint16) [][]byte {
	var out [][]byte
	for _, o := range m.Options {
		if o.Number == number {
			out = append(out, o.Value)
		}
	}
	return out
}

// Option returns the first option of a number.
func (m *Message) Option(number uint16) (Option, bool) {
	for _, o := range m.Options {
		if o.Number == number {
			return o, true
		}
	}
	return Option{}, false
}

// Has reports whether there is an option of a number.
func (m *Message) Has(number uint16) bool { _, ok := m.Option(number); return ok }

// Path returns the Uri-Path as it is written in a URI: "" without any.
func (m *Message) Path() string {
	var b strings.Builder
	for _, segment := range m.All(URIPath) {
		b.WriteByte('/')
		b.Write(segment)
	}
	return b.String()
}

// String describes the message in one line, for the log of a failed test.
func (m *Message) String() string {
	return fmt.Sprintf("%v %v id=%d token=%x options=%v payload=%q", m.Type, m.Code, m.ID, m.Token, m.Options, m.Payload)
}

// Bytes encodes the message, its options sorted by number.
func (m *Message) Bytes() []byte {
	nibble, extended := extend(len(m.Token))
	b := []byte{1<<6 | byte(m.Type)<<4 | nibble, byte(m.Code)}
	b = binary.BigEndian.AppendUint16(b, m.ID)
	b = append(append(b, extended...), m.Token...)
	options := slices.Clone(m.Options)
	slices.SortStableFunc(options, func(x, y Option) int { return int(x.Number) - int(y.Number) })
	previous := uint16(0)
	for _, o := range options {
		delta, moreDelta := extend(int(o.Number - previous))
		length, moreLength := extend(len(o.Value))
		b = append(b, delta<<4|length)
		b = append(append(append(b, moreDelta...), moreLength...), o.Value...)
		previous = o.Number
	}
	if len(m.Payload) > 0 {
		b = append(append(b, 0xff), m.Payload...)
	}
	return b
}

// extend splits a number into a nibble and what follows it (RFC 7252 §3.1).
func extend(n int) (nibble byte, more []byte) {
	switch {
	case n < 13:
		return byte(n), nil
	case n < 269:
		return 13, []byte{byte(n - 13)}
	default:
		return 14, binary.BigEndian.AppendUint16(nil, uint16(n-269))
	}
}

// reader takes a message apart.
type reader struct {
	data []byte
	err  error
}

var errShort = errors.New("message ends early")

func (r *reader) take(n int) []byte {
	if r.err != nil || n > len(r.data) {
		r.err = errors.Join(r.err, errShort)
		return make([]byte, n)
	}
	out := r.data[:n]
	r.data = r.data[n:]
	return out
}

func (r *reader) extended(nibble byte) int {
	switch nibble {
	case 13:
		return int(r.take(1)[0]) + 13
	case 14:
		return int(binary.BigEndian.Uint16(r.take(2))) + 269
	case 15:
		r.err = errors.Join(r.err, errors.New("reserved length"))
	}
	return int(nibble)
}

// Parse decodes a message. It is strict: what RFC 7252 calls a format error is
// an error here. The message owns its bytes.
func Parse(data []byte) (*Message, error) {
	r := &reader{data: slices.Clone(data)}
	head := r.take(4)
	if r.err == nil && head[0]>>6 != 1 {
		return nil, fmt.Errorf("version %d", head[0]>>6)
	}
	m := &Message{Type: Type(head[0] >> 4 & 3), Code: Code(head[1]), ID: binary.BigEndian.Uint16(head[2:])}
	m.Token = r.take(r.extended(head[0] & 15))
	if m.Code == Empty && len(data) != 4 {
		return nil, errors.New("empty message with content")
	}
	number := 0
	for r.err == nil && len(r.data) > 0 {
		b := r.take(1)[0]
		if b == 0xff {
			if m.Payload = r.data; len(m.Payload) == 0 {
				return nil, errors.New("payload marker without payload")
			}
			break
		}
		if number += r.extended(b >> 4); number > 0xffff {
			return nil, errors.New("option number above 65535")
		}
		length := r.extended(b & 15)
		m.Options = append(m.Options, Option{uint16(number), r.take(length)})
	}
	if r.err != nil {
		return nil, r.err
	}
	return m, nil
}
