package oscorehop

import (
	"bytes"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"coapproxy/wire"
)

// Whatever goes in comes out, under every algorithm, in both directions.
// OC-4, OC-10, OC-20, OC-21, OC-22, OC-23
func TestRoundTrip(t *testing.T) {
	options := func(t *rapid.T, ids []message.OptionID) message.Options {
		var out message.Options
		for _, id := range ids {
			for range rapid.IntRange(0, 2).Draw(t, "times") {
				out = append(out, message.Option{ID: id, Value: rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "value")})
			}
		}
		return out
	}
	equal := func(t *rapid.T, want, got Message) {
		require.Equal(t, want.Code, got.Code)
		require.Len(t, got.Options, len(want.Options))
		for i, o := range want.Options {
			require.Equal(t, o.ID, got.Options[i].ID)
			require.True(t, bytes.Equal(o.Value, got.Options[i].Value), "option %d", o.ID)
		}
		require.True(t, bytes.Equal(want.Payload, got.Payload))
	}
	rapid.Check(t, func(t *rapid.T) {
		p := testParameters(rapid.SampledFrom(allAlgorithms).Draw(t, "algorithm"))
		p.Hash = rapid.SampledFrom([]Hash{SHA256, SHA512}).Draw(t, "hash")
		p.SenderID = rapid.SliceOfN(rapid.Byte(), 0, 6).Draw(t, "sender")
		p.RecipientID = rapid.SliceOfN(rapid.Byte(), 0, 6).Filter(func(id []byte) bool {
			return !bytes.Equal(id, p.SenderID)
		}).Draw(t, "recipient")
		if rapid.Bool().Draw(t, "has ID context") {
			p.IDContext = rapid.SliceOfN(rapid.Byte(), 0, 30).Draw(t, "ID context")
		}
		client, err := Ephemeral(p)
		require.NoError(t, err)
		server, err := Ephemeral(peerOf(p))
		require.NoError(t, err)
		client.counter.next = rapid.Uint64Range(0, 1<<19).Draw(t, "sequence")

		request := Message{
			Code: codes.Code(rapid.Uint16Range(1, 31).Draw(t, "method")),
			Options: options(t, []message.OptionID{wire.IfMatch, wire.URIHost, wire.URIPath, wire.Block1,
				wire.ProxyScheme, 2000, 65000}),
			Payload: rapid.SliceOfN(rapid.Byte(), 0, 100).Draw(t, "payload"),
		}
		protected, requester, err := client.ProtectRequest(request, DefaultClasses)
		require.NoError(t, err)
		require.Equal(t, codes.POST, protected.Code) // OH-37
		got, responder, err := unprotectRequest(server, protected, DefaultClasses)
		require.NoError(t, err)
		equal(t, request, got)

		for i := range rapid.IntRange(1, 4).Draw(t, "responses") {
			response := Message{
				Code:    codes.Code(rapid.Uint16Range(2<<5, 6<<5-1).Draw(t, "code")),
				Options: options(t, []message.OptionID{wire.ETag, wire.LocationPath, wire.MaxAge, wire.ReplyFrom}),
				Payload: rapid.SliceOfN(rapid.Byte(), 0, 100).Draw(t, "payload"),
			}
			protected, err := responder.Protect(response, DefaultClasses)
			require.NoError(t, err)
			require.Equal(t, codes.Changed, protected.Code) // OH-37
			if i == 0 {
				require.Nil(t, partialIVOf(t, protected))
			} else {
				require.NotNil(t, partialIVOf(t, protected)) // OH-41
			}
			got, err := requester.Unprotect(protected, DefaultClasses)
			require.NoError(t, err)
			equal(t, response, got)
		}
	})
}

