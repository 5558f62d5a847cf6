package oscorehop

import (
	"bytes"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/wire"
)

// flips calls f with every variant of data that differs in one bit.
func flips(data []byte, f func(bit int, changed []byte)) {
	for bit := range 8 * len(data) {
		changed := bytes.Clone(data)
		changed[bit/8] ^= 1 << (bit % 8)
		f(bit, changed)
	}
}

// inside returns what the layer protects of a message that was verified.
func inside(m Message) Message {
	kept := message.Options{}
	for _, o := range m.Options {
		if KnownClasses(o.ID) != ClassU && o.ID != 0 {
			kept = append(kept, o)
		}
	}
	m.Options = kept
	return m
}

// A message with one bit changed anywhere, in option or ciphertext, is refused; in
// the rest of the datagram it is refused, or what is protected stays as it was.
// OC-12, OC-13, OC-14, OC-16, OC-21, OC-23
func TestEveryBitFlipped(t *testing.T) {
	for _, a := range allAlgorithms {
		t.Run(a.String(), func(t *testing.T) {
			p := testParameters(a)
			p.IDContext = []byte("id")
			client, server := ephemeral(t, p, 4711), ephemeral(t, peerOf(p), 0)
			request := Message{Code: codes.PUT, Options: message.Options{
				opt(wire.IfMatch, "tag"), opt(wire.URIHost, "example"), opt(wire.URIPath, "t"),
			}, Payload: []byte("23")}
			protected, requester, err := client.ProtectRequest(request, DefaultClasses)
			require.NoError(t, err)

			// A server of its own for each, so that none is refused as a replay.
			try := func(m Message) (Message, error) {
				got, _, err := unprotectRequest(ephemeral(t, peerOf(p), 0), m, DefaultClasses)
				return got, err
			}
			everyBit(t, protected, request, try)

			_, responder, err := unprotectRequest(server, protected, DefaultClasses)
			require.NoError(t, err)
			for range 2 { // without and with a Partial IV
				response := contentResponse()
				protected, err := responder.Protect(response, DefaultClasses)
				require.NoError(t, err)
				everyBit(t, protected, response, func(m Message) (Message, error) {
					again := &Requester{context: client, nonce: requester.nonce, aad: requester.aad}
					return again.Unprotect(m, DefaultClasses)
				})
			}
		})
	}
}

func everyBit(t *testing.T, protected, original Message, try func(Message) (Message, error)) {
	t.Helper()
	got, err := try(protected)
	require.NoError(t, err)
	require.Equal(t, inside(original), inside(got))

	flips(protected.Payload, func(bit int, changed []byte) {
		m := protected
		m.Payload = changed
		_, err := try(m)
		requireRefused(t, Forged, err)
	})
	at := -1
	for i, o := range protected.Options {
		if o.ID == wire.OSCORE {
			at = i
		}
	}
	flips(protected.Options[at].Value, func(bit int, changed []byte) {
		m := protected
		m.Options = append(message.Options{}, protected.Options...)
		m.Options[at].Value = changed
		_, err := try(m)
		var refused *VerifyError
		require.ErrorAs(t, err, &refused, "bit %d of the option", bit)
	})

	header := wire.Message{Type: message.Confirmable, ID: 1, Token: []byte{1, 2}}
	flips(encode(t, header, protected), func(bit int, changed []byte) {
		var m wire.Message
		if m.Decode(changed) != nil {
			return
		}
		got, err := try(Message{Code: m.Code, Options: m.Options, Payload: m.Payload})
		if err == nil {
			require.Equal(t, inside(original), inside(got), "bit %d of the datagram", bit)
		}
	})
}
