package demo

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"pgregory.net/rapid"

	"coapproxy/config"
	"coapproxy/endpoint"
	"coapproxy/exchange"
	"coapproxy/wire"
)

// recorder is a packet connection that notes when what was sent.
type recorder struct {
	began  time.Time
	closed chan struct{}
	sent   []time.Duration
}

func (r *recorder) ReadBatch([]endpoint.Datagram) (int, error) { <-r.closed; return 0, net.ErrClosed }
func (r *recorder) WriteBatch(batch []endpoint.Datagram) (int, error) {
	for range batch {
		r.sent = append(r.sent, time.Since(r.began))
	}
	return len(batch), nil
}
func (r *recorder) LocalAddr() netip.AddrPort { return netip.MustParseAddrPort("127.0.0.11:5683") }
func (r *recorder) Close() error              { close(r.closed); return nil }

// delays has one device answer group requests and returns when it did.
func delays(o Options, requests int) []time.Duration {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	r := &recorder{began: time.Now(), closed: make(chan struct{})}
	d := newDevice(0, o, r.began)
	d.engine, d.stats = exchange.NewEngine(), &Stats{}
	d.own = endpoint.New(endpoint.Config{Conn: r, Engine: d.engine, Requests: d, Dedup: dedupLimits(), Stats: &d.stats.Messages, Log: zap.NewNop()})
	go d.engine.Run(ctx)
	for range requests {
		answer := d.serve(&wire.Message{Code: 1, Options: get("temp").Options}, time.Now())
		d.answerLater(&endpoint.Incoming{Peer: endpoint.PeerOf(netip.MustParseAddrPort("127.0.0.1:1000"))}, answer)
	}
	time.Sleep(o.Leisure)
	synctest.Wait()
	return r.sent
}

// GC-35
func TestLeisure(t *testing.T) {
	const leisure, requests = 5 * time.Second, 200
	synctest.Test(t, func(t *testing.T) {
		sent := delays(Options{Leisure: leisure, Seed: 1}, requests)
		require.Len(t, sent, requests)
		quarters := map[time.Duration]int{}
		for _, after := range sent {
			require.LessOrEqual(t, after, leisure)
			quarters[after*4/(leisure+1)]++
		}
		for q := range time.Duration(4) {
			require.Greater(t, quarters[q], requests/8, "spread over the whole time")
		}
	})
	synctest.Test(t, func(t *testing.T) {
		o := Options{Leisure: leisure, Seed: 7}
		first := delays(o, 20)
		require.Equal(t, first, delays(o, 20), "the same seed")
		o.Seed = 8
		require.NotEqual(t, first, delays(o, 20), "another seed")
	})
	synctest.Test(t, func(t *testing.T) {
		require.Equal(t, []time.Duration{0, 0}, delays(Options{}, 2), "no leisure, no delay")
	})
}

func TestWaitingAnswersAreBounded(t *testing.T) {
	d := newDevice(0, Options{Leisure: time.Minute}, time.Now())
	d.engine, d.stats = exchange.NewEngine(), &Stats{}
	for range maxWaiting + 3 {
		d.answerLater(&endpoint.Incoming{}, &wire.Message{})
	}
	require.EqualValues(t, 3, d.stats.Overrun.Load())
	require.EqualValues(t, maxWaiting, d.waiting.Load())
}

func TestDrift(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seed := rapid.Uint64().Draw(t, "seed")
		steps := rapid.SliceOfN(rapid.Int64Range(0, int64(time.Hour)), 1, 20).Draw(t, "elapsed")
		one, other := newDrift(randomFor(seed, 3, 1)), newDrift(randomFor(seed, 3, 1))
		began := one.at(0)
		require.GreaterOrEqual(t, began, 180)
		require.Less(t, began, 240)
		var now, last time.Duration
		previous := began
		for _, s := range steps {
			now += time.Duration(s)
			value := one.at(now)
			require.InDelta(t, began, value, driftRange)
			if now/driftEvery == last/driftEvery {
				require.Equal(t, previous, value, "constant between steps")
			}
			last, previous = now, value
		}
		require.Equal(t, previous, other.at(now), "asking often changes nothing")
	})
	moving := newDrift(randomFor(1, 0, 1))
	values := map[int]bool{}
	for i := range 100 {
		values[moving.at(time.Duration(i)*driftEvery)] = true
	}
	require.Greater(t, len(values), 5, "it does drift")
	moving.at(100 * 365 * 24 * time.Hour) // ends soon after a long silence
}

func TestDiscovery(t *testing.T) {
	d := newDevice(0, Options{}, time.Now())
	const (
		temp  = `</temp>;rt="temperature";if="sensor";obs;ct=0`
		light = `</light>;rt="light";if="actuator";obs;ct=0`
		info  = `</info>;rt="info";ct=50`
		big   = `</big>;rt="text";sz=3000;ct=0`
	)
	for _, x := range []struct {
		query []string
		want  string
	}{
		{nil, temp + "," + light + "," + info + "," + big},
		{[]string{"rt=temperature"}, temp},
		{[]string{"rt=temp"}, ""},
		{[]string{"rt=t*"}, temp + "," + big},
		{[]string{"rt=*"}, temp + "," + light + "," + info + "," + big},
		{[]string{"if=*"}, temp + "," + light},
		{[]string{"if=actuator"}, light},
		{[]string{"obs"}, temp + "," + light},
		{[]string{"href=/info"}, info},
		{[]string{"href=/*"}, temp + "," + light + "," + info + "," + big},
		{[]string{"href=/l*"}, light},
		{[]string{"ct=50"}, info},
		{[]string{"sz=3000"}, big},
		{[]string{"rt=t*", "if=sensor"}, temp},
		{[]string{"title=x"}, ""},
		{[]string{"title=*"}, ""},
		{[]string{"rt"}, ""},
		{[]string{""}, ""},
	} {
		require.Equal(t, x.want, string(discover(d.resources, x.query)), "%q", x.query)
	}
	several := []resource{{path: []string{"x"}, attributes: []attribute{{"rt", "one two"}}}}
	require.NotEmpty(t, discover(several, []string{"rt=two"}), "one of several values")
}

func TestConfig(t *testing.T) {
	text, err := Proxy{Listen: netip.MustParseAddrPort("127.0.0.1:5700"), Group: netip.MustParseAddrPort("224.0.1.187:5701"),
		Leisure: 300 * time.Millisecond, LogLevel: "warn"}.Config()
	require.NoError(t, err)
	c, err := config.Parse("demo", text)
	require.NoError(t, err)
	require.Equal(t, "coap://127.0.0.1:5700", c.Listen[0].String())
	require.Len(t, c.Groups, 1)
	require.Equal(t, "coap://224.0.1.187:5701", c.Groups[0].URI.String())
	require.Equal(t, []string{Interface}, c.Groups[0].Interfaces)
	require.Contains(t, c.Groups[0].Methods, config.MethodPUT)
	require.Equal(t, 300*time.Millisecond, c.Groups[0].Leisure)
	require.Equal(t, config.LogWarn, c.Log.Level)
	require.True(t, c.Clients[0].FollowUp)
	require.NotContains(t, string(text), "{{")
}
