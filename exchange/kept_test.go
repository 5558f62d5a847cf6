package exchange

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// request is a request with everything that a registration has.
func request() *Request {
	return &Request{ID: 7, Method: codes.GET, Confirmable: true, Arrival: time.Unix(1e9, 0), BodyLimit: 1 << 20, Scheme: "coap",
		Options: message.Options{{ID: message.ETag, Value: []byte{1, 2}}, {ID: message.Observe, Value: nil}, {ID: message.URIPath, Value: []byte("a")},
			{ID: message.URIPath, Value: []byte("bc")}, {ID: 65000, Value: make([]byte, 300)}},
		Payload: []byte("payload"),
		Target:  Target{Scheme: "coap", Host: "host", Addr: netip.MustParseAddrPort("192.0.2.1:5683")},
		Client:  &Identity{Name: "c"}, Peer: netip.MustParseAddrPort("127.0.0.1:1"), Local: netip.MustParseAddrPort("127.0.0.1:5683")}
}

func none(message.OptionID) bool { return false }

func isETag(id message.OptionID) bool { return id == message.ETag }

func withoutKept(r *Request) *Request {
	c := *r
	c.kept = nil
	return &c
}

func TestKept(t *testing.T) {
	small := request()
	small.Options, small.Payload = small.Options[:4], nil
	large := request()
	large.Payload = make([]byte, 5000)
	several := request()
	several.Target.Also = []GroupAddr{{Name: "other"}}
	for name, r := range map[string]*Request{"small": small, "usual": request(), "large": large, "several groups": several, "no options": {Method: codes.POST, Payload: []byte{1}}, "nothing": {}} {
		for _, room := range []*Room{nil, {}} {
			var k Kept
			require.Nil(t, k.Bare())
			k.Keep(r, room, none)
			want := withoutKept(r.Clone())
			got := k.Request()
			assert.Equal(t, len(r.Payload), k.PayloadLen(), name)
			if len(want.Payload) == 0 {
				want.Payload, got.Payload = nil, nil
			}
			for i := range want.Options { // empty and nil are the same
				want.Options[i].Value = append([]byte{}, want.Options[i].Value...)
				got.Options[i].Value = append([]byte{}, got.Options[i].Value...)
			}
			assert.Equal(t, want, got, name)
			assert.Nil(t, k.Bare().Options, name)
			assert.Nil(t, k.Bare().Payload, name)
		}
	}
}

// What is kept does not change with the buffers that the request borrowed from, nor
// does one Request with what is done to another.
func TestKeptOwnsItsBytes(t *testing.T) {
	r := request()
	var k Kept
	k.Keep(r, nil, isETag)
	clear(r.Payload)
	clear(r.Options[2].Value)
	first := k.Request()
	first.Options = append(first.Options[:0], message.Option{ID: 1})
	first.Target.Host = "elsewhere"
	again := k.Request()
	assert.Equal(t, "payload", string(again.Payload))
	assert.Equal(t, "host", again.Target.Host)
	require.Len(t, again.Options, 4)
	assert.Equal(t, message.Observe, again.Options[0].ID)
	assert.Equal(t, "a", string(again.Options[1].Value))
}

// Layers that keep the same request share what is not options or payload, and only
// that.
func TestKeptShares(t *testing.T) {
	r := request()
	var above, below, room, other Kept
	above.Keep(r, nil, isETag)
	r.Options, r.Payload = r.Options[2:3], nil
	below.Keep(r, nil, nil)
	assert.Same(t, above.Bare(), below.Bare())
	assert.Len(t, above.Request().Options, 4)
	assert.Len(t, below.Request().Options, 1)
	room.Keep(r, &Room{}, none)
	assert.NotSame(t, above.Bare(), room.Bare())
	r.Target.Addr = netip.MustParseAddrPort("192.0.2.2:5683")
	other.Keep(r, nil, none)
	assert.NotSame(t, above.Bare(), other.Bare())
	assert.Equal(t, "192.0.2.1:5683", below.Request().Target.Addr.String())
	assert.Equal(t, "192.0.2.2:5683", other.Request().Target.Addr.String())
}

// A request that a layer has changed in anything but options and payload is not
// taken for the one that was kept above, whatever fields there are.
func TestLikeComparesEveryField(t *testing.T) {
	base := request()
	var visit func(v reflect.Value, path string, changed *Request)
	visit = func(v reflect.Value, path string, changed *Request) {
		for i := range v.NumField() {
			name, f := path+v.Type().Field(i).Name, v.Field(i)
			switch {
			case name == "Options" || name == "Payload" || name == "kept":
				continue
			case f.Kind() == reflect.Struct && (name == "Target" || name == "Timeout" || name == "Stored"):
				visit(f, name+".", changed)
				continue
			}
			old := reflect.New(f.Type()).Elem()
			old.Set(f)
			f.Set(another(t, name, f))
			assert.False(t, changed.isLike(base), name)
			assert.False(t, base.isLike(changed), name)
			f.Set(old)
			require.True(t, changed.isLike(base), name)
		}
	}
	c := *base
	visit(reflect.ValueOf(&c).Elem(), "", &c)
}

// another is another value than v.
func another(t *testing.T, name string, v reflect.Value) reflect.Value {
	switch v.Interface().(type) {
	case netip.AddrPort:
		return reflect.ValueOf(netip.MustParseAddrPort("[2001:db8::1]:9"))
	case time.Time:
		return reflect.ValueOf(time.Unix(5, 0))
	case []GroupAddr:
		return reflect.ValueOf([]GroupAddr{{}})
	case []string:
		return reflect.ValueOf([]string{"g"})
	case *Identity:
		return reflect.ValueOf(&Identity{})
	}
	n := reflect.New(v.Type()).Elem()
	switch v.Kind() {
	case reflect.Bool:
		n.SetBool(!v.Bool())
	case reflect.String:
		n.SetString(v.String() + "x")
	case reflect.Int, reflect.Int64:
		n.SetInt(v.Int() + 1)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		n.SetUint(v.Uint() + 1)
	case reflect.Interface:
		n.Set(reflect.ValueOf(sealing{}))
	default:
		require.Fail(t, "no other value", name)
	}
	return n
}

type sealing struct{ Sealing }
