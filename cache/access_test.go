package cache

import (
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/access"
	"coapproxy/exchange"
)

// Nobody gets a stored response who may not ask the server (GP-87, FP-48).
func TestAccessComesFirst(t *testing.T) {
	_, change := members(serverA)
	run(t, change, func(x *fixture) {
		x.fill(groupGet(10, "t"), a("a"))
		policy := access.New(access.Config{Groups: []access.Group{{Name: "all", Addr: allCoAP}}}, x.Cache, access.NewHeard())
		for _, r := range []*exchange.Request{get("t"), groupGet(10, "t")} {
			c := &client{t: t}
			policy.Exchange(r, c)
			require.Empty(t, c.got)
			require.Equal(t, exchange.Denied, exchange.AsFailure(c.ends[0]).Reason)
		}
	})
}
