package endpoint

import (
	"bytes"
	"encoding/binary"
	"hash/maphash"
	"net/netip"
	"sync"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/wire"
)

// DedupLimits bound the memory of received messages (FP-90).
type DedupLimits struct {
	// Idempotent is how many finished idempotent requests and received
	// responses are remembered; the oldest is forgotten first.
	Idempotent int
	// NonIdempotent is how many POST, PATCH and unknown requests are
	// remembered; further ones are refused. One peer, an IPv6 one by the first 64
	// bits of its address, has a quarter of them at most, or 256.
	NonIdempotent int
	// ReplyBytes bounds the stored replies of each of the two kinds.
	ReplyBytes int
	// Shortly is how long a finished idempotent request is remembered: MAX_TRANSMIT_SPAN
	// (RFC 7252 §4.8.2), as long as its client may repeat it. Done anew, the last block of a
	// body would be one whose predecessors are gone.
	Shortly time.Duration
}

// DefaultDedupLimits returns the documented defaults.
func DefaultDedupLimits() DedupLimits {
	return DedupLimits{Idempotent: 16384, NonIdempotent: 65536, ReplyBytes: 8 << 20, Shortly: 45 * time.Second}
}

// messageKey tells a message by the other endpoint and its Message ID
// (RFC 7252 §4.5). It holds no pointers, so that large tables of keys cost the
// garbage collector nothing; a zone is represented by a hash.
type messageKey struct {
	high, low uint64
	zone      uint64
	port, id  uint16
}

var zoneSeed = maphash.MakeSeed() // a constant of the process

func keyOf(peer netip.AddrPort, id uint16) messageKey {
	if peer.Addr().Is4() {
		a := peer.Addr().As4()
		return messageKey{low: mapped | uint64(binary.BigEndian.Uint32(a[:])), port: peer.Port(), id: id}
	}
	a := peer.Addr().As16()
	k := messageKey{high: binary.BigEndian.Uint64(a[:8]), low: binary.BigEndian.Uint64(a[8:]), port: peer.Port(), id: id}
	if zone := peer.Addr().Zone(); zone != "" {
		k.zone = maphash.String(zoneSeed, zone)
	}
	return k
}

// mapped is what an IPv4 address has before it as an IPv6 one.
const mapped = 0xffff << 32

// receivedKey is the key of a received message. To a peer, each address of a
// wildcard connection is an endpoint of its own, with Message IDs of its own
// (RFC 7252 §4.4).
func receivedKey(peer netip.AddrPort, local netip.Addr, id uint16) messageKey {
	k := keyOf(peer, id)
	switch {
	case local.Is4():
		a := local.As4()
		k.zone ^= uint64(binary.BigEndian.Uint32(a[:]))
	case local.IsValid():
		a := local.As16()
		k.zone ^= maphash.Bytes(zoneSeed, a[:])
	}
	return k
}

// peerShare is what of a key stands for one peer where room is shared out. A DTLS
// session, whose key is under 100::/64, stands for itself.
type peerShare struct{ high, low uint64 }

func (k *messageKey) share() peerShare {
	const sessions = 0x0100_0000_0000_0000
	if k.high == 0 || k.high == sessions {
		return peerShare{k.high, k.low}
	}
	return peerShare{high: k.high}
}

// lifetime is a queue of remembered messages that leave in the order they came.
type lifetime uint8

const (
	shortly     lifetime = iota // finished idempotent requests
	nonRequest                  // non-idempotent NON requests
	conRequest                  // non-idempotent CON requests
	nonResponse                 // NON responses
	conResponse                 // CON responses
	lifetimes   = iota
	unqueued    = lifetimes // requests under way that are in no queue
)

// remembered is a message. There are no pointers in it, for the garbage collector,
// and an entry of the table with its key fills one cache line.
type remembered struct {
	expires int64  // nanoseconds since the table's epoch
	reply   int32  // in replies
	next    handle // in its queue
	prev    handle
	size    uint16 // of the message in bytes, 65535 for more
	life    lifetime
	flags   dedupFlags
}

// span is how long a peer may repeat a message (RFC 7252 §4.8.2).
func span(confirmable bool) time.Duration {
	if confirmable {
		return ExchangeLifetime
	}
	return NonLifetime
}

type dedupFlags uint8

const (
	flagDone     dedupFlags = 1 << iota // answered
	flagAcked                           // an empty ACK was sent
	flagRefused                         // a RST was sent
	flagOutdated                        // the key belongs to a newer message
)

