package cache

import (
	"cmp"
	"context"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// busyOrigin answers on goroutines of its own, in any order.
type busyOrigin struct {
	wg     sync.WaitGroup
	engine *exchange.Engine
}

// Exchange implements exchange.Handler.
func (o *busyOrigin) Exchange(r *exchange.Request, w exchange.Sink) exchange.Canceler {
	k := &busyCall{sink: w, stop: make(chan struct{})}
	group, tag, seed := r.Target.Group, wire.Has(r.Options, wire.ETag), rand.Uint64()
	first := r.Target.Addr
	if seed%7 == 0 {
		k.end(exchange.Failf(exchange.Unreachable, "no way"))
		return k
	}
	o.wg.Go(func() {
		random := rand.New(rand.NewPCG(seed, 0))
		servers := []netip.AddrPort{first}
		if group {
			servers = []netip.AddrPort{serverA, serverB, serverC}
		}
		for _, s := range servers {
			select {
			case <-k.stop:
			case <-time.After(time.Duration(random.IntN(300)) * time.Microsecond):
			}
			p := from(s, content("body", etag("v1"), maxAge(uint32(random.IntN(2)))))
			if tag && random.IntN(2) == 0 {
				p = from(s, &exchange.Response{Code: codes.Valid, Options: message.Options{etag([]string{"v1", "v2"}[random.IntN(2)])}})
			}
			k.respond(p)
		}
		k.end(nil)
		o.engine.Flush()
	})
	return k
}

type busyCall struct {
	serial exchange.Serial
	sink   exchange.Sink
	once   sync.Once
	stop   chan struct{}
	ended  bool // touched by what serial runs
}

func (k *busyCall) respond(p *exchange.Response) {
	k.serial.DoAlways(func() {
		if !k.ended && k.sink.Respond(p) == exchange.Stop {
			k.ended = true
			k.sink.End(nil)
		}
	})
}

func (k *busyCall) end(err error) {
	k.serial.DoAlways(func() {
		if !k.ended {
			k.ended = true
			k.sink.End(err)
		}
	})
}

// Cancel implements exchange.Canceler.
func (k *busyCall) Cancel() {
	k.once.Do(func() { close(k.stop) })
	k.end(exchange.ErrCanceled)
}

// Extend implements exchange.Extender.
func (k *busyCall) Extend(time.Time) bool { return true }

// busyClient checks the contract of its sink.
type busyClient struct {
	t     *testing.T
	cache *Cache
	in    atomic.Int32
	ended atomic.Int32
	done  chan struct{}
}

func (c *busyClient) Respond(*exchange.Response) exchange.Verdict {
	require.EqualValues(c.t, 1, c.in.Add(1), "calls on one sink overlap")
	defer c.in.Add(-1)
	require.Zero(c.t, c.ended.Load())
	c.cache.Show(Filter{}, 0) // would block if the caller held the lock
	if rand.IntN(10) == 0 {
		return exchange.Stop
	}
	return exchange.Continue
}

func (c *busyClient) End(error) {
	require.EqualValues(c.t, 1, c.in.Add(1), "calls on one sink overlap")
	defer c.in.Add(-1)
	require.EqualValues(c.t, 1, c.ended.Add(1), "End more than once")
	c.cache.Show(Filter{}, 0)
	close(c.done)
}

// TestManyAtOnce takes a moment, or as long as COAPPROXY_SOAK says, e.g. with
//
//	COAPPROXY_SOAK=10m go test -race -timeout 0 -run TestManyAtOnce ./cache
func TestManyAtOnce(t *testing.T) {
	soak, err := time.ParseDuration(cmp.Or(os.Getenv("COAPPROXY_SOAK"), "0s"))
	require.NoError(t, err)
	origin := &busyOrigin{engine: exchange.NewEngine()}
	config := Defaults()
	numbers := wire.DefaultNumbers()
	config.Next, config.Engine, config.Numbers, config.MaxEntries, config.MaxVariants = origin, origin.engine, &numbers, 8, 2
	m, change := members(serverA, serverB)
	m.complete = false
	change(&config)
	cache, err := New(config)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg, clients sync.WaitGroup
	wg.Go(func() { origin.engine.Run(ctx) })
	for range 8 {
		clients.Go(func() {
			for began, i := time.Now(), 0; i < 150 || time.Since(began) < soak; i++ {
				var r *exchange.Request
				path := string(rune('a' + rand.IntN(3)))
				switch rand.IntN(4) {
				case 0:
					r = groupGet(1, path)
				case 1:
					r = groupGet(2, path, etag("v1"))
				default:
					r = get(path)
				}
				if rand.IntN(8) == 0 {
					r.Method = codes.PUT
				}
				r.Arrival = time.Now()
				c := &busyClient{t: t, cache: cache, done: make(chan struct{})}
				running := cache.Exchange(r, c)
				if rand.IntN(3) == 0 {
					running.Cancel()
					running.Cancel()
				}
				select {
				case <-c.done:
				case <-time.After(20 * time.Second):
					t.Error("no End")
					return
				}
			}
		})
	}
	clients.Wait()
	origin.wg.Wait()
	cancel()
	wg.Wait()
	require.Empty(t, cache.flights)
	require.LessOrEqual(t, cache.config.Stats.Entries.Load(), int64(8))
}
