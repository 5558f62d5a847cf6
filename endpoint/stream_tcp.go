package endpoint

import (
	"errors"
	"net"
	"time"

	"coapproxy/wire"
)

// netTransport carries messages over TCP or TLS.
type netTransport struct {
	conn net.Conn
	// raw is conn, or what is under it: closing that never blocks, while TLS
	// wants to say goodbye.
	raw net.Conn

	buf        []byte
	begin, end int // what of buf has been received and not been read
	last       int // length of the message lent by the last read
}

const (
	readBuffer = 4 << 10
	writeChunk = 16 << 10
	discardMax = 4 << 20
)

var errFrameTooBig = errors.New("message too big")

func (t *netTransport) decode(m *wire.Message, frame []byte) error { return m.DecodeFrame(frame) }

func (t *netTransport) encode(m *wire.Message, buf []byte) ([]byte, error) { return m.AppendFrame(buf) }

func (t *netTransport) read(limit int) ([]byte, bool, error) {
	t.begin, t.last = t.begin+t.last, 0
	for {
		frame, err := t.next(limit)
		if err != nil {
			return nil, false, err
		}
		if frame != nil {
			t.last = len(frame)
			n, err := wire.FrameLen(t.buf[t.begin+t.last : t.end])
			return frame, err == nil && n <= uint64(t.end-t.begin-t.last), nil
		}
		if err := t.fill(); err != nil {
			return nil, false, err
		}
	}
}

// next returns the next message, nil while it is incomplete. What can never be
// one is returned as it is, for decode to say why.
func (t *netTransport) next(limit int) ([]byte, error) {
	have := t.buf[t.begin:t.end]
	n, err := wire.FrameLen(have)
	switch {
	case errors.Is(err, wire.ErrIncomplete):
		return nil, nil
	case err != nil:
		return have, nil
	case n > uint64(limit):
		return nil, errFrameTooBig
	case n > uint64(len(have)):
		return nil, nil
	}
	return have[:n:n], nil
}

// fill reads more. The buffer grows with what arrives, not with what a header
// announces, and shrinks again when it is empty.
func (t *netTransport) fill() error {
	switch {
	case t.begin == t.end:
		t.begin, t.end = 0, 0
		if len(t.buf) != readBuffer {
			t.buf = make([]byte, readBuffer)
		}
	case t.end == len(t.buf) && t.begin > 0:
		t.end = copy(t.buf, t.buf[t.begin:t.end])
		t.begin = 0
	case t.end == len(t.buf):
		t.buf = append(t.buf, make([]byte, len(t.buf))...)
	}
	n, err := t.conn.Read(t.buf[t.end:])
	t.end += n
	if n > 0 {
		return nil
	}
	return err
}

func (t *netTransport) write(frames []byte, _ []int, within time.Duration) error {
	for len(frames) > 0 {
		n := min(len(frames), writeChunk)
		if err := t.conn.SetWriteDeadline(time.Now().Add(within)); err != nil {
			return err
		}
		if _, err := t.conn.Write(frames[:n]); err != nil {
			return err
		}
		frames = frames[n:]
	}
	return nil
}

func (t *netTransport) closeWrite(within time.Duration) {
	if c, ok := t.conn.(interface{ CloseWrite() error }); ok {
		_ = t.conn.SetWriteDeadline(time.Now().Add(within))
		_ = c.CloseWrite()
	}
	_ = t.conn.SetReadDeadline(time.Now().Add(within))
}

func (t *netTransport) discard() {
	if len(t.buf) == 0 {
		t.buf = make([]byte, readBuffer)
	}
	for n := 0; n < discardMax; {
		k, err := t.conn.Read(t.buf)
		n += k
		if err != nil {
			return
		}
	}
}

func (t *netTransport) close() { _ = t.raw.Close() }
