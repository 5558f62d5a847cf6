package oscorehop

import (
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/wire"
)

func opt(id message.OptionID, value string) message.Option {
	return message.Option{ID: id, Value: []byte(value)}
}

// OC-40, OH-30, OH-35, GP-11
func TestKnownClasses(t *testing.T) {
	want := map[Class][]message.OptionID{
		ClassE: {wire.IfMatch, wire.ETag, wire.IfNoneMatch, wire.LocationPath, wire.LocationQuery, wire.URIPath,
			wire.URIQuery, wire.ContentFormat, wire.Accept, wire.URIPathAbbrev},
		ClassU: {wire.MulticastTimeout, wire.URIHost, wire.URIPort, wire.OSCORE, wire.HopLimit, wire.EDHOC,
			wire.GroupETag, wire.ProxyURI, wire.ProxyScheme, wire.ProxyCRI, wire.ProxySchemeNumber, wire.ReplyFrom,
			wire.RequestHash},
		ClassBoth: {wire.Observe, wire.MaxAge, wire.Block1, wire.Block2, wire.Size1, wire.Size2, wire.QBlock1,
			wire.QBlock2, wire.Echo, wire.NoResponse, wire.RequestTag},
		ClassUnknown: {0, 10, 128, 65000},
	}
	for class, ids := range want {
		for _, id := range ids {
			require.Equal(t, class, KnownClasses(id), "option %d", id)
			byDefault := class
			if class == ClassUnknown {
				byDefault = ClassE
			}
			require.Equal(t, byDefault, DefaultClasses(id), "option %d", id)
		}
	}
}

// OC-41: what an option with a part outside has where. What somebody on the way puts
// outside does not count.
func TestBothClasses(t *testing.T) {
	client, server := pair(t, DefaultAlgorithm)
	inside := message.Options{opt(wire.Observe, ""), opt(wire.MaxAge, "\x05"), opt(wire.Block2, "\x06"), opt(wire.Block1, "\x0e"),
		opt(wire.Size2, "\x09"), opt(wire.Size1, "\x08"), opt(wire.Echo, "echo"), opt(wire.NoResponse, "\x02"), opt(wire.RequestTag, "tag")}
	request := Message{Code: wire.FETCH, Options: inside, Payload: []byte("q")}
	protected, requester, err := client.ProtectRequest(request, DefaultClasses)
	require.NoError(t, err)
	require.Len(t, protected.Options, 2, "Observe and OSCORE alone are outside")
	require.Equal(t, opt(wire.Observe, ""), protected.Options[0], "the same as inside")
	for _, o := range []message.Option{opt(wire.MaxAge, "\x77"), opt(wire.Size2, "\x77"), opt(wire.Echo, "other"), opt(wire.NoResponse, "\x1a"), opt(wire.RequestTag, "x")} {
		protected.Options = insert(protected.Options, o)
	}
	got, responder, err := unprotectRequest(server, protected, DefaultClasses)
	require.NoError(t, err)
	require.Equal(t, request, got)

	notification := Message{Code: codes.Content, Options: message.Options{opt(wire.Observe, "\x07"), opt(wire.MaxAge, "\x05"), opt(wire.Block2, "\x06")}, Payload: []byte("1")}
	answer, err := responder.Protect(notification, DefaultClasses)
	require.NoError(t, err)
	require.Equal(t, opt(wire.Observe, "\x07"), answer.Options[0], "the number is outside")
	require.Len(t, answer.Options, 2)
	answer.Options = insert(answer.Options, opt(wire.MaxAge, "\x77"))
	out, err := requester.Unprotect(answer, DefaultClasses)
	require.NoError(t, err)
	maxAge, _ := wire.First(out.Options, wire.MaxAge)
	require.Equal(t, []byte{5}, maxAge)
	require.True(t, wire.Has(out.Options, wire.Block2))
}

// OH-34, OH-57
func TestProtectUnknownOption(t *testing.T) {
	client, server := pair(t, DefaultAlgorithm)
	request := getRequest()
	request.Options = append(request.Options, opt(128, "x"))
	_, _, err := client.ProtectRequest(request, KnownClasses)
	var unknown *UnknownOptionError
	require.ErrorAs(t, err, &unknown)
	require.Equal(t, message.OptionID(128), unknown.ID)

	_, responder := converse(t, client, server, request)
	response := contentResponse()
	response.Options = append(response.Options, opt(128, "x"))
	_, err = responder.Protect(response, KnownClasses)
	require.ErrorAs(t, err, &unknown)
	require.EqualValues(t, 1, client.Usage().Sequence, "the refused request took no number")
}

