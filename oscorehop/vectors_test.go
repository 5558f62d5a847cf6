package oscorehop

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/stretchr/testify/require"

	"coapproxy/wire"
)

// hexBytes is a byte string in a vector file; null is nil.
type hexBytes []byte

func (h *hexBytes) UnmarshalJSON(data []byte) error {
	if string(data) == "null" {
		return nil
	}
	s, err := strconv.Unquote(string(data))
	if err != nil {
		return err
	}
	*h, err = hex.DecodeString(s)
	if *h == nil {
		*h = hexBytes{}
	}
	return err
}

type derivationVector struct {
	ID        string
	Algorithm Algorithm `json:"aead_algorithm"`
	Inputs    struct {
		MasterSecret hexBytes `json:"master_secret"`
		MasterSalt   hexBytes `json:"master_salt"`
		IDContext    hexBytes `json:"id_context"`
		SenderID     hexBytes `json:"sender_id"`
		RecipientID  hexBytes `json:"recipient_id"`
	}
	Info, Outputs struct {
		SenderKey    hexBytes `json:"sender_key"`
		RecipientKey hexBytes `json:"recipient_key"`
		CommonIV     hexBytes `json:"common_iv"`
	}
	Nonces struct{ Sender, Recipient hexBytes } `json:"nonces_for_piv_0"`
}

func (v derivationVector) parameters() Parameters {
	return Parameters{
		Algorithm: v.Algorithm, MasterSecret: v.Inputs.MasterSecret, MasterSalt: v.Inputs.MasterSalt,
		IDContext: v.Inputs.IDContext, SenderID: v.Inputs.SenderID, RecipientID: v.Inputs.RecipientID,
	}
}

type optionVector struct {
	ID           string
	Mode         string
	PartialIV    hexBytes `json:"partial_iv"`
	KID          hexBytes
	KIDContext   hexBytes `json:"kid_context"`
	OSCOREOption hexBytes `json:"oscore_option"`
}

type rfc8613Vectors struct {
	KeyDerivation []derivationVector `json:"key_derivation"`
	Messages      []struct {
		ID              string
		Kind            string
		SecurityContext string `json:"security_context"`
		InReplyTo       string `json:"in_reply_to"`
		SenderContext   struct {
			Sequence uint64 `json:"sender_sequence_number"`
		} `json:"sender_context"`
		Unprotected hexBytes `json:"unprotected_coap"`
		COSE        struct {
			PartialIV  hexBytes `json:"partial_iv"`
			KID        hexBytes
			KIDContext hexBytes `json:"kid_context"`
		}
		AAD          hexBytes
		Plaintext    hexBytes
		Nonce        hexBytes
		OSCOREOption hexBytes `json:"oscore_option"`
		Ciphertext   hexBytes
		Protected    hexBytes `json:"protected_coap"`
	}
	AADExample struct {
		Algorithm Algorithm `json:"aead_algorithm"`
		KID       hexBytes  `json:"request_kid"`
		PartialIV hexBytes  `json:"request_piv"`
		AAD       hexBytes
	} `json:"aad_example"`
	Compression []optionVector `json:"compression_examples"`
}

func readVectors(t testing.TB, name string, into any) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "testdata", name))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(data, into))
}

func rfc8613(t testing.TB) rfc8613Vectors {
	var v rfc8613Vectors
	readVectors(t, "oscore-rfc8613.json", &v)
	require.NotEmpty(t, v.KeyDerivation)
	require.NotEmpty(t, v.Messages)
	require.NotEmpty(t, v.Compression)
	return v
}

// peerOf is the other side of a context.
func peerOf(p Parameters) Parameters {
	p.SenderID, p.RecipientID = p.RecipientID, p.SenderID
	return p
}

// ephemeral returns a context whose next sequence number is given.
func ephemeral(t testing.TB, p Parameters, next uint64) *Context {
	t.Helper()
	c, err := Ephemeral(p)
	require.NoError(t, err)
	c.counter.next = next
	return c
}

// datagram decodes a CoAP message of a vector.
func datagram(t testing.TB, data []byte) (wire.Message, Message) {
	t.Helper()
	var m wire.Message
	require.NoError(t, m.Decode(bytes.Clone(data)))
	return m, Message{Code: m.Code, Options: m.Options, Payload: m.Payload}
}

// encode puts a message back behind the header of another.
func encode(t testing.TB, header wire.Message, m Message) []byte {
	t.Helper()
	header.Code, header.Options, header.Payload = m.Code, m.Options, m.Payload
	data, err := header.Append(nil)
	require.NoError(t, err)
	return data
}