// OC-24, OH-50, OH-51, OH-52, OH-53, OH-64
func TestRequestRefused(t *testing.T) {
	client, server := pair(t, DefaultAlgorithm)
	protected, _, err := client.ProtectRequest(getRequest(), DefaultClasses)
	require.NoError(t, err)
	_, _, err = unprotectRequest(server, protected, DefaultClasses)
	require.NoError(t, err)
	fresh, _, err := client.ProtectRequest(getRequest(), DefaultClasses)
	require.NoError(t, err)
	value, _ := wire.First(fresh.Options, wire.OSCORE)
	with := func(value []byte) Message {
		m := fresh
		m.Options = message.Options{{ID: wire.OSCORE, Value: value}}
		return m
	}
	forged := fresh
	forged.Payload = append(bytes.Clone(fresh.Payload[1:]), 0)

	old := protected
	old.Payload = append(bytes.Clone(protected.Payload[1:]), 0)

	for name, v := range map[string]struct {
		m          Message
		reason     Refusal
		code       codes.Code
		diagnostic string
	}{
		"malformed":          {with([]byte{0x46}), Malformed, codes.BadOption, "Failed to decode COSE"},
		"unknown kid":        {with(append(bytes.Clone(value), 9)), NoContext, codes.Unauthorized, "Security context not found"},
		"unknown ID context": {with([]byte{0x19, 0x01, 0x01, 0xaa, 0x01}), NoContext, codes.Unauthorized, "Security context not found"},
		"group":              {with([]byte{0x29, 0x01, 0x01}), NoContext, codes.Unauthorized, "Security context not found"},
		"replay":             {protected, Replayed, codes.Unauthorized, "Replay detected"},
		"forged replay":      {old, Replayed, codes.Unauthorized, "Replay detected"}, // OC-21: nothing is decrypted
		"forged":             {forged, Forged, codes.BadRequest, "Decryption failed"},
		"shorter than a tag": {Message{Options: fresh.Options, Payload: []byte{1}}, Forged, codes.BadRequest, "Decryption failed"},
	} {
		t.Run(name, func(t *testing.T) {
			before := server.Usage().Failures
			_, responder, err := unprotectRequest(server, v.m, DefaultClasses)
			requireRefused(t, v.reason, err)
			require.Nil(t, responder)
			var refused *VerifyError
			require.ErrorAs(t, err, &refused)
			require.Equal(t, Message{
				Code: v.code, Options: message.Options{{ID: wire.MaxAge}}, Payload: []byte(v.diagnostic),
			}, refused.Response())
			count := before
			if v.reason == Forged { // OC-50: replays do not count
				count++
			}
			require.Equal(t, count, server.Usage().Failures)
		})
	}

	// None of them has touched the window.
	_, _, err = unprotectRequest(server, fresh, DefaultClasses)
	require.NoError(t, err)
}

// An option that was not read with RequestOption does no harm.
func TestUnprotectRequestOptionMisused(t *testing.T) {
	client, server := pair(t, DefaultAlgorithm)
	protected, _, err := client.ProtectRequest(getRequest(), DefaultClasses)
	require.NoError(t, err)
	for _, o := range []Option{{}, {KID: []byte{1}}, {KID: []byte{1}, PartialIV: make([]byte, 6)}} {
		_, _, err := server.UnprotectRequest(protected, o, DefaultClasses)
		requireRefused(t, Malformed, err)
	}
	_, _, err = server.UnprotectRequest(protected, Option{KID: []byte{7}, PartialIV: []byte{0}}, DefaultClasses)
	requireRefused(t, NoContext, err)
}

// rendezvous lets nobody decrypt before all do.
type rendezvous struct {
	aead
	arrived *sync.WaitGroup
}

func (r rendezvous) Open(dst, nonce, ciphertext, additionalData []byte) ([]byte, error) {
	r.arrived.Done()
	r.arrived.Wait()
	return r.aead.Open(dst, nonce, ciphertext, additionalData)
}