// RFC 8613 §4.1.3.7 for a layer that does not nest; OH-30 is how a hop does.
func TestProtectOSCOREOutside(t *testing.T) {
	client, _ := pair(t, DefaultAlgorithm)
	m := Message{Code: codes.POST, Options: message.Options{opt(wire.OSCORE, "\x09\x01\x02")}, Payload: []byte("c")}
	_, _, err := client.ProtectRequest(m, DefaultClasses)
	require.ErrorIs(t, err, ErrOutside)
	_, _, err = client.ProtectRequest(m, hopClasses(m))
	require.NoError(t, err)
}

// OH-23, OH-24
func TestMerge(t *testing.T) {
	client, server := pair(t, DefaultAlgorithm)
	request := Message{Code: codes.PUT, Options: message.Options{
		opt(wire.IfMatch, "tag"), opt(wire.URIPath, "a"), opt(wire.URIPath, "b"), opt(wire.ProxyScheme, "coap"),
	}}
	allInside := func(id message.OptionID) Class {
		if class := DefaultClasses(id); class != ClassU {
			return class
		}
		return ClassE
	}
	protected, _, err := client.ProtectRequest(request, allInside)
	require.NoError(t, err)
	require.Len(t, protected.Options, 1)
	// What an attacker may put around it.
	protected.Options = message.Options{
		opt(wire.IfMatch, "forged"), opt(wire.MulticastTimeout, "\x01"), opt(wire.URIHost, "outside"), opt(wire.Observe, "\x00"),
		protected.Options[0],
		opt(wire.URIPath, "forged"), opt(wire.MaxAge, "\x01"), opt(wire.HopLimit, "\x08"),
		opt(wire.ProxyScheme, "coaps"), opt(wire.Echo, "echo"), opt(wire.NoResponse, "\x1a"), opt(300, "unknown"),
	}
	got, _, err := unprotectRequest(server, protected, func(id message.OptionID) Class {
		if id == wire.MulticastTimeout { // of a peer that is the previous hop
			return ClassE
		}
		return DefaultClasses(id)
	})
	require.NoError(t, err)
	require.Equal(t, message.Options{
		opt(wire.IfMatch, "tag"), opt(wire.URIHost, "outside"), opt(wire.URIPath, "a"), opt(wire.URIPath, "b"),
		opt(wire.HopLimit, "\x08"), opt(wire.ProxyScheme, "coap"),
	}, got.Options)
}

// OH-36
func TestSplitProxyURI(t *testing.T) {
	client, server := pair(t, DefaultAlgorithm)
	request := Message{Code: codes.GET, Options: message.Options{
		opt(wire.URIPath, "ignored"), opt(wire.Accept, ""), opt(wire.ProxyURI, "coap://example.com/a/b?q=1"),
	}}
	protected, _, err := client.ProtectRequest(request, DefaultClasses)
	require.NoError(t, err)
	require.Equal(t, opt(wire.ProxyURI, "coap://example.com"), protected.Options[len(protected.Options)-1])
	got, _, err := unprotectRequest(server, protected, DefaultClasses)
	require.NoError(t, err)
	require.Equal(t, message.Options{
		opt(wire.URIPath, "a"), opt(wire.URIPath, "b"), opt(wire.URIQuery, "q=1"), opt(wire.Accept, ""),
		opt(wire.ProxyURI, "coap://example.com"),
	}, got.Options)

	// Inside a hop layer it stays whole.
	protected, _, err = client.ProtectRequest(request, func(message.OptionID) Class { return ClassE })
	require.NoError(t, err)
	got, _, err = unprotectRequest(server, protected, DefaultClasses)
	require.NoError(t, err)
	require.Equal(t, request.Options, got.Options)

	for _, bad := range []string{"coap://user@example.com/", "example", "coap://example.com/%zz"} {
		request.Options[2].Value = []byte(bad)
		_, _, err = client.ProtectRequest(request, DefaultClasses)
		require.Error(t, err, bad)
	}
}

// Unsorted options cannot be encoded; nothing is sent wrongly.
func TestProtectUnsorted(t *testing.T) {
	client, server := pair(t, DefaultAlgorithm)
	request := Message{Code: codes.GET, Options: message.Options{opt(wire.URIQuery, "b"), opt(wire.URIPath, "a")}}
	_, _, err := client.ProtectRequest(request, DefaultClasses)
	require.ErrorIs(t, err, wire.ErrUnsorted)
	_, responder := converse(t, client, server, getRequest())
	_, err = responder.Protect(Message{Code: codes.Content, Options: request.Options}, DefaultClasses)
	require.ErrorIs(t, err, wire.ErrUnsorted)
}
