package endpoint

import (
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"coapproxy/wire"
)

// inBubble keeps rapid from asking for the real deadline of the test, which
// testing/synctest does not allow.
type inBubble struct{ testing.TB }

// FP-90 against a model: what is a repetition, what it gets, and when the table
// of non-idempotent requests is full.
func TestDedupAgainstModel(t *testing.T) {
	const limit, brief = 5, 10 * time.Second
	type request struct {
		handle     handle
		idempotent bool
		ends       time.Time // when it is no longer remembered
		done       bool
		acked      bool
		reply      []byte
	}
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(inBubble{t}, func(t *rapid.T) {
			var stats Stats
			d := newDedup(DedupLimits{Idempotent: 1 << 20, NonIdempotent: limit, ReplyBytes: 1 << 30, Shortly: brief}, &stats)
			known := make(map[messageKey]*request)
			var underWay, counted []*request
			count := func() (n int) {
				for _, r := range counted {
					if time.Now().Before(r.ends) {
						n++
					}
				}
				return n
			}
			t.Repeat(map[string]func(*rapid.T){
				"begin": func(t *rapid.T) {
					peer := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), uint16(rapid.IntRange(1, 2).Draw(t, "port")))
					key := receivedKey(peer, netip.Addr{}, uint16(rapid.IntRange(1, 6).Draw(t, "id")))
					method := rapid.SampledFrom([]codes.Code{codes.GET, codes.POST}).Draw(t, "method")
					confirmable := rapid.Bool().Draw(t, "CON")
					h, old, verdict := d.begin(key, method, confirmable, 20, time.Now())
					if r := known[key]; r != nil && time.Now().Before(r.ends) {
						require.Equal(t, duplicate, verdict)
						require.Equal(t, r.done, old.flags&flagDone != 0)
						require.Equal(t, r.acked, old.flags&flagAcked != 0)
						require.Equal(t, r.reply, old.reply)
						return
					}
					r := &request{handle: h, idempotent: method == codes.GET, ends: time.Now().Add(NonLifetime)}
					if confirmable {
						r.ends = time.Now().Add(ExchangeLifetime)
					}
					if !r.idempotent && count() >= limit {
						require.Equal(t, refused, verdict)
						return
					}
					require.Equal(t, fresh, verdict)
					known[key] = r
					underWay = append(underWay, r)
					if !r.idempotent {
						counted = append(counted, r)
					}
				},
				"acknowledge": func(t *rapid.T) {
					if len(underWay) == 0 {
						t.Skip()
					}
					r := rapid.SampledFrom(underWay).Draw(t, "which")
					d.acknowledged(r.handle)
					r.acked = true
				},
				"finish": func(t *rapid.T) {
					if len(underWay) == 0 {
						t.Skip()
					}
					i := rapid.IntRange(0, len(underWay)-1).Draw(t, "which")
					r := underWay[i]
					underWay = append(underWay[:i:i], underWay[i+1:]...)
					if rapid.Bool().Draw(t, "with a reply") {
						r.reply = rapid.SliceOfN(rapid.Byte(), 1, 8).Draw(t, "reply")
					}
					borrowed := append([]byte(nil), r.reply...)
					carriedOut := rapid.Bool().Draw(t, "carried out")
					d.finish(r.handle, borrowed, carriedOut)
					clear(borrowed)
					r.done = true
					if (r.idempotent || !carriedOut) && time.Now().Before(r.ends) {
						r.ends = time.Now().Add(brief)
						counted = slices.DeleteFunc(counted, func(c *request) bool { return c == r })
					}
				},
				"wait": func(t *rapid.T) {
					time.Sleep(time.Duration(rapid.IntRange(0, 100).Draw(t, "for")) * time.Second)
				},
				"": func(t *rapid.T) { checkDedup(t, d) },
			})
			for _, r := range underWay {
				d.finish(r.handle, nil, true)
			}
			time.Sleep(ExchangeLifetime)
			d.mu.Lock()
			d.expire(int64(time.Since(d.epoch)))
			d.mu.Unlock()
			require.Zero(t, d.table.len())
			checkDedup(t, d)
		})
	})
}

// checkDedup requires that every place of the slab is either free, in a queue,
// or taken by a request under way, and that the sums are right.
func checkDedup(t require.TestingT, d *dedup) {
	free := 0
	for h := d.table.free; h != none; h = d.table.entry(h).next {
		require.Zero(t, d.table.at(h).reply)
		free++
	}
	queued := 0
	for life := range d.queues {
		q := &d.queues[life]
		count, bytes, last := 0, 0, none
		for h := q.first; h != none; h = d.table.at(h).next {
			require.Equal(t, lifetime(life), d.table.at(h).life)
			count, bytes, last = count+1, bytes+len(d.stored.at(d.table.at(h).reply)), h
		}
		require.Equal(t, q.last, last)
		require.Equal(t, q.count, count)
		require.Equal(t, q.bytes, bytes)
		queued += count
	}
	for key, h := range d.table.keys() {
		require.Equal(t, key, *d.table.key(h))
		require.Zero(t, d.table.at(h).flags&flagOutdated)
	}
	replies := 0
	for h := range handle(d.table.places) {
		if d.table.at(h).reply != 0 {
			replies++
		}
	}
	require.Equal(t, len(d.stored.all)-len(d.stored.free), replies)
	require.LessOrEqual(t, free+queued, d.table.places)
	require.LessOrEqual(t, d.table.len(), d.table.places-free)
}

