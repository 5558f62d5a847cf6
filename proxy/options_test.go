package proxy

import (
	"strings"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"pgregory.net/rapid"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// Options of a proxy request: one that is unsafe and not understood cannot be
// processed (FP-20, GC-74), nor one of a bad length or too many (FP-22); what
// is safe goes through (FP-21).
func TestRequestOptions(t *testing.T) {
	for name, tt := range map[string]struct {
		options []message.Option
		bad     message.OptionID // 0: passes
		out     string
	}{
		"unknown, unsafe":             {[]message.Option{opt(60002, "x")}, 60002, ""},
		"unknown, unsafe, critical":   {[]message.Option{opt(60003, "x")}, 60003, ""},
		"unknown, safe":               {[]message.Option{opt(60000, "x")}, 0, " 60000=78"},
		"unknown, safe, critical":     {[]message.Option{opt(60001, "x"), opt(60001, "y")}, 0, " 60001=78 60001=79"},
		"Q-Block1 (GC-53, FP-79)":     {[]message.Option{opt(wire.QBlock1, "\x06")}, wire.QBlock1, ""},
		"Q-Block2":                    {[]message.Option{opt(wire.QBlock2, "\x06")}, wire.QBlock2, ""},
		"multicast responses (GC-77)": {[]message.Option{opt(wire.ListenToMulticastResponses, "xxx")}, wire.ListenToMulticastResponses, ""},
		"unsafe, too long":            {[]message.Option{opt(wire.URIPort, "\x00\x00\x01")}, wire.URIPort, ""},
		"unsafe, too short":           {[]message.Option{opt(wire.URIHost, "")}, wire.URIHost, ""},
		"unsafe, repeated":            {[]message.Option{opt(wire.URIHost, "a"), opt(wire.URIHost, "a")}, wire.URIHost, ""},
		"long segment":                {[]message.Option{opt(wire.URIPath, strings.Repeat("x", 256))}, wire.URIPath, ""},
		"No-Response too long":        {[]message.Option{opt(wire.NoResponse, "\x00\x1a")}, wire.NoResponse, ""},
		"T' too long (GP-3)":          {[]message.Option{opt(wire.MulticastTimeout, "\x00\x00\x00\x00\x01")}, wire.MulticastTimeout, ""},
		"T' twice (GP-3)":             {[]message.Option{timeout(1), timeout(1)}, wire.MulticastTimeout, ""},
		"second Proxy-Uri":            {[]message.Option{uri("coap://192.0.2.2")}, wire.ProxyURI, ""},
		"Proxy-Cri too long (FP-3)":   {[]message.Option{opt(wire.ProxyCRI, strings.Repeat("x", 1024))}, wire.ProxyCRI, ""},
		"safe, too long":              {[]message.Option{opt(wire.ETag, "123456789")}, 0, " 4=313233343536373839"},
		"safe, too long, critical":    {[]message.Option{opt(wire.IfMatch, "123456789")}, 0, " 1=313233343536373839"},
		"safe, repeated":              {[]message.Option{opt(wire.ContentFormat, "1"), opt(wire.ContentFormat, "2")}, 0, " 12=31 12=32"},
		"protected (FP-24)":           {[]message.Option{opt(wire.OSCORE, "o"), opt(wire.EDHOC, "")}, 0, " 9=6f 21="},
		"Echo (FP-24)":                {[]message.Option{opt(wire.Echo, "e")}, 0, " 252=65"},
		"Hop-Limit 0 (FP-52)":         {[]message.Option{opt(wire.HopLimit, "\x00")}, wire.HopLimit, ""},
		"Hop-Limit empty":             {[]message.Option{opt(wire.HopLimit, "")}, wire.HopLimit, ""},
		"Hop-Limit too large":         {[]message.Option{opt(wire.HopLimit, "\x01\x00")}, wire.HopLimit, ""},
	} {
		t.Run(name, func(t *testing.T) {
			e := resolve(t, nil, append([]message.Option{uri("coap://192.0.2.1")}, tt.options...)...)
			switch {
			case tt.bad == 0:
				require.Equal(t, "next", e.where)
				require.Equal(t, tt.out, optionsOf(e.request.Options))
			case tt.bad == wire.HopLimit:
				require.Equal(t, "bad_request", e.where)
			default:
				require.Equal(t, "bad_option", e.where)
				require.Equal(t, tt.bad, e.failure.Option)
			}
		})
	}
}

// throughRoute passes a request through Route to a leg that answers with the
// responses.
func throughRoute(t *testing.T, r *exchange.Request, answers ...*exchange.Response) *end {
	t.Helper()
	e := &end{}
	numbers := wire.DefaultNumbers()
	leg := func(where string) exchange.Handler {
		return exchange.HandlerFunc(func(r *exchange.Request, w exchange.Sink) exchange.Canceler {
			e.where, e.request = where, r.Clone()
			for _, p := range answers {
				if w.Respond(p) == exchange.Stop {
					break
				}
			}
			w.End(nil)
			return exchange.Ended{}
		})
	}
	route := &Route{Group: leg("group"), Unicast: leg("unicast"), Numbers: &numbers, HopLimit: 16, Identifier: "gw",
		GroupBody: func(*exchange.Request) int { return 100 }, HoldBack: NewHoldBack(), Log: zap.NewNop()}
	route.Exchange(r, e)
	require.Equal(t, 1, e.ends)
	return e
}

// toServer and toGroup are requests as they come to Route.
func toServer(options ...message.Option) *exchange.Request {
	return &exchange.Request{Method: codes.GET, Options: options, Target: exchange.Target{Scheme: "coap", Addr: addrPort("192.0.2.1:5683")}}
}

func toGroup(options ...message.Option) *exchange.Request {
	return &exchange.Request{Method: codes.GET, Options: options, Timeout: exchange.Timeout{Seconds: 10, Present: true},
		Target: exchange.Target{Scheme: "coap", Addr: addrPort("224.0.1.187:5683"), Group: true}}
}

// FP-24, GC-72: what becomes of each option on the way to a server or a group.
func TestOnwardOptions(t *testing.T) {
	for name, tt := range map[string]struct {
		in             []message.Option
		unicast, group string
	}{
		"path and query":   {[]message.Option{opt(wire.URIPath, "r"), opt(wire.URIQuery, "q")}, " 11=72 15=71 16=10", " 11=72 15=71 16=10"},
		"conditions":       {[]message.Option{opt(wire.IfMatch, "m"), opt(wire.ETag, "e"), opt(wire.IfNoneMatch, "")}, " 1=6d 4=65 5= 16=10", " 1=6d 4=65 5= 16=10"},
		"formats":          {[]message.Option{opt(wire.ContentFormat, "c"), opt(wire.Accept, "a")}, " 12=63 16=10 17=61", " 12=63 16=10 17=61"},
		"Max-Age":          {[]message.Option{opt(wire.MaxAge, "\x01")}, " 16=10", " 16=10"},
		"Observe":          {[]message.Option{opt(wire.Observe, "")}, " 6= 16=10", " 6= 16=10"},         // FP-62, GP-62
		"Observe 1":        {[]message.Option{opt(wire.Observe, "\x01")}, " 16=10", " 16=10"},           // FP-67
		"No-Response":      {[]message.Option{opt(wire.NoResponse, "\x08")}, " 16=10", " 16=10 258=08"}, // FP-84, GP-35
		"Group-ETag":       {[]message.Option{opt(wire.GroupETag, "g")}, " 16=10 24=67", " 16=10"},      // GP-30
		"Block1":           {[]message.Option{opt(wire.Block1, "\x06")}, " 16=10 27=06", " 16=10"},      // whole: GC-52
		"Block2 (GC-50)":   {[]message.Option{opt(wire.Block2, "\x02")}, " 16=10 23=02", " 16=10 23=02"},
		"unknown":          {[]message.Option{opt(60000, "x"), opt(60001, "y")}, " 16=10 60000=78 60001=79", " 16=10 60000=78 60001=79"},
		"protected":        {[]message.Option{opt(wire.OSCORE, "o"), opt(wire.EDHOC, "")}, " 9=6f 16=10 21=", " 9=6f 16=10 21="},
		"Hop-Limit":        {[]message.Option{opt(wire.HopLimit, "\x07")}, " 16=06", " 16=06"}, // FP-52, GC-75
		"second Hop-Limit": {[]message.Option{opt(wire.HopLimit, "\x07"), opt(wire.HopLimit, "\x00")}, " 16=06 16=00", " 16=06 16=00"},
		"Reply-From":       {[]message.Option{opt(wire.ReplyFrom, "r")}, " 16=10 248=72", " 16=10 248=72"},
	} {
		t.Run(name, func(t *testing.T) {
			e := throughRoute(t, toServer(tt.in...))
			require.Equal(t, "unicast", e.where)
			require.Equal(t, tt.unicast, optionsOf(e.request.Options))
			e = throughRoute(t, toGroup(tt.in...))
			require.Equal(t, "group", e.where)
			require.Equal(t, tt.group, optionsOf(e.request.Options))
		})
	}
}

// FP-84: No-Response goes on to single servers where that is configured, but for
// registrations and HTTP servers, and what is no No-Response.
func TestNoResponseOnward(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*exchange.Request)
		want   string
	}{
		"plain":        {func(*exchange.Request) {}, " 16=10 258=1a"},
		"next proxy":   {func(r *exchange.Request) { r.Target.NextHop = "n" }, " 16=10 258=1a"},
		"http":         {func(r *exchange.Request) { r.Target.Scheme = "http" }, " 16=10"},
		"registration": {func(r *exchange.Request) { r.Options = append(message.Options{opt(wire.Observe, "")}, r.Options...) }, " 6= 16=10"},
		"malformed":    {func(r *exchange.Request) { r.Options[0].Value = []byte{1, 2} }, " 16=10"},
		"empty":        {func(r *exchange.Request) { r.Options[0].Value = nil }, " 16=10"},
	} {
		t.Run(name, func(t *testing.T) {
			r := toServer(opt(wire.NoResponse, "\x1a"))
			tt.change(r)
			numbers := wire.DefaultNumbers()
			route := &Route{Numbers: &numbers, HopLimit: 16, ForwardNoResponse: true}
			options, f := route.onward(r, nil)
			require.Nil(t, f)
			require.Equal(t, tt.want, optionsOf(options))
		})
	}
}

