package oscorehop

import (
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/stretchr/testify/require"

	"coapproxy/wire"
)

// fuzzMessage takes a datagram for a message that has to be verified.
func fuzzMessage(data []byte) (Message, bool) {
	var m wire.Message
	if m.Decode(data) != nil {
		return Message{}, false
	}
	return Message{Code: m.Code, Options: m.Options, Payload: m.Payload}, true
}

// requireEncodable checks that what came out of a layer can be sent on.
func requireEncodable(t *testing.T, m Message) {
	t.Helper()
	_, err := (&wire.Message{Code: m.Code, Options: m.Options, Payload: m.Payload}).Append(nil)
	require.NoError(t, err)
}

// Nobody without the key gets a request through.
// OC-14, OC-21, OH-50
func FuzzUnprotectRequest(f *testing.F) {
	vectors := rfc8613(f)
	for _, v := range vectors.Messages {
		f.Add([]byte(v.Protected))
	}
	p := peerOf(vectors.KeyDerivation[0].parameters()) // C.1.2, the server of C.4
	genuine := string(vectors.Messages[0].Ciphertext)
	f.Fuzz(func(t *testing.T, data []byte) {
		m, ok := fuzzMessage(data)
		if !ok {
			return
		}
		payload := string(m.Payload)
		c := ephemeral(t, p, 0)
		got, responder, err := unprotectRequest(c, m, DefaultClasses)
		if err != nil {
			var refused *VerifyError
			require.ErrorAs(t, err, &refused)
			require.Nil(t, responder)
			requireEncodable(t, refused.Response())
			return
		}
		require.Equal(t, genuine, payload, "only what the client wrote")
		requireEncodable(t, got)
	})
}

// OC-14, OC-23
func FuzzUnprotectResponse(f *testing.F) {
	vectors := rfc8613(f)
	for _, v := range vectors.Messages {
		f.Add([]byte(v.Protected))
	}
	genuine := []string{string(vectors.Messages[3].Ciphertext), string(vectors.Messages[4].Ciphertext)}
	p := vectors.KeyDerivation[0].parameters()
	_, request := datagram(f, vectors.Messages[0].Unprotected)
	f.Fuzz(func(t *testing.T, data []byte) {
		m, ok := fuzzMessage(data)
		if !ok {
			return
		}
		payload := string(m.Payload)
		_, requester, err := ephemeral(t, p, 20).ProtectRequest(request, DefaultClasses)
		require.NoError(t, err)
		got, err := requester.Unprotect(m, DefaultClasses)
		if err != nil {
			var refused *VerifyError
			require.ErrorAs(t, err, &refused)
			return
		}
		require.Contains(t, genuine, payload)
		requireEncodable(t, got)
	})
}

// A peer that has the key may write anything into a layer and around it.
// OC-10, OH-23, OH-24
func FuzzAuthenticatedPlaintext(f *testing.F) {
	f.Add([]byte{0x01, 0xb3, 't', 'v', '1'}, []byte{0x39, 'l'})
	f.Add([]byte{0x45, 0xff, 'x'}, []byte{})
	f.Add([]byte{0x02, 0x60, 0x31, 0x09}, []byte{0x60})
	f.Fuzz(func(t *testing.T, plaintext, outer []byte) {
		var around wire.Message
		if around.Decode(append([]byte{0x40, 0x02, 0, 0}, outer...)) != nil || wire.Has(around.Options, wire.OSCORE) {
			return
		}
		client, server := pair(t, DefaultAlgorithm)
		if client.fits(plaintext) != nil {
			return
		}
		piv := partialIV(0)
		ciphertext, err := client.seal(plaintext, nonce(client.iv, client.SenderID(), piv),
			additionalData(client.Algorithm(), client.SenderID(), piv))
		require.NoError(t, err)
		value, err := Option{PartialIV: piv, KID: client.SenderID()}.Append(nil)
		require.NoError(t, err)
		m := Message{Code: around.Code, Options: withOSCORE(around.Options, value), Payload: ciphertext}
		got, responder, err := unprotectRequest(server, m, DefaultClasses)
		require.NotNil(t, responder)
		if err != nil {
			var bad *PlaintextError
			require.ErrorAs(t, err, &bad)
			return
		}
		requireEncodable(t, got)
		require.True(t, wire.IsRequest(got.Code))
		allInside := func(message.OptionID) Class { return ClassE }
		_, _, err = client.ProtectRequest(got, allInside)
		require.NoError(t, err, "what was verified can be protected for the next hop")
	})
}
