package blockwise

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

const (
	testLimit = 1 << 20
	testTotal = 8 << 20
)

// echoLeg answers every request with 2.04 and remembers it.
func echoLeg(t tester) *fakeLeg {
	return &fakeLeg{t: t, answer: func(*exchange.Request) *exchange.Response {
		return &exchange.Response{Code: codes.Changed, Options: message.Options{option(wire.ETag, []byte{1})}}
	}}
}

func newDownstream(leg exchange.Handler) (*Downstream, *DownstreamStats) {
	stats := &DownstreamStats{}
	return NewDownstream(leg, testLimit, testTotal, stats), stats
}

// put returns the request with one block of an upload.
func put(body []byte, num int, szx uint8, options ...message.Option) *exchange.Request {
	size := 16 << szx
	end := min((num+1)*size, len(body))
	return request(codes.PUT, body[num*size:end], append(options, blockOption(wire.Block1, num, end < len(body), szx))...)
}

// requireContinue checks the answer to a block that is not the last.
func requireContinue(t tester, w *checkingSink, num int, szx uint8) {
	t.Helper()
	p := w.one()
	require.Equal(t, codes.Continue, p.Code)
	require.Equal(t, message.Options{blockOption(wire.Block1, num, true, szx)}, p.Options)
	require.Empty(t, p.Payload)
	require.False(t, p.From.IsValid())
}

// FP-72, FP-73: every block but the last gets 2.31 with its Block1, and the
// layers below see one request with the whole body.
func TestUpload(t *testing.T) {
	for _, size := range []int{0, 1, 15, 16, 17, 1023, 1024, 1025, 65536, testLimit} {
		for _, szx := range []uint8{0, 3, 6} {
			if szx == 0 && size == testLimit {
				continue
			}
			t.Run(name(size, " in blocks of ", 16<<szx), func(t *testing.T) {
				leg := echoLeg(t)
				d, stats := newDownstream(leg)
				body := bodyOf(size)
				last := max(size-1, 0) / (16 << szx)
				for num := range last {
					options := []message.Option{}
					if num == 0 {
						options = append(options, uintOption(wire.Size1, uint32(size)))
					}
					requireContinue(t, talk(t, d, put(body, num, szx, options...)), num, szx)
				}
				require.Empty(t, leg.requests())
				p := talk(t, d, put(body, last, szx, uintOption(wire.Size1, uint32(size)))).one()
				require.Equal(t, codes.Changed, p.Code)
				require.Equal(t, message.Options{option(wire.ETag, []byte{1}), blockOption(wire.Block1, last, false, szx)}, p.Options)

				require.Len(t, leg.requests(), 1)
				whole := leg.last()
				require.True(t, bytes.Equal(body, whole.Payload))
				for _, id := range []message.OptionID{wire.Block1, wire.Size1, wire.RequestTag} {
					require.False(t, wire.Has(whole.Options, id))
				}
				require.EqualValues(t, 1, stats.Uploads.Load())
			})
		}
	}
}

// FP-72: a body above the limit is refused with 4.13 and the limit for Size1,
// at the latest by the block that goes over it.
func TestUploadAboveLimit(t *testing.T) {
	leg := echoLeg(t)
	d, stats := newDownstream(leg)
	body := bodyOf(testLimit + 1)
	for num := range testLimit / 1024 {
		requireContinue(t, talk(t, d, put(body, num, 6)), num, 6)
	}
	f := talk(t, d, put(body, testLimit/1024, 6)).failure(exchange.TooLarge)
	require.EqualValues(t, testLimit, f.Limit)
	require.Empty(t, leg.requests())
	require.EqualValues(t, 1, stats.TooLarge.Load())
	require.Zero(t, d.bodies.bytes)
	talk(t, d, put(body, testLimit/1024-1, 6)).failure(exchange.Incomplete) // nothing is left of it
}