// GC-72: a name is repeated in Uri-Host, an address and a port are not. The
// option is in its place, whatever others there are.
func TestUriHostOnward(t *testing.T) {
	for _, r := range []*exchange.Request{toServer(opt(wire.IfMatch, "m"), opt(wire.URIPath, "r")), toGroup(opt(wire.IfMatch, "m"), opt(wire.URIPath, "r"))} {
		r.Target.Host = "a.example"
		require.Equal(t, " 1=6d 3=612e6578616d706c65 11=72 16=10", optionsOf(throughRoute(t, r).request.Options))
	}
}

// Whatever sorted options come in, sorted ones go out, so that the message can
// be encoded.
func TestOnwardOptionsAreSorted(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		ids := rapid.SliceOfN(rapid.SampledFrom([]message.OptionID{1, 3, 4, 5, 6, 7, 9, 11, 12, 13, 14, 15, 16, 17, 23, 24, 27, 60, 248, 252, 258, 292, 60000}), 0, 12).Draw(rt, "options")
		var options []message.Option
		for _, id := range ids {
			options = append(options, opt(id, "\x06"))
		}
		m := msg(con, codes.GET, "", options...)
		r := toServer(m.Options...)
		if rapid.Bool().Draw(rt, "group") {
			r = toGroup(m.Options...)
			r.Timeout.Seconds = rapid.Uint32Range(0, 1).Draw(rt, "timeout")
		}
		r.Target.Host = rapid.SampledFrom([]string{"", "a.example"}).Draw(rt, "host")
		if e := throughRoute(t, r); e.request != nil {
			_, err := (&wire.Message{Code: codes.GET, Options: e.request.Options}).Append(nil)
			require.NoError(t, err)
		}
	})
}

