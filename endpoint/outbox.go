package endpoint

import (
	"errors"
	"net"
	"os"
	"sync"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// outbox gathers the datagrams of one packet connection until the next flush.
type outbox struct {
	conn   PacketConn
	engine *exchange.Engine
	stats  *Stats
	// failed is told about a datagram that could not be sent; under no lock
	// but the one that serialises writes, so it must not flush.
	failed func(d *Datagram, err error)

	mu    sync.Mutex // guards queue
	queue []Datagram // Data is owned, its capacity is used again

	writing sync.Mutex // held across the system call; taken before mu
	spare   []Datagram
}

const (
	slotSize    = 256      // first capacity of a slot, grows to what is needed
	slotKeep    = 8 << 10  // a slot that grew beyond it is not kept
	outboxLimit = 16 << 10 // datagrams that may wait while another goroutine is writing
)

// put encodes m into the queue. It returns the encoded bytes, valid until the
// next flush, for a caller that must keep a copy.
func (o *outbox) put(peer Peer, path Path, m *wire.Message, keep func(encoded []byte)) error {
	return o.append(peer, path, func(buf []byte) ([]byte, error) { return m.Append(buf) }, keep)
}

// putBytes queues an already encoded message.
func (o *outbox) putBytes(peer Peer, path Path, encoded []byte) error {
	return o.append(peer, path, func(buf []byte) ([]byte, error) { return append(buf, encoded...), nil }, nil)
}

func (o *outbox) append(peer Peer, path Path, encode func([]byte) ([]byte, error), keep func([]byte)) error {
	o.mu.Lock()
	n := len(o.queue)
	if n >= outboxLimit {
		o.mu.Unlock()
		o.stats.SendDropped.Add(1)
		return errOutboxFull
	}
	if n < cap(o.queue) {
		o.queue = o.queue[:n+1]
	} else {
		o.queue = append(o.queue, Datagram{})
	}
	d := &o.queue[n]
	if d.Data == nil {
		d.Data = make([]byte, 0, slotSize)
	}
	data, err := encode(d.Data[:0])
	if err != nil {
		o.queue = o.queue[:n]
		o.mu.Unlock()
		return err
	}
	d.Peer, d.Path, d.Data = peer, path, data
	if keep != nil {
		keep(data)
	}
	o.mu.Unlock()
	switch n {
	case 0:
		o.engine.MarkDirty(o)
	case BatchSize - 1:
		o.Flush()
	}
	return nil
}

var errOutboxFull = errors.New("send queue is full")

// Flush implements exchange.Flusher.
func (o *outbox) Flush() {
	o.writing.Lock()
	defer o.writing.Unlock()
	o.mu.Lock()
	batch := o.queue
	o.queue, o.spare = o.spare[:0], nil
	o.mu.Unlock()
	for rest := batch; len(rest) > 0; {
		n, err := o.conn.WriteBatch(rest[:min(len(rest), BatchSize)])
		o.stats.Sent.Add(uint64(n))
		rest = rest[n:]
		if err == nil || len(rest) == 0 {
			continue
		}
		if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) {
			o.stats.SendDropped.Add(uint64(len(rest)))
			break
		}
		o.stats.SendFailed.Add(1)
		if o.failed != nil {
			o.failed(&rest[0], err)
		}
		rest = rest[1:]
	}
	for i := range batch {
		if cap(batch[i].Data) > slotKeep {
			batch[i].Data = nil
		}
		batch[i].Peer = Peer{}
	}
	if cap(batch) <= 4*BatchSize {
		o.spare = batch[:0]
	}
}
