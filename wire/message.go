package wire

import (
	"encoding/binary"
	"errors"
	"slices"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
)

// Message is one CoAP message over an unreliable transport (RFC 7252 §3). The
// zero value is ready for use; one Message is meant to be decoded into again
// and again.
type Message struct {
	Type    message.Type // Confirmable, NonConfirmable, Acknowledgement or Reset
	Code    codes.Code
	ID      uint16
	Token   []byte // longer than 8 bytes with extended lengths (RFC 8974 §2.1)
	Options message.Options
	Payload []byte
}

var (
	// ErrVersion means that the datagram has another version number than 1 and
	// must be ignored silently (RFC 7252 §3).
	ErrVersion = errors.New("not CoAP version 1")
	// ErrShort means that the datagram is shorter than the fixed header, so that
	// there is no Message ID to answer to.
	ErrShort = errors.New("datagram shorter than a CoAP header")
	// ErrUnsorted means that options are not in ascending order of their
	// numbers, which the format cannot express (RFC 7252 §3.1).
	ErrUnsorted = errors.New("options not in ascending order")
)

// FormatError is a message format error, or a reserved code class, which RFC
// 7252 §4.2 treats alike. Type and ID are those of the offending message, so
// that a Confirmable one can be rejected with a Reset.
type FormatError struct {
	Type   message.Type
	ID     uint16
	Reason string
}

func (e *FormatError) Error() string { return "message format error: " + e.Reason }

const (
	headerLen     = 4
	payloadMarker = 0xff

	// Token lengths above 12 are written in one or two further bytes (RFC 8974 §2.1).
	tkl8, tkl8Base   = 13, 13
	tkl16, tkl16Base = 14, 269
	maxToken         = tkl16Base + 1<<16 - 1

	firstOptions = 16 // capacity that the first Decode gives m.Options
	keptOptions  = 64 // largest capacity that is kept for the next datagram
)

// Decode reads one datagram. Token, option values and payload alias it: they are
// valid as long as it is, and must not be appended to. The array of m.Options is
// reused, so decoding into the same Message allocates nothing once it has grown.
// Option number 0, reserved and without meaning, is left out.
//
// It returns ErrShort, ErrVersion or a *FormatError; after an error m holds
// nothing of use. Limits on token length and option values are the caller's.
func (m *Message) Decode(datagram []byte) error {
	if len(datagram) < headerLen {
		return ErrShort
	}
	if datagram[0]>>6 != 1 {
		return ErrVersion
	}
	m.Type = message.Type(datagram[0] >> 4 & 3)
	m.Code = codes.Code(datagram[1])
	m.ID = binary.BigEndian.Uint16(datagram[2:])
	m.reset()

	switch m.Code >> 5 {
	case 1, 6, 7:
		return m.malformed("code of a reserved class")
	}
	if m.Code == codes.Empty && (datagram[0]&0x0f != 0 || len(datagram) > headerLen) {
		return m.malformed("Empty message with content") // RFC 7252 §4.1
	}

	data := datagram[headerLen:]
	tokenLen := int(datagram[0] & 0x0f)
	switch {
	case tokenLen == tkl8 && len(data) >= 1:
		tokenLen, data = tkl8Base+int(data[0]), data[1:]
	case tokenLen == tkl16 && len(data) >= 2:
		tokenLen, data = tkl16Base+int(binary.BigEndian.Uint16(data)), data[2:]
	case tokenLen >= tkl8:
		return m.malformed("reserved or truncated token length")
	}
	if len(data) < tokenLen {
		return m.malformed("token truncated")
	}
	if tokenLen > 0 {
		m.Token = data[:tokenLen:tokenLen]
	}
	return m.decodeOptions(data[tokenLen:])
}

// reset forgets what the last decoding left, but for the array of options.
func (m *Message) reset() {
	m.Token, m.Payload = nil, nil
	if cap(m.Options) > keptOptions {
		m.Options = nil
	}
	m.Options = m.Options[:0]
}