// FP-72: a body announced too large is refused with its first block.
func TestUploadAnnouncedTooLarge(t *testing.T) {
	for _, size := range []uint32{testLimit + 1, 1<<31 + 5, 1<<32 - 1} {
		leg := echoLeg(t)
		d, _ := newDownstream(leg)
		f := talk(t, d, put(bodyOf(2048), 0, 6, uintOption(wire.Size1, size))).failure(exchange.TooLarge)
		require.EqualValues(t, testLimit, f.Limit)
		require.Zero(t, d.bodies.bodies.Len())
	}
	d, _ := newDownstream(echoLeg(t))
	requireContinue(t, talk(t, d, put(bodyOf(2048), 0, 6, uintOption(wire.Size1, testLimit))), 0, 6)
}

// FP-73: a gap is answered with 4.08; what came before it is kept, so that the
// missing block can still come.
func TestUploadGap(t *testing.T) {
	leg := echoLeg(t)
	d, stats := newDownstream(leg)
	body := bodyOf(200)
	talk(t, d, put(body, 1, 2)).failure(exchange.Incomplete)
	requireContinue(t, talk(t, d, put(body, 0, 2)), 0, 2)
	talk(t, d, put(body, 2, 2)).failure(exchange.Incomplete)
	talk(t, d, put(body, 3, 2)).failure(exchange.Incomplete)
	requireContinue(t, talk(t, d, put(body, 1, 2)), 1, 2)
	requireContinue(t, talk(t, d, put(body, 2, 2)), 2, 2)
	talk(t, d, put(body, 3, 2)).one()
	require.Equal(t, body, leg.last().Payload)
	require.EqualValues(t, 3, stats.Incomplete.Load())
}

// RFC 7959 §2.5: block 0 begins anew.
func TestUploadRestarts(t *testing.T) {
	leg := echoLeg(t)
	d, _ := newDownstream(leg)
	old, body := bytes.Repeat([]byte{1}, 200), bodyOf(150)
	for num := range 3 {
		requireContinue(t, talk(t, d, put(old, num, 2)), num, 2)
	}
	requireContinue(t, talk(t, d, put(body, 0, 2)), 0, 2)
	talk(t, d, put(old, 3, 2)).failure(exchange.Incomplete)
	requireContinue(t, talk(t, d, put(body, 1, 2)), 1, 2)
	talk(t, d, put(body, 2, 2)).one()
	require.Equal(t, body, leg.last().Payload)

	requireContinue(t, talk(t, d, put(old, 0, 2)), 0, 2)
	talk(t, d, put(body[:10], 0, 2)).one() // in one block now
	require.Equal(t, body[:10], leg.last().Payload)
	talk(t, d, put(old, 1, 2)).failure(exchange.Incomplete)
}

// A block that comes again with a new Message ID, because its answer was lost,
// gets the same answer and is not added twice.
func TestUploadRepeatedBlock(t *testing.T) {
	leg := echoLeg(t)
	d, _ := newDownstream(leg)
	body := bodyOf(200)
	requireContinue(t, talk(t, d, put(body, 0, 2)), 0, 2)
	requireContinue(t, talk(t, d, put(body, 0, 2)), 0, 2)
	requireContinue(t, talk(t, d, put(body, 1, 2)), 1, 2)
	requireContinue(t, talk(t, d, put(body, 1, 2)), 1, 2)
	requireContinue(t, talk(t, d, put(body, 2, 2)), 2, 2)
	requireContinue(t, talk(t, d, put(body, 1, 2)), 1, 2)

	other := bytes.Clone(body)
	other[100]++
	talk(t, d, put(other, 1, 2)).failure(exchange.Incomplete)      // not the same block
	talk(t, d, put(body[:128], 1, 2)).failure(exchange.Incomplete) // not the last one before

	talk(t, d, put(body, 3, 2)).one()
	require.Equal(t, body, leg.last().Payload)
	// The body is gone with its last block: whoever repeats that one has to
	// begin anew (FP-73).
	talk(t, d, put(body, 3, 2)).failure(exchange.Incomplete)
	require.Len(t, leg.requests(), 1)
}

