package proxy

import (
	"encoding/binary"

	"github.com/plgd-dev/go-coap/v3/message"
)

// Concise problem details (RFC 9290 §2): a CBOR map with one entry.
const (
	problemTitle       = 0x20 // key -1: title, a text
	problemUnprocessed = 0x27 // key -8: unprocessed-coap-option, a number
)

func appendProblemTitle(buf []byte, title string) []byte {
	buf = append(buf, 0xa1, problemTitle)
	return append(appendCBORHead(buf, 0x60, uint16(len(title))), title...)
}

func appendProblemOption(buf []byte, id message.OptionID) []byte {
	return appendCBORHead(append(buf, 0xa1, problemUnprocessed), 0x00, uint16(id))
}

func appendCBORHead(buf []byte, major byte, n uint16) []byte {
	switch {
	case n < 24:
		return append(buf, major|byte(n))
	case n < 256:
		return append(buf, major|24, byte(n))
	default:
		return binary.BigEndian.AppendUint16(append(buf, major|25), n)
	}
}