// One peer has a share of the table of non-idempotent requests, so that it cannot
// have those of others refused; what was refused itself costs it nothing (FP-90).
func TestDedupShares(t *testing.T) {
	var stats Stats
	d := newDedup(DedupLimits{Idempotent: 16, NonIdempotent: 2048, ReplyBytes: 1 << 20, Shortly: time.Second}, &stats)
	begin := func(peer string, id int) (handle, dedupVerdict) {
		h, _, verdict := d.begin(receivedKey(netip.MustParseAddrPort(peer), netip.Addr{}, uint16(id)), codes.POST, true, 20, time.Now())
		return h, verdict
	}
	for i := range 3000 {
		h, verdict := begin("192.0.2.1:1", i)
		require.Equal(t, fresh, verdict)
		d.finish(h, nil, false)
		checkDedup(t, d)
	}
	require.Empty(t, d.peers)
	for i := range 600 {
		_, verdict := begin([]string{"192.0.2.2:1", "192.0.2.2:2"}[i%2], i)
		require.Equal(t, i < 512, verdict == fresh)
		_, verdict = begin([]string{"[2001:db8::1]:1", "[2001:db8::2]:2"}[i%2], i)
		require.Equal(t, i < 512, verdict == fresh)
	}
	_, verdict := begin("192.0.2.3:1", 1)
	require.Equal(t, fresh, verdict)
	for _, peer := range []string{"[100::1]:1", "[100::2]:1"} { // DTLS sessions
		_, verdict := begin(peer, 1)
		require.Equal(t, fresh, verdict)
	}
	require.Len(t, d.peers, 5)
}

// The smallest limits that the configuration allows, and none, keep working.
func TestDedupTinyLimits(t *testing.T) {
	for _, limit := range []int{0, 1} {
		var stats Stats
		d := newDedup(DedupLimits{Idempotent: limit, NonIdempotent: limit, ReplyBytes: 1 << 10, Shortly: time.Second}, &stats)
		peer := netip.MustParseAddrPort("192.0.2.1:5683")
		for id := range uint16(100) {
			key := receivedKey(peer, netip.Addr{}, id)
			h, _, verdict := d.begin(key, codes.GET, true, 20, time.Now())
			require.Equal(t, fresh, verdict)
			d.finish(h, []byte("reply"), true)
			_, _, seen := d.beginResponse(receivedKey(peer, netip.Addr{}, 1000+id), id%2 == 0, time.Now())
			require.False(t, seen)
			_, _, verdict = d.begin(receivedKey(peer, netip.Addr{}, 2000+id), codes.POST, true, 20, time.Now())
			require.Equal(t, limit == 1 && id == 0, verdict == fresh)
			checkDedup(t, d)
		}
		require.LessOrEqual(t, d.table.len(), 4)
		require.LessOrEqual(t, d.table.places, 5)
	}
}

// RFC 7252 §4.4: Message IDs belong to two endpoints, the zone of a link-local
// address being part of it.
func TestMessageKeys(t *testing.T) {
	seen := make(map[messageKey]string)
	for _, peer := range []string{"192.0.2.1:1", "192.0.2.1:2", "192.0.2.2:1", "[::ffff:c000:203]:1", "[2001:db8::1]:1",
		"[fe80::1%eth0]:1", "[fe80::1%eth1]:1", "[fe80::1]:1"} {
		for _, local := range []string{"", "192.0.2.9", "192.0.2.10", "2001:db8::9", "fe80::9"} {
			for _, id := range []uint16{0, 1, 256} {
				var addr netip.Addr
				if local != "" {
					addr = netip.MustParseAddr(local)
				}
				key := receivedKey(netip.MustParseAddrPort(peer), addr, id)
				require.Equal(t, key, receivedKey(netip.MustParseAddrPort(peer), addr, id))
				require.NotContains(t, seen, key, "%s to %s", peer, local)
				seen[key] = peer
			}
		}
	}
}

// FP-90
func TestIdempotentMethods(t *testing.T) {
	idempotent := map[codes.Code]bool{codes.GET: true, codes.PUT: true, codes.DELETE: true, wire.FETCH: true, wire.IPATCH: true}
	for code := range codes.Code(256) {
		require.Equal(t, idempotent[code], isIdempotent(code), code)
	}
}

func BenchmarkDedup(b *testing.B) {
	var stats Stats
	d := newDedup(DefaultDedupLimits(), &stats)
	peer := netip.MustParseAddrPort("192.0.2.1:5683")
	b.ReportAllocs()
	now := time.Now()
	for i := 0; b.Loop(); i++ {
		h, _, verdict := d.begin(receivedKey(peer, netip.Addr{}, uint16(i)), codes.GET, false, 20, now)
		if verdict == fresh {
			d.finish(h, nil, true)
		}
	}
}