// RFC 7959 §2.5: the client may go on with smaller blocks.
func TestUploadInSmallerBlocks(t *testing.T) {
	leg := echoLeg(t)
	d, _ := newDownstream(leg)
	body := bodyOf(1024 + 40)
	requireContinue(t, talk(t, d, put(body, 0, 6)), 0, 6)
	requireContinue(t, talk(t, d, put(body, 32, 1)), 32, 1)
	talk(t, d, put(body, 33, 1)).one()
	require.Equal(t, body, leg.last().Payload)
}

func TestUploadMalformed(t *testing.T) {
	for _, tt := range []struct {
		name    string
		payload int
		option  message.Option
		want    exchange.Reason
	}{
		{"short block", 63, blockOption(wire.Block1, 0, true, 2), exchange.BadRequest},
		{"long block", 65, blockOption(wire.Block1, 0, true, 2), exchange.BadRequest},
		{"empty block", 0, blockOption(wire.Block1, 0, true, 2), exchange.BadRequest},
		{"long last block", 65, blockOption(wire.Block1, 0, false, 2), exchange.BadRequest},
		{"Block1 with the reserved size", 10, option(wire.Block1, []byte{7}), exchange.BadRequest}, // RFC 7959 §2.2
		{"Block2 with the reserved size", 0, option(wire.Block2, []byte{0x17}), exchange.BadRequest},
		{"Block1 too long", 10, option(wire.Block1, []byte{0, 0, 0, 6}), exchange.BadOption}, // FP-20
		{"Block2 too long", 10, option(wire.Block2, []byte{0, 0, 0, 6}), exchange.BadOption},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leg := echoLeg(t)
			d, _ := newDownstream(leg)
			f := talk(t, d, request(codes.PUT, bodyOf(tt.payload), tt.option)).failure(tt.want)
			if tt.want == exchange.BadOption {
				require.Equal(t, tt.option.ID, f.Option)
			}
			require.Empty(t, leg.requests())
		})
	}
}

// FP-77: If-None-Match comes with block 0 only, and goes on with the whole.
func TestUploadIfNoneMatch(t *testing.T) {
	leg := echoLeg(t)
	d, _ := newDownstream(leg)
	body := bodyOf(200)
	requireContinue(t, talk(t, d, put(body, 0, 2, option(wire.IfNoneMatch, nil))), 0, 2)
	requireContinue(t, talk(t, d, put(body, 1, 2)), 1, 2)
	requireContinue(t, talk(t, d, put(body, 2, 2)), 2, 2)
	talk(t, d, put(body, 3, 2)).one()
	require.True(t, wire.Has(leg.last().Options, wire.IfNoneMatch))

	for num := range 4 {
		talk(t, d, put(body, num, 2)).one()
	}
	require.False(t, wire.Has(leg.last().Options, wire.IfNoneMatch))
}