// FP-26: a method the proxy does not know goes to a server as it is.
func TestUnknownMethod(t *testing.T) {
	r := toServer()
	r.Method = 0x1f
	require.Equal(t, codes.Code(0x1f), throughRoute(t, r).request.Method)
}

// GC-52, GC-56: a request body that does not fit one message to the group is
// refused with the limit; Block1 says nothing about one that is whole.
func TestGroupBody(t *testing.T) {
	for name, tt := range map[string]struct {
		payload int
		block   []message.Option
		reason  exchange.Reason // 0: it fits
	}{
		"fits":          {100, nil, 0},
		"too large":     {101, nil, exchange.TooLarge},
		"whole":         {64, []message.Option{opt(wire.Block1, "\x02")}, 0},
		"first block":   {64, []message.Option{opt(wire.Block1, "\x0a")}, exchange.TooLarge},
		"later block":   {64, []message.Option{opt(wire.Block1, "\x12")}, exchange.TooLarge},
		"reserved size": {64, []message.Option{opt(wire.Block1, "\x07")}, exchange.BadOption},
	} {
		t.Run(name, func(t *testing.T) {
			r := toGroup(tt.block...)
			r.Payload = make([]byte, tt.payload)
			e := throughRoute(t, r)
			if tt.reason == 0 {
				require.Equal(t, "group", e.where)
				return
			}
			require.Equal(t, tt.reason.String(), e.where)
			if tt.reason == exchange.TooLarge {
				require.EqualValues(t, 100, e.failure.Limit)
			}
		})
	}
	r := toServer()
	r.Payload = make([]byte, 101)
	require.Equal(t, "unicast", throughRoute(t, r).where)
}