// atOnce verifies copies of one message at the same time and returns how many pass.
func atOnce(c *Context, verify func() error) int32 {
	const copies = 8
	var arrived, group sync.WaitGroup
	arrived.Add(copies)
	c.opener = rendezvous{c.opener, &arrived}
	var passed atomic.Int32
	for range copies {
		group.Go(func() {
			if verify() == nil {
				passed.Add(1)
			}
		})
	}
	group.Wait()
	return passed.Load()
}

// Of the copies of one message that arrive at once, one is accepted.
// OH-43, OH-110
func TestConcurrentCopies(t *testing.T) {
	client, server := pair(t, DefaultAlgorithm)
	protected, _, err := client.ProtectRequest(getRequest(), DefaultClasses)
	require.NoError(t, err)
	require.EqualValues(t, 1, atOnce(server, func() error {
		_, _, err := unprotectRequest(server, protected, DefaultClasses)
		return err
	}))

	for _, fresh := range []bool{false, true} {
		client, server := pair(t, DefaultAlgorithm)
		requester, responder := converse(t, client, server, getRequest())
		if fresh {
			responder.RequirePartialIV()
		}
		answer, err := responder.Protect(contentResponse(), DefaultClasses)
		require.NoError(t, err)
		require.EqualValues(t, 1, atOnce(client, func() error {
			_, err := requester.Unprotect(answer, DefaultClasses)
			return err
		}))
	}
}

// Whoever protects at once gets nonces of its own.
// OC-20, OH-41, OH-42, OH-111
func TestConcurrentNonces(t *testing.T) {
	client, server := pair(t, DefaultAlgorithm)
	_, responder := converse(t, client, server, getRequest())
	var mu sync.Mutex
	seen := make(map[string]int)
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			for range 50 {
				var m Message
				var err error
				if i%2 == 0 {
					m, err = responder.Protect(contentResponse(), DefaultClasses)
				} else {
					m, _, err = server.ProtectRequest(getRequest(), DefaultClasses)
				}
				if err != nil {
					t.Error(err)
					return
				}
				o, err := optionOf(m)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				seen[string(o.PartialIV)]++
				mu.Unlock()
			}
		})
	}
	group.Wait()
	require.Len(t, seen, 400)
	require.Equal(t, 1, seen[""], "one response has the nonce of the request")
}

// OH-37, OH-42, OH-47
func TestObserve(t *testing.T) {
	client, server := pair(t, DefaultAlgorithm)
	request := getRequest()
	request.Options = message.Options{opt(wire.URIHost, "example"), opt(wire.Observe, ""), opt(wire.URIPath, "t")}
	protected, requester, err := client.ProtectRequest(request, DefaultClasses)
	require.NoError(t, err)
	require.Equal(t, wire.FETCH, protected.Code)
	value, ok := wire.First(protected.Options, wire.Observe)
	require.True(t, ok)
	require.Empty(t, value)
	got, responder, err := unprotectRequest(server, protected, DefaultClasses)
	require.NoError(t, err)
	require.Equal(t, message.Options{request.Options[0], {ID: wire.Observe, Value: []byte{}}, request.Options[2]}, got.Options)

	notification := Message{Code: codes.Content, Options: message.Options{opt(wire.Observe, "\x05")}, Payload: []byte("1")}
	var sent []Message
	for range 3 {
		m, err := responder.Protect(notification, DefaultClasses)
		require.NoError(t, err)
		require.Equal(t, codes.Content, m.Code)
		require.NotNil(t, partialIVOf(t, m), "the first one, too")
		outer, _ := wire.First(m.Options, wire.Observe)
		require.Equal(t, []byte{5}, outer)
		sent = append(sent, m)
	}
	// Out of order and repeated: the numbers say which is the freshest.
	// OC-26, OH-43
	for _, i := range []int{2, 0, 1} {
		sent[i].Options[0].Value = []byte{0x77} // an outer number means nothing
		m, err := requester.Unprotect(sent[i], DefaultClasses)
		require.NoError(t, err)
		number, ok := wire.First(m.Options, wire.Observe)
		require.True(t, ok)
		n, _ := wire.Uint(number)
		require.EqualValues(t, i+1, n)
		_, err = requester.Unprotect(sent[i], DefaultClasses)
		requireRefused(t, Replayed, err)
	}

	// The end of an observation has no Observe, and an outer one adds none.
	m, err := responder.Protect(Message{Code: codes.NotFound}, DefaultClasses)
	require.NoError(t, err)
	m.Options = append(message.Options{opt(wire.Observe, "\x09")}, m.Options...)
	m, err = requester.Unprotect(m, DefaultClasses)
	require.NoError(t, err)
	require.Empty(t, m.Options)
}

