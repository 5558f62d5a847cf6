package wire

import (
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
)

// FP-64, GC-43: the three conditions of RFC 7641 §3.4.
func TestNotificationOrder(t *testing.T) {
	start := time.Unix(1_000_000, 0)
	for _, tt := range []struct {
		name     string
		old, new uint32
		after    time.Duration
		want     bool
	}{
		{"the next", 5, 6, 0, true},
		{"the same", 5, 5, time.Second, false},
		{"an older", 6, 5, time.Second, false},
		{"far ahead", 0, 1<<23 - 1, 0, true},
		{"too far ahead", 0, 1 << 23, 0, false},
		{"wrapped", 1<<24 - 1, 0, 0, true},
		{"wrapped, just", 1<<23 + 1, 0, 0, true},
		{"half way down", 1 << 23, 0, 0, false},
		{"an older, 128 s on", 6, 5, 128 * time.Second, false},
		{"an older, later", 6, 5, 128*time.Second + 1, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var o NotificationOrder
			require.True(t, o.Newer(tt.old, start))
			require.Equal(t, tt.want, o.Newer(tt.new, start.Add(tt.after)))
			if !tt.want { // what is dropped does not count
				require.True(t, o.Newer(tt.old+1, start.Add(tt.after)))
			}
		})
	}
}

func TestObserveOptions(t *testing.T) {
	with := func(value ...byte) message.Options { return message.Options{{ID: Observe, Value: value}} }
	require.True(t, IsRegistration(codes.GET, with()))
	require.True(t, IsRegistration(FETCH, with(0)))
	require.False(t, IsRegistration(codes.POST, with()))
	require.False(t, IsRegistration(codes.GET, with(1)))
	require.False(t, IsRegistration(codes.GET, with(0, 0, 0, 0)))
	require.False(t, IsRegistration(codes.GET, nil))
	require.True(t, IsNotification(codes.Content, with(7)))
	require.True(t, IsNotification(codes.Valid, with()))
	require.False(t, IsNotification(codes.NotFound, with(7)))
	require.False(t, IsNotification(codes.Content, nil))
}