// unprotectRequest does what a recipient does with a request: RequestOption,
// lookup, UnprotectRequest.
func unprotectRequest(c *Context, m Message, classes Classes) (Message, *Responder, error) {
	option, err := RequestOption(m)
	if err != nil {
		return Message{}, nil, err
	}
	var n Namespace
	if err := n.Add(c); err != nil {
		return Message{}, nil, err
	}
	if c, err = n.Find(option); err != nil {
		return Message{}, nil, err
	}
	return c.UnprotectRequest(m, option, classes)
}

// OC-1, OC-2, OC-11, OC-90
func TestVectorsDerivation(t *testing.T) {
	for _, v := range rfc8613(t).KeyDerivation {
		t.Run(v.ID, func(t *testing.T) {
			p := v.parameters()
			require.Equal(t, []byte(v.Info.SenderKey), p.info(p.SenderID, "Key", 16))
			require.Equal(t, []byte(v.Info.RecipientKey), p.info(p.RecipientID, "Key", 16))
			require.Equal(t, []byte(v.Info.CommonIV), p.info(nil, "IV", 13))
			k, err := p.derive()
			require.NoError(t, err)
			require.Equal(t, []byte(v.Outputs.SenderKey), k.sender)
			require.Equal(t, []byte(v.Outputs.RecipientKey), k.recipient)
			require.Equal(t, []byte(v.Outputs.CommonIV), k.iv)
			require.Equal(t, []byte(v.Nonces.Sender), nonce(k.iv, p.SenderID, partialIV(0)))
			require.Equal(t, []byte(v.Nonces.Recipient), nonce(k.iv, p.RecipientID, partialIV(0)))
		})
	}
}

// OC-10, OC-12, OC-13, OC-16, OC-20, OC-21, OC-22, OC-23, OC-90
func TestVectorsMessages(t *testing.T) {
	vectors := rfc8613(t)
	contexts := make(map[string]Parameters)
	for _, v := range vectors.KeyDerivation {
		contexts[v.ID] = v.parameters()
	}
	byID := make(map[string]int)
	for i, v := range vectors.Messages {
		byID[v.ID] = i
	}
	for _, v := range vectors.Messages {
		t.Run(v.ID, func(t *testing.T) {
			p := contexts[v.SecurityContext]
			header, plain := datagram(t, v.Unprotected)
			if v.Kind == "request" {
				sender, recipient := ephemeral(t, p, v.SenderContext.Sequence), ephemeral(t, peerOf(p), 0)
				protected, requester, err := sender.ProtectRequest(plain, DefaultClasses)
				require.NoError(t, err)
				require.Equal(t, []byte(v.Nonce), requester.nonce)
				require.Equal(t, []byte(v.AAD), requester.aad)
				require.Equal(t, []byte(v.Protected), encode(t, header, protected))

				got, responder, err := unprotectRequest(recipient, protected, DefaultClasses)
				require.NoError(t, err)
				require.Equal(t, []byte(v.Unprotected), encode(t, header, got))
				require.Equal(t, []byte(v.Nonce), responder.nonce)
				require.Equal(t, []byte(v.AAD), responder.aad)
				return
			}
			request := vectors.Messages[byID[v.InReplyTo]]
			server := ephemeral(t, p, v.SenderContext.Sequence)
			client := ephemeral(t, peerOf(p), request.SenderContext.Sequence)
			_, question := datagram(t, request.Unprotected)
			question, requester, err := client.ProtectRequest(question, DefaultClasses)
			require.NoError(t, err)
			_, responder, err := unprotectRequest(server, question, DefaultClasses)
			require.NoError(t, err)
			if v.COSE.PartialIV != nil {
				responder.RequirePartialIV()
			}
			answer, err := responder.Protect(plain, DefaultClasses)
			require.NoError(t, err)
			require.Equal(t, []byte(v.Protected), encode(t, header, answer))
			got, err := requester.Unprotect(answer, DefaultClasses)
			require.NoError(t, err)
			require.Equal(t, []byte(v.Unprotected), encode(t, header, got))
		})
	}
}

// OC-12
func TestVectorAAD(t *testing.T) {
	v := rfc8613(t).AADExample
	require.Equal(t, []byte(v.AAD), additionalData(v.Algorithm, v.KID, v.PartialIV))
}

