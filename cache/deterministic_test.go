package cache

import (
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// deterministic is a Deterministic Request (OC-88).
func deterministic(body string, more ...message.Option) *exchange.Request {
	r := get("")
	r.Options = sorted(append(more, option(wire.OSCORE, "\x39\x00\x03gidd"), option(wire.RequestHash, "hash of "+body)))
	r.Method, r.Payload = wire.FETCH, []byte(body)
	return r
}

// sealed is the protected response to one.
func sealed(body string, seconds uint32) *exchange.Response {
	return content(body, option(wire.OSCORE, "\x29\x05s"), maxAge(seconds))
}

// GP-81, OH-76, OH-98: the same protected bytes get the stored response, with the
// Max-Age that is left, and other ones do not.
func TestDeterministic(t *testing.T) {
	run(t, nil, func(x *fixture) {
		x.miss(deterministic("a"), sealed("one", 20))
		time.Sleep(5 * time.Second)
		p := x.hit(deterministic("a"))
		require.Equal(t, "one", string(p.Payload))
		value, ok := wire.First(p.Options, wire.OSCORE)
		require.True(t, ok)
		require.Equal(t, "\x29\x05s", string(value))
		left, _ := wire.First(p.Options, wire.MaxAge)
		require.Equal(t, []byte{15}, left)

		x.miss(deterministic("b"), sealed("two", 20)) // another ciphertext
		other := deterministic("a")
		other.Options[0].Value = []byte("\x39\x01\x03gidd") // another OSCORE option
		x.miss(other, sealed("three", 20))
		hash := deterministic("a")
		hash.Options[1].Value = []byte("another hash") // OC-89
		x.miss(hash, sealed("four", 20))
		time.Sleep(15 * time.Second)
		x.miss(deterministic("a"), sealed("five", 20))
	})
}

// Requests that only look like one: they pass, and so do their responses. A POST
// with OSCORE is no unsafe request that anybody could know of.
func TestNotDeterministic(t *testing.T) {
	post, plain, edhoc := deterministic("a"), deterministic("a"), deterministic("a", option(wire.EDHOC, ""))
	post.Method = codes.POST
	plain.Options = plain.Options[:1]
	for name, r := range map[string]*exchange.Request{"POST": post, "without a hash": plain, "EDHOC": edhoc} {
		t.Run(name, func(t *testing.T) {
			run(t, nil, func(x *fixture) {
				x.miss(get(""), content("kept", maxAge(60)))
				x.miss(r, sealed("one", 20))
				x.miss(r, sealed("two", 20))
				require.EqualValues(t, 2, x.stats.Bypassed[BypassProtected].Load())
				x.hit(get(""))
			})
		})
	}
}

// OC-89, OC-85: only a protected response with a Max-Age outside is stored, and an
// outer ETag validates nothing.
func TestDeterministicNotStored(t *testing.T) {
	for name, p := range map[string]*exchange.Response{
		"no Max-Age":  content("x", option(wire.OSCORE, "")),
		"Max-Age 0":   sealed("x", 0),
		"unprotected": content("x", maxAge(60)),
		"an error":    {Code: codes.Unauthorized, Options: message.Options{maxAge(60)}, From: serverA},
		"an ETag":     content("x", option(wire.OSCORE, ""), maxAge(0), option(wire.ETag, "e")),
	} {
		t.Run(name, func(t *testing.T) {
			run(t, nil, func(x *fixture) {
				x.miss(deterministic("a"), p)
				k := x.miss(deterministic("a"), p)
				k.one()
				require.Zero(t, x.stats.Entries.Load())
			})
		})
	}
}
