package proxy

import (
	"fmt"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
)

// What may hold a secret in a URI never gets into the log, whatever is wrong with it
// (FP-10).
func TestNoSecretsInLog(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c := g.peer(userAddr)
		for _, text := range []string{"bogus://h.example/x?k=s3cret", "coap://user:s3cret@h.example/x", "coap://h.example:99999/x?s3cret", "s3cret@h",
			"http://u:s3cret@h.example/%zz?s3cret", "coap://127.0.0.9/x?s3cret", "coap://h.example/<>?k=s3cret#f"} {
			c.ask(msg(non, codes.GET, "t", uri(text)))
		}
		require.Len(t, c.take(), 7)
		require.NotZero(t, g.log.FilterMessage("request refused").Len())
		for _, e := range g.log.All() {
			require.NotContains(t, fmt.Sprint(e.Message, e.ContextMap()), "s3cret")
		}
	})
	require.Equal(t, "coap://h/x", string(withoutSecrets([]byte("coap://a@b:c@h/x?q"))))
}
