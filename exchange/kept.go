package exchange

import (
	"encoding/binary"
	"slices"

	"github.com/plgd-dev/go-coap/v3/message"
)

// Kept is a request that outlives its Exchange because it may have to be made
// once more. That is rare, so it takes little memory: options and payload are
// packed into one slice, and what layers do not change of a request is there
// once, however many of them keep it. The zero value keeps nothing; one that
// keeps something must not be copied.
type Kept struct {
	bare    *Request // without options and payload; never changed
	packed  []byte   // number, length and value of each option; then the payload
	payload int      // where in packed the payload begins
}

// Room is the memory of a Kept whose owner has it at hand, so that keeping
// allocates nothing.
type Room struct {
	bare   Request
	packed [96]byte // enough for the options of nearly every request without a payload
}

// Keep copies r but for the options that leave, unless it is nil, names. room, unless
// nil, belongs to k until it keeps something else.
func (k *Kept) Keep(r *Request, room *Room, leave func(message.OptionID) bool) {
	var packed []byte
	switch {
	case room != nil:
		k.bare, packed = &room.bare, room.packed[:0]
		r.copyBare(k.bare)
	case r.kept != nil && r.isLike(r.kept):
		k.bare = r.kept
	default:
		k.bare = new(Request)
		r.copyBare(k.bare)
		r.kept = k.bare
	}
	if room == nil || len(r.Payload) > len(room.packed) {
		packed = make([]byte, 0, maxPacked(r))
	}
	for i := range r.Options {
		o := &r.Options[i]
		if leave != nil && leave(o.ID) {
			continue
		}
		packed = binary.AppendUvarint(packed, uint64(o.ID))
		packed = binary.AppendUvarint(packed, uint64(len(o.Value)))
		packed = append(packed, o.Value...)
	}
	k.payload = len(packed)
	k.packed = append(packed, r.Payload...)
}

// maxPacked is the room in bytes that nearly every request has enough of.
func maxPacked(r *Request) int {
	size := len(r.Payload)
	for i := range r.Options {
		size += 4 + len(r.Options[i].Value)
	}
	return size
}

// Bare is the request without its options and payload. It is not to be changed.
func (k *Kept) Bare() *Request { return k.bare }

// PayloadLen is the length of the payload in bytes.
func (k *Kept) PayloadLen() int { return len(k.packed) - k.payload }

// Request returns the request, a new one each time. It shares its bytes with k.
func (k *Kept) Request() *Request {
	r := *k.bare
	for rest := k.packed[:k.payload]; len(rest) > 0; {
		id, n := binary.Uvarint(rest)
		size, m := binary.Uvarint(rest[n:])
		start, end := n+m, n+m+int(size)
		r.Options = append(r.Options, message.Option{ID: message.OptionID(id), Value: rest[start:end:end]})
		rest = rest[end:]
	}
	r.Payload = k.packed[k.payload:len(k.packed):len(k.packed)]
	return &r
}

// copyBare makes c a copy of r that owns its bytes, without options and payload.
func (r *Request) copyBare(c *Request) {
	*c = *r
	c.Options, c.Payload, c.kept = nil, nil, nil
	c.Target.Also = slices.Clone(r.Target.Also)
}

// isLike reports whether r and o differ in nothing but options and payload. It may
// miss that of requests to several groups, to announced targets and of sealed ones.
func (r *Request) isLike(o *Request) bool {
	a, b := &r.Target, &o.Target
	return r.ID == o.ID && r.Method == o.Method && r.Form == o.Form && r.Timeout == o.Timeout &&
		r.Confirmable == o.Confirmable && r.Secured == o.Secured && r.BERT == o.BERT && r.Replaces == o.Replaces &&
		r.Client == o.Client && r.Peer == o.Peer && r.Local == o.Local && r.Scheme == o.Scheme && r.Route == o.Route &&
		r.Arrival.Equal(o.Arrival) && r.PreviousHop == o.PreviousHop && r.BodyLimit == o.BodyLimit && r.Stored == o.Stored &&
		r.Sealing == nil && o.Sealing == nil &&
		a.Scheme == b.Scheme && a.Host == b.Host && a.Addr == b.Addr && a.Group == b.Group && a.NextHop == b.NextHop &&
		a.GroupName == b.GroupName && len(a.Also)+len(b.Also)+len(a.Announced)+len(b.Announced) == 0
}