// OC-23: nobody gets notifications who did not ask for them.
func TestObserveUnasked(t *testing.T) {
	client, server := pair(t, DefaultAlgorithm)
	requester, responder := converse(t, client, server, getRequest())
	m, err := responder.Protect(Message{Code: codes.Content, Options: message.Options{opt(wire.Observe, "")}}, DefaultClasses)
	require.NoError(t, err)
	_, err = requester.Unprotect(m, DefaultClasses)
	require.ErrorIs(t, err, errObserve)
}

// A group request never has a response that borrows its nonce.
// OH-42
func TestMulticastTimeoutRequiresPartialIV(t *testing.T) {
	client, server := pair(t, DefaultAlgorithm)
	request := getRequest()
	request.Options = append(message.Options{opt(wire.MulticastTimeout, "\x3c")}, request.Options...)
	_, responder := converse(t, client, server, request)
	m, err := responder.Protect(contentResponse(), DefaultClasses)
	require.NoError(t, err)
	require.Equal(t, []byte{0}, partialIVOf(t, m))

	// A deployment that moved the number says so itself.
	_, responder = converse(t, client, server, getRequest())
	responder.RequirePartialIV()
	m, err = responder.Protect(contentResponse(), DefaultClasses)
	require.NoError(t, err)
	require.Equal(t, []byte{1}, partialIVOf(t, m))
}

// OC-22, OH-41, OH-43
func TestManyResponses(t *testing.T) {
	client, server := pair(t, DefaultAlgorithm)
	requester, responder := converse(t, client, server, getRequest())
	var sent []Message
	for range 2000 {
		m, err := responder.Protect(contentResponse(), DefaultClasses)
		require.NoError(t, err)
		sent = append(sent, m)
	}
	require.Nil(t, partialIVOf(t, sent[0]))
	for i, m := range sent[1:] {
		require.Equal(t, partialIV(uint64(i)), partialIVOf(t, m))
	}
	accept := func(i int) error {
		_, err := requester.Unprotect(sent[i], DefaultClasses)
		return err
	}
	require.NoError(t, accept(1500))
	require.NoError(t, accept(700), "late, and within the window")
	requireRefused(t, Replayed, accept(700))
	requireRefused(t, Replayed, accept(100)) // too late to know
	require.NoError(t, accept(0), "the one without a Partial IV counts as the oldest")
	requireRefused(t, Replayed, accept(0))
}