// The Observe of a server never reaches a client that the proxy has not
// registered (FP-24).
func TestObserveRemoved(t *testing.T) {
	m := msg(con, codes.Content, "", opt(wire.ETag, "e"), opt(wire.Observe, "\x07"), opt(wire.MaxAge, ""))
	p := &exchange.Response{Code: codes.Content, Options: m.Options, From: addrPort("192.0.2.1:5683")}
	e := throughRoute(t, toServer(), p)
	require.Len(t, e.responses, 1)
	require.Len(t, e.responses[0].Options, 2)
	require.False(t, wire.Has(e.responses[0].Options, wire.Observe))
	require.True(t, wire.Has(p.Options, wire.Observe), "the response of the leg is not changed")
}

// What comes from a server: an unsafe option that is not understood, or not as
// it should be, makes a response unusable, and so does a code of no class of
// responses (FP-20, FP-22, FP-27, FP-33); what is safe goes through, critical or
// not (FP-21), also with a length it should not have.
func TestResponseOptions(t *testing.T) {
	for name, tt := range map[string]struct {
		code    codes.Code
		options []message.Option
		ok      bool
	}{
		"plain":                   {codes.Content, nil, true},
		"error":                   {codes.NotFound, []message.Option{opt(wire.MaxAge, "\x05")}, true},
		"understood":              {codes.Content, []message.Option{opt(wire.MaxAge, ""), opt(wire.Block2, "\x06"), opt(wire.Block1, "\x06")}, true},
		"locations":               {codes.Created, []message.Option{opt(wire.LocationPath, "a"), opt(wire.LocationPath, "b"), opt(wire.LocationQuery, "c")}, true},
		"unknown, safe":           {codes.Content, []message.Option{opt(60000, ""), opt(60001, "")}, true},
		"Echo (GC-76)":            {codes.Unauthorized, []message.Option{opt(wire.Echo, "e")}, true},
		"safe, too long":          {codes.Content, []message.Option{opt(wire.ETag, "123456789")}, true},
		"unknown, unsafe":         {codes.Content, []message.Option{opt(60002, "")}, false},
		"a request's option":      {codes.Content, []message.Option{opt(wire.URIPath, "r")}, false},
		"Multicast-Timeout":       {codes.Content, []message.Option{timeout(1)}, false},
		"understood, too long":    {codes.Content, []message.Option{opt(wire.MaxAge, "12345")}, false},
		"understood, too many":    {codes.Content, []message.Option{opt(wire.MaxAge, ""), opt(wire.MaxAge, "")}, false},
		"unknown class 3":         {0x60, nil, false},
		"unknown code of class 2": {0x5e, nil, true},
		"unknown code of class 5": {0xbe, nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			m := msg(con, tt.code, "", tt.options...)
			from := addrPort("192.0.2.1:5683")
			p := &exchange.Response{Code: tt.code, Options: m.Options, Payload: []byte("p"), From: from}
			e := throughRoute(t, toServer(), p)
			if tt.ok {
				require.Nil(t, e.failure)
				require.Equal(t, []*exchange.Response{p}, e.responses)
			} else {
				require.Equal(t, exchange.BadResponse, e.failure.Reason)
				require.Empty(t, e.responses)
			}

			// In a group it is that server's 5.02, and the others' responses
			// follow (GP-60).
			p.GroupPort = 5683
			fine := &exchange.Response{Code: codes.Content, From: from, GroupPort: 5683}
			e = throughRoute(t, toGroup(), p, fine)
			require.Nil(t, e.failure)
			require.Len(t, e.responses, 2)
			if tt.ok {
				require.Equal(t, p, e.responses[0])
			} else {
				require.Equal(t, codes.BadGateway, e.responses[0].Code)
				require.Equal(t, from, e.responses[0].From)
				require.EqualValues(t, 5683, e.responses[0].GroupPort)
			}
		})
	}
}