// FP-73: bodies are kept apart by client, target, method, options and
// Request-Tag.
func TestUploadsAtOnce(t *testing.T) {
	mine := func(*exchange.Request) {}
	other := &exchange.Identity{Name: "other"}
	tag := func(v string) func(*exchange.Request) {
		return func(r *exchange.Request) { r.Options = withOption(r.Options, wire.RequestTag, []byte(v)) }
	}
	for _, tt := range []struct {
		name string
		a, b func(*exchange.Request)
	}{
		{"clients", mine, func(r *exchange.Request) { r.Peer = bob }},
		{"identities behind one address", mine, func(r *exchange.Request) { r.Client = other }},
		{"addresses of the proxy", mine, func(r *exchange.Request) { r.Local = netip.MustParseAddrPort("192.0.2.9:5683") }},
		{"servers", mine, func(r *exchange.Request) { r.Target.Addr = bob }},
		{"names of a server", mine, func(r *exchange.Request) { r.Target.Host = "b.example" }},
		{"methods", mine, func(r *exchange.Request) { r.Method = codes.POST }},
		{"paths", mine, func(r *exchange.Request) { r.Options = withOption(r.Options, wire.URIPath, []byte("s")) }},
		{"queries", mine, func(r *exchange.Request) { r.Options = withOption(r.Options, wire.URIQuery, []byte("s")) }},
		{"unknown options", mine, func(r *exchange.Request) { r.Options = withOption(r.Options, 65000, []byte("s")) }},
		{"Request-Tags", tag("a"), tag("b")}, // RFC 9175 §3
		{"a Request-Tag and none", mine, tag("")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leg := echoLeg(t)
			d, _ := newDownstream(leg)
			a, b := bodyOf(200), bytes.Repeat([]byte{9}, 180)
			send := func(body []byte, num int, who func(*exchange.Request)) *checkingSink {
				r := put(body, num, 2)
				who(r)
				return talk(t, d, r)
			}
			for num := range 2 {
				requireContinue(t, send(a, num, tt.a), num, 2)
				requireContinue(t, send(b, num, tt.b), num, 2)
			}
			requireContinue(t, send(a, 2, tt.a), 2, 2)
			send(b, 2, tt.b).one()
			require.Equal(t, b, leg.last().Payload)
			send(a, 3, tt.a).one()
			require.Equal(t, a, leg.last().Payload)
		})
	}
}

// RFC 9175 §1.1: options that say something about one message alone may differ
// between the blocks.
func TestUploadIgnoresOptionsOfOneMessage(t *testing.T) {
	leg := echoLeg(t)
	d, _ := newDownstream(leg)
	body := bodyOf(100)
	requireContinue(t, talk(t, d, put(body, 0, 2, uintOption(wire.Size1, 100), option(wire.Echo, []byte{1}),
		uintOption(wire.HopLimit, 9), uintOption(wire.NoResponse, 2))), 0, 2)
	talk(t, d, put(body, 1, 2, option(wire.Echo, []byte{2}), uintOption(wire.HopLimit, 8))).one()
	require.Equal(t, body, leg.last().Payload)
}

// FP-73: a body waits EXCHANGE_LIFETIME for its next block.
func TestUploadExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		leg := echoLeg(t)
		d, stats := newDownstream(leg)
		body := bodyOf(200)
		requireContinue(t, talk(t, d, put(body, 0, 2)), 0, 2)
		time.Sleep(transferLifetime)
		requireContinue(t, talk(t, d, put(body, 1, 2)), 1, 2) // every block begins the time anew
		time.Sleep(transferLifetime)
		requireContinue(t, talk(t, d, put(body, 2, 2)), 2, 2)
		time.Sleep(transferLifetime + time.Nanosecond)
		talk(t, d, put(body, 3, 2)).failure(exchange.Incomplete)
		require.Empty(t, leg.requests())

		other := put(body, 0, 2)
		other.Peer = bob
		requireContinue(t, talk(t, d, other), 0, 2)
		require.Equal(t, 1, d.bodies.bodies.Len(), "expired bodies make room")
		require.Equal(t, 64, d.bodies.bytes)
		require.Zero(t, stats.Dropped.Load(), "that is not early")
	})
}

// The first blocks of one client do not cost another one its upload, nor do its long
// bodies: each has a share, beyond which it forgets its own.
func TestUploadsShared(t *testing.T) {
	d, stats := newDownstream(echoLeg(t))
	send := func(addr string, port, num int) *checkingSink {
		r := put(bodyOf(40), num, 0)
		r.Peer = netip.AddrPortFrom(netip.MustParseAddr(addr), uint16(port))
		return talk(t, d, r)
	}
	requireContinue(t, send("192.0.2.1", 1, 0), 0, 0)
	for i := range 2 * maxTransfers {
		requireContinue(t, send(fmt.Sprintf("2001:db8::%x", i), 1, 0), 0, 0) // one network of 64 bits
	}
	require.Equal(t, clientTransfers+1, d.bodies.bodies.Len())
	require.EqualValues(t, 2*maxTransfers-clientTransfers, stats.Dropped.Load())
	require.Len(t, d.bodies.clients, 2)
	requireContinue(t, send("192.0.2.1", 1, 1), 1, 0)
	send("2001:db8::1", 1, 1).failure(exchange.Incomplete)
	require.Len(t, d.bodies.clients, 2)
	send("192.0.2.1", 1, 2)
	require.Len(t, d.bodies.clients, 1)
}

