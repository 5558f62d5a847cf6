package wire

import (
	"encoding/binary"
	"errors"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
)

// Option numbers of signaling messages (RFC 8323 §5). Each code has numbers of
// its own, which is why they repeat; as in requests the odd ones are critical.
const (
	CSMMaxMessageSize         message.OptionID = 2 // RFC 8323 §5.3.1
	CSMBlockWiseTransfer      message.OptionID = 4 // RFC 8323 §5.3.2
	PingCustody               message.OptionID = 2 // RFC 8323 §5.4.1, in Pong too
	ReleaseAlternativeAddress message.OptionID = 2 // RFC 8323 §5.5
	ReleaseHoldOff            message.OptionID = 4 // RFC 8323 §5.5
	AbortBadCSMOption         message.OptionID = 2 // RFC 8323 §5.6
)

// BaseMessageSize is the Max-Message-Size of a peer that states none, in bytes
// (RFC 8323 §5.3.1).
const BaseMessageSize = 1152

// ErrIncomplete means that the bytes at hand are not yet a whole frame.
var ErrIncomplete = errors.New("frame is incomplete")

// Lengths above 12 are written in one, two or four further bytes (RFC 8323
// §3.2).
const (
	len8, len8Base   = 13, 13
	len16, len16Base = 14, 269
	len32, len32Base = 15, 65805
)

// FrameLen returns the length in bytes of the frame that data begins with,
// header included: what Max-Message-Size bounds (RFC 8323 §5.3.1). It returns
// ErrIncomplete while the header is cut off, which needs at most 8 bytes, and a
// *FormatError for a reserved token length. The length is what the peer claims:
// compare it with a limit before waiting for that much.
func FrameLen(data []byte) (uint64, error) {
	f, err := readFrame(data)
	if err != nil {
		return 0, err
	}
	return uint64(f.body) + f.content + uint64(f.tokenLen), nil
}

// frame is the header of a frame taken apart.
type frame struct {
	code     int    // where the code stands
	body     int    // where the token begins
	tokenLen int    // bytes
	content  uint64 // bytes of options, payload marker and payload
}

func readFrame(data []byte) (frame, error) {
	if len(data) == 0 {
		return frame{}, ErrIncomplete
	}
	f := frame{code: 1, content: uint64(data[0] >> 4)}
	rest := data[1:]
	switch f.content {
	case len8:
		if len(rest) < 1 {
			return frame{}, ErrIncomplete
		}
		f.code, f.content = 2, len8Base+uint64(rest[0])
	case len16:
		if len(rest) < 2 {
			return frame{}, ErrIncomplete
		}
		f.code, f.content = 3, len16Base+uint64(binary.BigEndian.Uint16(rest))
	case len32:
		if len(rest) < 4 {
			return frame{}, ErrIncomplete
		}
		f.code, f.content = 5, len32Base+uint64(binary.BigEndian.Uint32(rest))
	}
	f.body, f.tokenLen = f.code+1, int(data[0]&0x0f)
	extended := 0
	switch {
	case f.tokenLen > tkl16:
		return frame{}, &FormatError{Reason: "reserved token length"}
	case f.tokenLen == tkl16:
		extended = 2
	case f.tokenLen == tkl8:
		extended = 1
	}
	if len(data) < f.body+extended {
		return frame{}, ErrIncomplete
	}
	switch extended {
	case 1:
		f.tokenLen = tkl8Base + int(data[f.body])
	case 2:
		f.tokenLen = tkl16Base + int(binary.BigEndian.Uint16(data[f.body:]))
	}
	f.body += extended
	return f, nil
}

// DecodeFrame reads one message of a reliable transport (RFC 8323 §3.2); data
// is exactly one frame, see FrameLen. As Decode does it aliases data and leaves
// out option 0. Reliable transports have no message type and no Message ID: Type
// is Confirmable, which is what the request would have been elsewhere, and ID 0.
//
// It returns a *FormatError for everything that is no message. Codes are not
// looked at: an Empty message is valid and means nothing (RFC 8323 §3.4), and
// class 7 are the signaling messages.
func (m *Message) DecodeFrame(data []byte) error {
	f, err := readFrame(data)
	if err != nil {
		return m.badFrame(err)
	}
	if uint64(len(data)) != uint64(f.body)+uint64(f.tokenLen)+f.content {
		return m.badFrame(errLength)
	}
	return m.decodeBody(data, f)
}