// OC-14, OC-91
func TestVectorsOption(t *testing.T) {
	vectors := rfc8613(t).Compression
	var group groupVectors
	readVectors(t, "group-oscore.json", &group)
	vectors = append(vectors, group.OptionExamples...)
	require.Len(t, vectors, 9)
	for _, v := range vectors {
		t.Run(v.ID, func(t *testing.T) {
			value := []byte(v.OSCOREOption)
			want := Option{PartialIV: v.PartialIV, KID: v.KID, KIDContext: v.KIDContext, Group: v.Mode == "group"}
			got, err := ParseOption(value)
			require.NoError(t, err)
			require.Equal(t, want, got)
			encoded, err := want.Append(nil)
			require.NoError(t, err)
			require.Equal(t, value, append([]byte{}, encoded...))
		})
	}
}

type groupVectors struct {
	Request struct {
		PartialIV    hexBytes `json:"partial_iv"`
		KID          hexBytes
		KIDContext   hexBytes `json:"kid_context"`
		OSCOREOption hexBytes `json:"oscore_option"`
		Protected    hexBytes `json:"protected_coap"`
	} `json:"deterministic_request"`
	Response struct {
		PartialIV    hexBytes `json:"partial_iv"`
		KID          hexBytes
		OSCOREOption hexBytes `json:"oscore_option"`
		Protected    hexBytes `json:"protected_coap"`
	}
	OptionExamples []optionVector `json:"option_examples"`
}

// A proxy that is no member sees whose a group message is, and takes it for
// nobody it knows.
// OC-80, OC-81, OH-6, OH-22
func TestVectorsGroup(t *testing.T) {
	var v groupVectors
	readVectors(t, "group-oscore.json", &v)

	_, request := datagram(t, v.Request.Protected)
	option, err := RequestOption(request)
	require.NoError(t, err)
	require.Equal(t, Option{PartialIV: []byte(v.Request.PartialIV), KID: []byte(v.Request.KID), KIDContext: []byte(v.Request.KIDContext)}, option)

	// A hop context with the kid of a member: the Gid tells them apart.
	p := testParameters(DefaultAlgorithm)
	p.RecipientID = v.Request.KID
	_, _, err = unprotectRequest(ephemeral(t, p, 0), request, DefaultClasses)
	requireRefused(t, NoContext, err)

	_, response := datagram(t, v.Response.Protected)
	option, err = optionOf(response)
	require.NoError(t, err)
	require.Equal(t, Option{PartialIV: []byte(v.Response.PartialIV), KID: []byte(v.Response.KID), Group: true}, option)

	for _, example := range v.OptionExamples {
		if example.ID != "group-request" {
			continue
		}
		option, err := ParseOption(example.OSCOREOption)
		require.NoError(t, err)
		p.RecipientID, p.IDContext = example.KID, example.KIDContext
		c := ephemeral(t, p, 0)
		var n Namespace
		require.NoError(t, n.Add(c))
		_, err = n.Find(option)
		requireRefused(t, NoContext, err)
		_, _, err = c.UnprotectRequest(Message{Payload: []byte("ciphertext")}, option, DefaultClasses)
		requireRefused(t, NoContext, err)
		option.Group = false
		_, err = n.Find(option)
		require.NoError(t, err, "the Group Flag is what makes the difference")
	}
}

type nestedVectors struct {
	Context struct {
		Algorithm    Algorithm `json:"aead_algorithm"`
		MasterSecret hexBytes  `json:"master_secret"`
		MasterSalt   hexBytes  `json:"master_salt"`
		ClientID     hexBytes  `json:"client_sender_id"`
		ClientKey    hexBytes  `json:"client_sender_key"`
		ProxyID      hexBytes  `json:"proxy_sender_id"`
		ProxyKey     hexBytes  `json:"proxy_sender_key"`
		CommonIV     hexBytes  `json:"common_iv"`
	} `json:"context_client_proxy"`
	Group, Unicast []nestedVector
}

type nestedVector struct {
	ID     string
	Before hexBytes `json:"request_before_outer_layer"`
	Layer  struct {
		AAD          hexBytes
		Ciphertext   hexBytes
		Nonce        hexBytes
		OSCOREOption hexBytes `json:"oscore_option"`
		PartialIV    hexBytes `json:"partial_iv"`
		Plaintext    hexBytes
	} `json:"outer_layer"`
	Protected hexBytes `json:"protected_coap"`
}