// The bodies in transfer are bounded in number and bytes; who has waited
// longest loses.
func TestUploadsBounded(t *testing.T) {
	t.Run("number", func(t *testing.T) {
		d, stats := newDownstream(echoLeg(t))
		send := func(client, num int) *checkingSink {
			r := put(bodyOf(40), num, 0)
			r.Peer = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(client % 16)}), uint16(client))
			return talk(t, d, r)
		}
		for client := range maxTransfers + 10 {
			requireContinue(t, send(client, 0), 0, 0)
		}
		require.Equal(t, maxTransfers, d.bodies.bodies.Len())
		require.EqualValues(t, 10, stats.Dropped.Load())
		require.Equal(t, maxTransfers*16, d.bodies.bytes)
		send(9, 1).failure(exchange.Incomplete)
		requireContinue(t, send(10, 1), 1, 0)
	})
	t.Run("bytes", func(t *testing.T) {
		stats := &DownstreamStats{}
		d := NewDownstream(echoLeg(t), 8192, 10000, stats)
		send := func(client, num int) *checkingSink {
			r := put(bodyOf(8192), num, 6)
			r.Peer = netip.AddrPortFrom(alice.Addr(), uint16(client))
			return talk(t, d, r)
		}
		for client := range 3 {
			for num := range 3 {
				requireContinue(t, send(client, num), num, 6)
			}
		}
		require.Equal(t, 3*3072, d.bodies.bytes)
		requireContinue(t, send(2, 3), 3, 6)
		require.EqualValues(t, 1, stats.Dropped.Load())
		require.Equal(t, 3072+4096, d.bodies.bytes)
		send(0, 3).failure(exchange.Incomplete)
		requireContinue(t, send(1, 3), 3, 6)
	})
	t.Run("no body larger than all together", func(t *testing.T) {
		d := NewDownstream(echoLeg(t), 8192, 2000, &DownstreamStats{})
		f := talk(t, d, put(bodyOf(8192), 0, 6, uintOption(wire.Size1, 8192))).failure(exchange.TooLarge)
		require.EqualValues(t, 2000, f.Limit)
	})
}

// GC-52: what goes to a group passes untouched.
func TestDownstreamLeavesGroupsAlone(t *testing.T) {
	leg := echoLeg(t)
	d, _ := newDownstream(leg)
	r := request(codes.PUT, bodyOf(64), blockOption(wire.Block1, 0, true, 2), option(wire.Block2, []byte{7}))
	r.Target.Group = true
	talk(t, d, r)
	require.Equal(t, r.Options, leg.last().Options)
	require.Equal(t, r.Payload, leg.last().Payload)
}

// The end of the layers below reaches the client, and so does a Cancel the
// other way.
func TestDownstreamEnds(t *testing.T) {
	leg := &fakeLeg{t: t}
	d, _ := newDownstream(leg)
	w := &checkingSink{t: t}
	ask(d, put(bodyOf(20), 0, 6), w)
	leg.last().end(errTest)
	ends, err := w.ended()
	require.Equal(t, 1, ends)
	require.ErrorIs(t, err, errTest)

	w = &checkingSink{t: t}
	ask(d, request(codes.GET, nil), w).Cancel()
	ends, err = w.ended()
	require.Equal(t, 1, ends)
	require.ErrorIs(t, err, exchange.ErrCanceled)
}