// dedup remembers received messages. Each lifetime is constant, so entries
// leave in the order they came and nothing is ever scanned. A handle is good
// until the entry is forgotten, which is never before the request is finished.
//
// Requests under way are bounded by whoever carries them out, everything else
// by the limits.
type dedup struct {
	limits DedupLimits
	stats  *Stats
	epoch  time.Time

	mu     sync.Mutex
	peers  map[peerShare]int // non-idempotent requests of each
	table  keyTable[remembered]
	stored replies
	queues [lifetimes]queue
}

type queue struct {
	first, last handle
	count       int
	bytes       int
}

func newDedup(limits DedupLimits, stats *Stats) *dedup {
	d := &dedup{limits: limits, stats: stats, epoch: time.Now(), table: newKeyTable[remembered](), peers: make(map[peerShare]int)}
	for i := range d.queues {
		d.queues[i] = queue{first: none, last: none}
	}
	return d
}

// isIdempotent sorts requests by FP-90; it is false for unknown methods.
func isIdempotent(method codes.Code) bool {
	switch method {
	case codes.GET, codes.PUT, codes.DELETE, wire.FETCH, wire.IPATCH:
		return true
	}
	return false
}

// share is how many non-idempotent requests of one peer are remembered: a quarter
// of all, but where that is few.
func (d *dedup) share() int { return max(d.limits.NonIdempotent/4, min(d.limits.NonIdempotent, 256)) }

type dedupVerdict uint8

const (
	fresh dedupVerdict = iota
	duplicate
	refused // the table of non-idempotent requests is full
)

// earlier is what is remembered of a repeated message.
type earlier struct {
	flags dedupFlags
	reply []byte // what a repeated CON request gets, owned; nil: an empty ACK or nothing
	size  int
}

// begin remembers a request, or says what is remembered of it. A message that
// outlasts the lifetime of its Message ID is no longer taken for a repetition,
// even if the request it repeats the ID of is still under way.
func (d *dedup) begin(key messageKey, method codes.Code, confirmable bool, size int, now time.Time) (handle, earlier, dedupVerdict) {
	d.mu.Lock()
	defer d.mu.Unlock()
	at := now.Sub(d.epoch)
	d.expire(int64(at))
	hash := d.table.hash(&key)
	if h := d.table.find(&key, hash); h != none {
		m := d.table.at(h)
		if m.expires > int64(at) {
			return none, earlier{m.flags, bytes.Clone(d.stored.at(m.reply)), int(m.size)}, duplicate
		}
		m.flags |= flagOutdated
		d.table.unindex(h)
	}
	if isIdempotent(method) {
		h := d.table.insert(&key, hash)
		*d.table.at(h) = remembered{life: unqueued, expires: int64(at + span(confirmable)), size: uint16(min(size, 65535)), next: none, prev: none}
		return h, earlier{}, fresh
	}
	non, con := &d.queues[nonRequest], &d.queues[conRequest]
	if non.count+con.count >= d.limits.NonIdempotent || non.bytes+con.bytes >= d.limits.ReplyBytes ||
		d.peers[key.share()] >= d.share() {
		return none, earlier{}, refused
	}
	life := nonRequest
	if confirmable {
		life = conRequest
	}
	h := d.table.insert(&key, hash)
	d.table.at(h).size = uint16(min(size, 65535))
	d.push(life, h, at+span(confirmable))
	return h, earlier{}, fresh
}