// decodeOptions reads what follows the token.
func (m *Message) decodeOptions(data []byte) error {
	n, err := m.unmarshalOptions(data)
	if err != nil {
		return m.malformed(err.Error())
	}
	if n < len(data) {
		m.Payload = data[n:len(data):len(data)]
		return nil
	}
	if n == 0 || data[n-1] != payloadMarker {
		return nil
	}
	// The codec consumes a payload marker without saying so. The last byte is
	// one, and a format error for want of a payload (RFC 7252 §3), exactly if
	// the options are complete without it; otherwise it ends the last value.
	if _, err := m.unmarshalOptions(data[:n-1]); err == nil {
		return m.malformed("payload marker without payload")
	}
	_, err = m.unmarshalOptions(data)
	return err
}

// unmarshalOptions fills m.Options and returns how many bytes options and
// payload marker take. The array grows with the options that data holds, which
// are at most one per byte.
func (m *Message) unmarshalOptions(data []byte) (int, error) {
	for {
		m.Options = m.Options[:0]
		// Without a table of definitions the codec keeps values of every length.
		n, err := m.Options.Unmarshal(data, nil)
		if !errors.Is(err, message.ErrOptionsTooSmall) {
			return n, err
		}
		m.Options = make(message.Options, 0, max(firstOptions, 2*cap(m.Options)))
	}
}

func (m *Message) malformed(reason string) error {
	return &FormatError{Type: m.Type, ID: m.ID, Reason: reason}
}

var (
	errType      = errors.New("message type out of range")
	errCode      = errors.New("message code out of range")
	errToken     = errors.New("token too long")
	errValue     = errors.New("option value too long")
	errEmptyCode = errors.New("message with code 0.00 and content")
)

// Append appends the encoded message to buf. Options must be sorted
// (ErrUnsorted); an empty payload is left out together with its marker. On an
// error buf is returned as it was. Nothing is allocated when buf has room.
func (m *Message) Append(buf []byte) ([]byte, error) {
	if err := m.encodable(); err != nil {
		return buf, err
	}
	first := 1<<6 | byte(m.Type)<<4 | tokenNibble(len(m.Token))
	out := append(buf, first, byte(m.Code), byte(m.ID>>8), byte(m.ID))
	out, err := m.appendOptions(appendToken(out, m.Token))
	if err != nil {
		return buf, err
	}
	return out, nil
}

// tokenNibble is the token length as the header has it.
func tokenNibble(tokenLen int) byte {
	switch {
	case tokenLen >= tkl16Base:
		return tkl16
	case tokenLen >= tkl8Base:
		return tkl8
	}
	return byte(tokenLen)
}

// appendToken appends the extended token length, if it takes one, and the
// token (RFC 8974 §2.1).
func appendToken(out, token []byte) []byte {
	switch tokenNibble(len(token)) {
	case tkl16:
		out = binary.BigEndian.AppendUint16(out, uint16(len(token)-tkl16Base))
	case tkl8:
		out = append(out, byte(len(token)-tkl8Base))
	}
	return append(out, token...)
}

// appendOptions appends what follows the token.
func (m *Message) appendOptions(out []byte) ([]byte, error) {
	n, err := m.Options.Marshal(out[len(out):cap(out)])
	if errors.Is(err, message.ErrTooSmall) {
		out = slices.Grow(out, n+1+len(m.Payload))
		n, err = m.Options.Marshal(out[len(out):cap(out)])
	}
	if err != nil {
		return nil, err
	}
	out = out[:len(out)+n]
	if len(m.Payload) > 0 {
		out = append(out, payloadMarker)
		out = append(out, m.Payload...)
	}
	return out, nil
}

// encodable finds what the format cannot express.
func (m *Message) encodable() error {
	switch {
	case m.Type < message.Confirmable || m.Type > message.Reset:
		return errType
	case m.Code > 0xff:
		return errCode
	case len(m.Token) > maxToken:
		return errToken
	case m.Code == codes.Empty && len(m.Token)+len(m.Options)+len(m.Payload) > 0:
		return errEmptyCode // RFC 7252 §4.1
	}
	return m.sortedOptions()
}

// sortedOptions finds options that the codec would encode wrongly without an
// error.
func (m *Message) sortedOptions() error {
	previous := message.OptionID(0)
	for i := range m.Options {
		if m.Options[i].ID < previous {
			return ErrUnsorted
		}
		if len(m.Options[i].Value) > maxOptionValue {
			return errValue
		}
		previous = m.Options[i].ID
	}
	return nil
}