// OC-17, OC-23, OH-45
func TestResponseRefused(t *testing.T) {
	client, server := pair(t, DefaultAlgorithm)
	requester, responder := converse(t, client, server, getRequest())
	other, _ := converse(t, client, server, getRequest())
	m, err := responder.Protect(contentResponse(), DefaultClasses)
	require.NoError(t, err)
	with := func(value []byte, payload []byte) Message {
		return Message{Code: m.Code, Options: message.Options{{ID: wire.OSCORE, Value: value}}, Payload: payload}
	}
	for name, v := range map[string]struct {
		m      Message
		reason Refusal
	}{
		"without option": {Message{Code: m.Code, Payload: m.Payload}, Malformed},
		"malformed":      {with([]byte{0x80}, m.Payload), Malformed},
		"no payload":     {with(nil, nil), Malformed},
		"group mode":     {with([]byte{0x28, 0x02}, m.Payload), Malformed},
		"kid of another": {with([]byte{0x08, 0x09}, m.Payload), NoContext},
		"forged":         {with(nil, append(bytes.Clone(m.Payload[1:]), 0)), Forged},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := requester.Unprotect(v.m, DefaultClasses)
			requireRefused(t, v.reason, err)
		})
	}
	_, err = other.Unprotect(m, DefaultClasses)
	requireRefused(t, Forged, err) // it answers another request
	_, err = requester.Unprotect(m, DefaultClasses)
	require.NoError(t, err, "the exchange goes on")
}

// A peer that has the key and writes nonsense is told so inside the layer.
// OC-24
func TestPlaintextError(t *testing.T) {
	for name, plaintext := range map[string][]byte{
		"empty":                 {},
		"response code":         {0x45},
		"empty code":            {0x00},
		"reserved code":         {0x3f},
		"signalling":            {0xe2},
		"option truncated":      {0x01, 0xb4, 'a'},
		"marker and no payload": {0x01, 0xff},
	} {
		t.Run(name, func(t *testing.T) {
			client, server := pair(t, DefaultAlgorithm)
			piv := partialIV(0)
			ciphertext, err := client.seal(plaintext, nonce(client.iv, client.SenderID(), piv),
				additionalData(client.Algorithm(), client.SenderID(), piv))
			require.NoError(t, err)
			value, err := Option{PartialIV: piv, KID: client.SenderID()}.Append(nil)
			require.NoError(t, err)
			request := Message{Code: codes.POST, Options: message.Options{{ID: wire.OSCORE, Value: value}}, Payload: ciphertext}
			_, responder, err := unprotectRequest(server, request, DefaultClasses)
			var bad *PlaintextError
			require.ErrorAs(t, err, &bad)
			answer, err := responder.Protect(Message{Code: codes.BadRequest}, DefaultClasses)
			require.NoError(t, err)
			require.NotNil(t, partialIVOf(t, answer))
			_, _, err = unprotectRequest(server, request, DefaultClasses)
			requireRefused(t, Replayed, err)
		})
	}
	client, server := pair(t, DefaultAlgorithm)
	requester, responder := converse(t, client, server, getRequest())
	ciphertext, err := server.seal([]byte{0x01}, responder.nonce, responder.aad)
	require.NoError(t, err)
	_, err = requester.Unprotect(Message{Options: message.Options{{ID: wire.OSCORE}}, Payload: ciphertext}, DefaultClasses)
	var bad *PlaintextError
	require.ErrorAs(t, err, &bad)
}

func TestProtectWrongCode(t *testing.T) {
	client, server := pair(t, DefaultAlgorithm)
	_, _, err := client.ProtectRequest(contentResponse(), DefaultClasses)
	require.Error(t, err)
	_, responder := converse(t, client, server, getRequest())
	_, err = responder.Protect(getRequest(), DefaultClasses)
	require.Error(t, err)
}

// OC-17, OH-7, OH-122
func TestExchangeState(t *testing.T) {
	p := testParameters(DefaultAlgorithm)
	p.IDContext = []byte("ctx")
	client, server := ephemeral(t, p, 300), ephemeral(t, peerOf(p), 0)
	requester, responder := converse(t, client, server, getRequest())
	require.Same(t, client, requester.Context())
	require.Same(t, server, responder.Context())
	require.Equal(t, []byte{0x01, 0x2c}, responder.PartialIV())
	require.Equal(t, []byte("ctx"), responder.KIDContext())
	require.Equal(t, []byte{2}, server.SenderID())
	require.Equal(t, []byte{1}, server.RecipientID())
	require.Equal(t, []byte("ctx"), server.IDContext())
}