// DecodeWebSocket reads one message that fills a WebSocket message (RFC 8323
// §4.2): the frame says nothing of its length, which the header gives as 0.
func (m *Message) DecodeWebSocket(data []byte) error {
	f, err := readFrame(data)
	switch {
	case err != nil:
		return m.badFrame(err)
	case data[0]>>4 != 0:
		return m.badFrame(errLength)
	case len(data) < f.body+f.tokenLen:
		return m.badFrame(ErrIncomplete)
	}
	return m.decodeBody(data, f)
}

var errLength = errors.New("length field does not fit")

func (m *Message) badFrame(err error) error {
	m.Type, m.ID = message.Confirmable, 0
	var f *FormatError
	if errors.As(err, &f) {
		return f
	}
	return m.malformed(err.Error())
}

func (m *Message) decodeBody(data []byte, f frame) error {
	m.reset()
	m.Type, m.ID, m.Code = message.Confirmable, 0, codes.Code(data[f.code])
	if f.tokenLen > 0 {
		m.Token = data[f.body : f.body+f.tokenLen : f.body+f.tokenLen]
	}
	return m.decodeOptions(data[f.body+f.tokenLen:])
}

// AppendFrame appends the message as a reliable transport carries it (RFC 8323
// §3.2); Type and ID are not sent. Options must be sorted (ErrUnsorted). On an
// error buf is returned as it was.
func (m *Message) AppendFrame(buf []byte) ([]byte, error) {
	// The length in front of the message is known after it has been encoded.
	const room = 5
	start := len(buf)
	out, err := m.appendBody(append(buf, make([]byte, room)...))
	if err != nil {
		return buf, err
	}
	var header [room]byte
	n, content := 1, len(out)-start-room-1-extendedToken(len(m.Token))-len(m.Token)
	switch {
	case content >= len32Base:
		if uint64(content) > len32Base+1<<32-1 {
			return buf, errLength
		}
		header[0] = len32 << 4
		binary.BigEndian.PutUint32(header[1:], uint32(content-len32Base))
		n = 5
	case content >= len16Base:
		header[0] = len16 << 4
		binary.BigEndian.PutUint16(header[1:], uint16(content-len16Base))
		n = 3
	case content >= len8Base:
		header[0], header[1] = len8<<4, byte(content-len8Base)
		n = 2
	default:
		header[0] = byte(content) << 4
	}
	header[0] |= tokenNibble(len(m.Token))
	copy(out[start:], header[:n])
	return append(out[:start+n], out[start+room:]...), nil
}

// AppendWebSocket appends the message as one WebSocket message carries it (RFC
// 8323 §4.2). On an error buf is returned as it was.
func (m *Message) AppendWebSocket(buf []byte) ([]byte, error) {
	out, err := m.appendBody(append(buf, tokenNibble(len(m.Token))))
	if err != nil {
		return buf, err
	}
	return out, nil
}

// appendBody appends code, token, options and payload.
func (m *Message) appendBody(out []byte) ([]byte, error) {
	if err := m.encodableFrame(); err != nil {
		return nil, err
	}
	out = append(out, byte(m.Code))
	out = appendToken(out, m.Token)
	return m.appendOptions(out)
}

func (m *Message) encodableFrame() error {
	switch {
	case m.Code > 0xff:
		return errCode
	case len(m.Token) > maxToken:
		return errToken
	}
	return m.sortedOptions()
}

// extendedToken is the number of bytes that the length of a token takes beyond
// the header (RFC 8974 §2.1).
func extendedToken(tokenLen int) int {
	switch {
	case tokenLen >= tkl16Base:
		return 2
	case tokenLen >= tkl8Base:
		return 1
	}
	return 0
}
