package httpbridge

import (
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/stretchr/testify/require"

	"coapproxy/wire"
)

func TestReadVia(t *testing.T) { // HC-106
	for _, x := range []struct {
		values []string
		own    bool
		hops   uint8
	}{
		{nil, false, 0},
		{[]string{""}, false, 0},
		{[]string{"1.1 cache.example"}, false, 0},
		{[]string{"CoAP/1 gw-1"}, true, 0},
		{[]string{"CoAP/1 GW-1 (hop-limit=7), 1.1 nginx"}, true, 7},
		{[]string{"1.1 a", "CoAP/1 gw-1"}, true, 0},
		{[]string{"CoAP/1 gw-2 (hop-limit=7)"}, false, 7},
		{[]string{"CoAP/1 gw-2 (hop-limit=7), 1.0 fred, CoAP/1 gw-3 (hop-limit=3)"}, false, 3},
		{[]string{`1.1 x (gw-1, "(gw-1) \) (nested, CoAP/1 gw-1)), 1.1 y`}, false, 0},
		{[]string{`1.1 x (a \( b), CoAP/1 gw-1`}, true, 0},
		{[]string{"CoAP/1 gw-2 (hop-limit=7), CoAP/1 gw-3 (hop-limit=0)"}, false, 7},
		{[]string{"gw-1"}, false, 0},
		{[]string{"CoAP/1 gw-10"}, false, 0},
		{[]string{"CoAP/1 gw-2 (hop-limit=0)"}, false, 0},
		{[]string{"CoAP/1 gw-2 (hop-limit=256)"}, false, 0},
		{[]string{"CoAP/1 gw-2 (hop-limit=-1)"}, false, 0},
		{[]string{"((((", ")))", ",,,", " , "}, false, 0},
	} {
		own, hops := readVia(x.values, "gw-1")
		require.Equal(t, x.own, own, "%q", x.values)
		require.Equal(t, x.hops, hops, "%q", x.values)
	}
	own, _ := readVia([]string{"1.1 "}, "")
	require.False(t, own)
}

// What viaField writes is read again.
func FuzzVia(f *testing.F) {
	f.Add("1.1 a (b, c), CoAP/1 gw-2 (hop-limit=9)", byte(3))
	f.Add(`((\`, byte(0))
	f.Fuzz(func(t *testing.T, before string, hops byte) {
		readVia([]string{before}, "gw-1")
		field := viaField("gw-1", message.Options{{ID: wire.HopLimit, Value: []byte{hops}}})
		own, read := readVia([]string{field}, "gw-1")
		require.True(t, own)
		require.Equal(t, hops, read)
	})
}

// A request that comes back over HTTP is refused, and what is left of its Hop-Limit
// goes on with one that another proxy has made (HC-106, FP-55).
func TestLoops(t *testing.T) {
	f, chain := newFront(t, func(c *Config) { c.Identifier, c.Pseudonym = "gw", "gw-1" })
	w := do(f, "GET", someTarget, "", "Via: CoAP/1 gw-1 (hop-limit=9), 1.1 elsewhere")
	require.Equal(t, 508, w.Code)
	require.Equal(t, "gw\n", w.Body.String())
	require.Zero(t, chain.count())
	require.Equal(t, 200, do(f, "GET", someTarget, "", "Via: CoAP/1 gw-2 (hop-limit=9)").Code)
	require.Equal(t, "\x09", value(chain.last(), wire.HopLimit))
	require.Equal(t, 200, do(f, "GET", someTarget, "", "Via: 1.1 elsewhere").Code)
	require.Equal(t, "-", value(chain.last(), wire.HopLimit))
}
