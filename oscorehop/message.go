package oscorehop

import (
	"errors"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/wire"
)

// Message is the part of a CoAP message that OSCORE looks at. Type, Message ID
// and Token are not protected and are the caller's (OC-16). Options are sorted by
// number.
//
// Messages that this package returns hold memory of their own, except for the
// values of options that stay outside the layer: those alias the argument.
type Message struct {
	Code    codes.Code
	Options message.Options
	Payload []byte
}

// OnWire is the message to send, without type, Message ID and Token. It shares the
// memory of m.
func (m Message) OnWire() *wire.Message {
	return &wire.Message{Code: m.Code, Options: m.Options, Payload: m.Payload}
}

// wireHeader is how many bytes of a CoAP message without Token precede the bytes
// of a plaintext, when its code is written into the last byte of the Message ID.
// A plaintext is encoded and decoded there by the codec of messages.
const wireHeader = 3

// appendPlaintext encodes code, inner options and payload (OC-10).
func appendPlaintext(code codes.Code, inner message.Options, payload []byte) ([]byte, error) {
	m := wire.Message{Code: code, ID: uint16(code), Options: inner, Payload: payload}
	buf, err := m.Append(make([]byte, 0, wireHeader+64+len(payload)))
	if err != nil {
		return nil, err
	}
	return buf[wireHeader:], nil
}

var (
	errEmptyPlaintext = errors.New("no code")
	errCode           = errors.New("code of the wrong class")
)

// parsePlaintext decodes buf, which holds wireHeader bytes of room before the
// plaintext. The result aliases it.
func parsePlaintext(buf []byte, response bool) (Message, error) {
	if len(buf) <= wireHeader {
		return Message{}, errEmptyPlaintext
	}
	buf[0], buf[1], buf[2] = 1<<6, buf[wireHeader], 0
	var m wire.Message
	if err := m.Decode(buf); err != nil {
		return Message{}, err
	}
	if response && !wire.IsResponse(m.Code) || !response && !wire.IsRequest(m.Code) {
		return Message{}, errCode
	}
	return Message{Code: m.Code, Options: m.Options, Payload: m.Payload}, nil
}
