package oscorehop

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// One request and its response through one layer, both ends.
func BenchmarkExchange(b *testing.B) {
	for _, a := range allAlgorithms {
		b.Run(a.String(), func(b *testing.B) {
			client, server := pair(b, a)
			client.limits.Encryptions, server.limits.Encryptions = 1<<40, 1<<40
			request, response := getRequest(), contentResponse()
			b.ReportAllocs()
			for b.Loop() {
				requester, responder := converse(b, client, server, request)
				answer, err := responder.Protect(response, DefaultClasses)
				require.NoError(b, err)
				_, err = requester.Unprotect(answer, DefaultClasses)
				require.NoError(b, err)
			}
		})
	}
}
