package test

import (
	"net/netip"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// A body in blocks from a server is the proxy's to gather, and to cut again for
// the client (FP-72).
func TestForwardDownload(t *testing.T) {
	t.Parallel()
	body := pattern(3000)
	origin := single(t, paths(map[string]handler{"large": blockwise(body, 5, coap.Opt(coap.ETag, "e")), "fits": blockwise(body[:900], 3)}))
	p := startProxy(t, netip.AddrPort{}, forwarding)
	c := newClient(t, here, clientAddr, p.addr())
	uri := "coap://" + origin.addr().String()

	in := c.ask(get(coap.CON, uri+"/fits")) // in one message of the client's leg
	require.Equal(t, string(body[:900]), string(in.Payload))
	require.False(t, in.Has(coap.Block2))

	for _, szx := range []uint32{6, 2} {
		var got []byte
		for num := uint32(0); ; num++ {
			m := get(coap.CON, uri+"/large")
			if num > 0 || szx != 6 { // the first time without having asked for blocks
				m.Options = append(m.Options, block(coap.Block2, num, false, szx))
			}
			in := c.ask(m)
			require.Equal(t, coap.CodeOf(2, 5), in.Code, "%q", in.Payload)
			b, ok := in.Option(coap.Block2)
			require.True(t, ok)
			require.Equal(t, uint64(num)<<4|uint64(szx), b.Uint()&^8)
			require.Equal(t, [][]byte{[]byte("e")}, in.All(coap.ETag))
			got = append(got, in.Payload...)
			if b.Uint()&8 == 0 {
				break
			}
		}
		require.Equal(t, string(body), string(got))
	}
}

// A body in blocks from a client arrives whole (FP-73), whatever the leg behind
// the proxy makes of it.
func TestForwardUpload(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	received := make(map[string][]byte)
	origin := single(t, func(s *server, r *request) {
		mu.Lock()
		defer mu.Unlock()
		received[r.Path()] = append(received[r.Path()], r.Payload...)
		m := coap.Message{Code: coap.CodeOf(2, 4)}
		if o, ok := r.Option(coap.Block1); ok {
			m.Options = []coap.Option{o}
			if o.Uint()&8 != 0 {
				m.Code = coap.CodeOf(2, 31)
			}
		}
		s.answer(r, m)
	})
	p := startProxy(t, netip.AddrPort{}, forwarding)
	c := newClient(t, here, clientAddr, p.addr())
	put := func(path string, body []byte, num uint32, more bool) incoming {
		m := get(coap.CON, "coap://"+origin.addr().String()+path, block(coap.Block1, num, more, 2))
		m.Code, m.Payload = coap.PUT, body
		return c.ask(m)
	}
	for path, size := range map[string]int{"/small": 600, "/large": 5000} {
		body := pattern(size)
		for num := 0; num*64 < size; num++ {
			end := min(num*64+64, size)
			in := put(path, body[num*64:end], uint32(num), end < size)
			want := coap.CodeOf(2, 31)
			if end == size {
				want = coap.CodeOf(2, 4)
			}
			require.Equal(t, want, in.Code, "block %d: %q", num, in.Payload)
			b, ok := in.Option(coap.Block1)
			require.True(t, ok)
			require.Equal(t, uint64(num), b.Uint()>>4)
		}
		mu.Lock()
		require.Equal(t, string(body), string(received[path]))
		mu.Unlock()
	}
	// A gap, and a beginning in the middle: 4.08 (FP-73).
	require.Equal(t, coap.CodeOf(2, 31), put("/gap", pattern(64), 0, true).Code)
	require.Equal(t, coap.CodeOf(4, 8), put("/gap", pattern(64), 2, true).Code)
	require.Equal(t, coap.CodeOf(4, 8), put("/middle", pattern(64), 3, false).Code)
	mu.Lock()
	defer mu.Unlock()
	require.NotContains(t, received, "/gap")
	require.NotContains(t, received, "/middle")
}