// beginResponse remembers a received response for the lifetime of its Message
// ID, forgetting the oldest when the table is full (GC-16).
func (d *dedup) beginResponse(key messageKey, confirmable bool, now time.Time) (_ handle, old earlier, seen bool) {
	life := nonResponse
	if confirmable {
		life = conResponse
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	at := now.Sub(d.epoch)
	d.expire(int64(at))
	hash := d.table.hash(&key)
	if h := d.table.find(&key, hash); h != none {
		return none, earlier{flags: d.table.at(h).flags}, true
	}
	for d.queues[life].count >= max(d.limits.Idempotent, 1) {
		d.drop(d.pop(life))
		d.stats.DedupEvicted.Add(1)
	}
	h := d.table.insert(&key, hash)
	d.table.at(h).flags = flagDone
	d.push(life, h, at+span(confirmable))
	return h, earlier{}, false
}

// refuse notes that a remembered response was reset.
func (d *dedup) refuse(h handle) { d.flag(h, flagRefused) }

// acknowledged notes that an empty ACK went out for a remembered request.
func (d *dedup) acknowledged(h handle) { d.flag(h, flagAcked) }

func (d *dedup) flag(h handle, f dedupFlags) {
	d.mu.Lock()
	d.table.at(h).flags |= f
	d.mu.Unlock()
}

// finish stores the reply of a request, nil for none, and lets an idempotent
// one expire, and one that was not carried out: doing so late would do no harm.
// reply is copied. It is called once per request.
func (d *dedup) finish(h handle, reply []byte, carriedOut bool) {
	now := time.Since(d.epoch)
	d.mu.Lock()
	defer d.mu.Unlock()
	m := d.table.at(h)
	m.flags |= flagDone
	if !carriedOut && m.life != unqueued {
		d.unlink(h)
	}
	if m.life == unqueued && m.expires <= int64(now) {
		d.drop(h)
		return
	}
	if reply != nil {
		m.reply = d.stored.keep(reply)
	}
	if m.life != unqueued {
		d.queues[m.life].bytes += len(reply)
		return
	}
	d.push(shortly, h, now+d.limits.Shortly)
	for q := &d.queues[shortly]; q.count > d.limits.Idempotent || q.bytes > d.limits.ReplyBytes; {
		d.drop(d.pop(shortly))
		d.stats.DedupEvicted.Add(1)
	}
}

// expire forgets what is old. A request that is still being carried out when
// its time is over only leaves its queue, so that it holds up nobody, and is
// forgotten when it is finished.
func (d *dedup) expire(now int64) {
	for life := range lifetime(lifetimes) {
		q := &d.queues[life]
		for q.first != none && d.table.at(q.first).expires <= now {
			h := d.pop(life)
			if d.table.at(h).flags&flagDone != 0 {
				d.drop(h)
			}
		}
	}
}

func (d *dedup) push(life lifetime, h handle, expires time.Duration) {
	m, q := d.table.at(h), &d.queues[life]
	m.life, m.expires, m.next, m.prev = life, int64(expires), none, q.last
	if life == nonRequest || life == conRequest {
		d.peers[d.table.key(h).share()]++
	}
	if q.last == none {
		q.first = h
	} else {
		d.table.at(q.last).next = h
	}
	q.last = h
	q.count++
	q.bytes += len(d.stored.at(m.reply))
}

// pop takes the first one out of a queue.
func (d *dedup) pop(life lifetime) handle {
	h := d.queues[life].first
	d.unlink(h)
	return h
}

// unlink takes an entry out of its queue.
func (d *dedup) unlink(h handle) {
	m := d.table.at(h)
	q := &d.queues[m.life]
	if m.prev == none {
		q.first = m.next
	} else {
		d.table.at(m.prev).next = m.next
	}
	if m.next == none {
		q.last = m.prev
	} else {
		d.table.at(m.next).prev = m.prev
	}
	q.count--
	q.bytes -= len(d.stored.at(m.reply))
	if m.life == nonRequest || m.life == conRequest {
		share := d.table.key(h).share()
		if d.peers[share]--; d.peers[share] == 0 {
			delete(d.peers, share)
		}
	}
	m.life, m.next, m.prev = unqueued, none, none
}

// drop forgets an entry that is in no queue.
func (d *dedup) drop(h handle) {
	m := d.table.at(h)
	if m.flags&flagOutdated == 0 {
		d.table.unindex(h)
	}
	d.stored.drop(m.reply)
	d.table.release(h)
}

// replies are the replies of remembered messages, by numbers from 1; 0 is none.
type replies struct {
	all  [][]byte
	free []int32
}

// keep copies a reply, into memory that another one has left if it fits.
func (r *replies) keep(reply []byte) int32 {
	if n := len(r.free); n > 0 {
		number := r.free[n-1]
		r.free = r.free[:n-1]
		r.all[number-1] = append(r.all[number-1][:0], reply...)
		return number
	}
	r.all = append(r.all, append([]byte(nil), reply...))
	return int32(len(r.all))
}

// at is a reply, valid until it is dropped.
func (r *replies) at(number int32) []byte {
	if number == 0 {
		return nil
	}
	return r.all[number-1]
}

// replyKept is the capacity in bytes up to which the memory of a reply is kept for
// others.
const replyKept = 128

func (r *replies) drop(number int32) {
	if number == 0 {
		return
	}
	if cap(r.all[number-1]) > replyKept {
		r.all[number-1] = nil
	}
	r.free = append(r.free, number)
}