// hopClasses is OH-32 for a hop layer: everything inside, except Uri-Host and
// Uri-Port when no Proxy-Scheme stands beside them.
func hopClasses(m Message) Classes {
	scheme := wire.Has(m.Options, wire.ProxyScheme) || wire.Has(m.Options, wire.ProxySchemeNumber)
	return func(id message.OptionID) Class {
		class := KnownClasses(id)
		if class == ClassU && (scheme || id != wire.URIHost && id != wire.URIPort) {
			return ClassE
		}
		return class
	}
}

// OH-1, OH-32, OH-37, OH-41, OH-46, OC-93
func TestVectorsNested(t *testing.T) {
	var v nestedVectors
	readVectors(t, "oscore-hop-nested.json", &v)
	p := Parameters{
		Algorithm: v.Context.Algorithm, MasterSecret: v.Context.MasterSecret, MasterSalt: v.Context.MasterSalt,
		SenderID: v.Context.ClientID, RecipientID: v.Context.ProxyID,
	}
	k, err := p.derive()
	require.NoError(t, err)
	require.Equal(t, []byte(v.Context.ClientKey), k.sender)
	require.Equal(t, []byte(v.Context.ProxyKey), k.recipient)
	require.Equal(t, []byte(v.Context.CommonIV), k.iv)

	for _, exchange := range [][]nestedVector{v.Unicast, v.Group} {
		request, responses := exchange[0], exchange[1:]
		require.NotEmpty(t, responses)
		client := ephemeral(t, p, sequenceOf(request.Layer.PartialIV))
		proxy := ephemeral(t, peerOf(p), 0)

		header, before := datagram(t, request.Before)
		classes := hopClasses(before)
		protected, requester, err := client.ProtectRequest(before, classes)
		require.NoError(t, err)
		require.Equal(t, []byte(request.Layer.Nonce), requester.nonce)
		require.Equal(t, []byte(request.Layer.AAD), requester.aad)
		require.Equal(t, []byte(request.Protected), encode(t, header, protected), request.ID)

		got, responder, err := unprotectRequest(proxy, protected, classes)
		require.NoError(t, err)
		require.Equal(t, []byte(request.Before), encode(t, header, got), request.ID)
		// The vectors let the first response of a group reuse the nonce, which
		// is permitted; OH-42 is stricter.
		require.Equal(t, !wire.Has(before.Options, wire.MulticastTimeout), responder.reusable.Load())
		responder.reusable.Store(true)

		for _, v := range responses {
			answerHeader, want := datagram(t, v.Protected)
			plain, err := parsePlaintext(append(make([]byte, wireHeader), v.Layer.Plaintext...), true)
			require.NoError(t, err)
			answer, err := responder.Protect(plain, hopClasses(plain))
			require.NoError(t, err)
			require.Equal(t, []byte(v.Protected), encode(t, answerHeader, answer), v.ID)
			got, err := requester.Unprotect(want, hopClasses(want))
			require.NoError(t, err)
			require.Equal(t, plain, got, v.ID)
		}
	}
}

// The client of the nested vectors removes both layers of a unicast response.
// OH-5
func TestVectorsNestedTwoLayers(t *testing.T) {
	var v nestedVectors
	readVectors(t, "oscore-hop-nested.json", &v)
	inner := rfc8613(t)
	hop := Parameters{
		Algorithm: v.Context.Algorithm, MasterSecret: v.Context.MasterSecret, MasterSalt: v.Context.MasterSalt,
		SenderID: v.Context.ClientID, RecipientID: v.Context.ProxyID,
	}
	endToEnd := inner.KeyDerivation[0].parameters() // C.1.1
	c4, c7 := inner.Messages[0], inner.Messages[3]
	require.Equal(t, []string{"C.4", "C.7"}, []string{c4.ID, c7.ID})

	header, request := datagram(t, c4.Unprotected)
	request, forServer, err := ephemeral(t, endToEnd, 20).ProtectRequest(request, DefaultClasses)
	require.NoError(t, err)
	request.Options = append(request.Options, message.Option{ID: wire.ProxyScheme, Value: []byte("coap")})
	request, forProxy, err := ephemeral(t, hop, 0x1f).ProtectRequest(request, hopClasses(request))
	require.NoError(t, err)
	require.Equal(t, []byte(v.Unicast[0].Protected), encode(t, header, request))

	header, response := datagram(t, v.Unicast[1].Protected)
	response, err = forProxy.Unprotect(response, hopClasses(response))
	require.NoError(t, err)
	require.True(t, wire.Has(response.Options, wire.OSCORE), "the layer of the server is still there")
	response, err = forServer.Unprotect(response, DefaultClasses)
	require.NoError(t, err)
	require.Equal(t, []byte(c7.Unprotected), encode(t, header, response))
}
