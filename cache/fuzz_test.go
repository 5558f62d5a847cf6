package cache

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// Any request and any response, to one server and to a group, twice.
func FuzzExchange(f *testing.F) {
	encode := func(m wire.Message) []byte {
		data, err := m.Append(nil)
		require.NoError(f, err)
		return data
	}
	f.Add(encode(wire.Message{Code: 1, Options: get("a", etag("v1"), uintOption(wire.Accept, 50)).Options}),
		encode(wire.Message{Code: 0x45, Options: content("", etag("v1"), maxAge(30)).Options, Payload: []byte("x")}), false)
	f.Add(encode(wire.Message{Code: 5, Options: get("a").Options, Payload: []byte("q")}), encode(wire.Message{Code: 0x43, Options: content("", etag("v1")).Options}), true)
	f.Add(encode(wire.Message{Code: 3, Options: get("a").Options}), encode(wire.Message{Code: 0x41, Options: content("", option(wire.LocationPath, "x")).Options}), true)
	f.Fuzz(func(t *testing.T, request, response []byte, group bool) {
		var q, p wire.Message
		if q.Decode(request) != nil || p.Decode(response) != nil {
			return
		}
		m := &roster{}
		m.set(serverA)
		c := benchCache(t, answering(&exchange.Response{Code: p.Code, Options: p.Options, Payload: p.Payload, From: serverA}), m)
		for range 2 {
			r := &exchange.Request{Method: q.Code, Options: q.Options, Payload: q.Payload, Arrival: time.Now(), Target: get("").Target}
			if group {
				r.Target, r.Timeout = groupGet(1, "").Target, exchange.Timeout{Seconds: 1, Present: true}
			}
			w := &discard{}
			c.Exchange(r, w)
			require.Equal(t, 1, w.ends)
		}
		require.Empty(t, c.flights)
		require.LessOrEqual(t, len(shown(c, Filter{})), 1)
	})
}
