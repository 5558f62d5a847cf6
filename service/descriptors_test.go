package service

import (
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/config"
)

func TestConnectionsWithin(t *testing.T) {
	parse := func(listen string) *config.Config {
		c, err := config.Parse("config.yaml", []byte("listen: ["+listen+"]\n"), config.WithInterfaces(nil))
		require.NoError(t, err)
		return c
	}
	all := parse(`"coap+tcp://127.0.0.1:1", "coap+ws://127.0.0.1:2", "http://127.0.0.1:3", "http://127.0.0.1:4"`)
	for _, tt := range []struct {
		name                     string
		descriptors              uint64
		config                   *config.Config
		streams, handshakes, web int
		lowered                  bool
	}{
		{"the service of the package", 65536, all, 4096, 256, 4096, false},
		{"just enough", 2 * 3 * 4096, all, 4096, 256, 4096, false},
		{"few", 1024, all, 170, 170, 170, true},
		{"very few", 64, all, leastConnections, leastConnections, leastConnections, true},
		{"unlimited", 1 << 63, all, 4096, 256, 4096, false},
		{"HTTP alone", 8192, parse(`"http://127.0.0.1:3"`), 4096, 256, 4096, false},
		{"UDP alone", 64, parse(`"coap://127.0.0.1:3"`), 4096, 256, 4096, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := connectionsWithin(tt.descriptors, tt.config)
			require.Equal(t, []int{tt.streams, tt.handshakes, tt.web}, []int{l.streams.Connections, l.streams.Handshakes, l.web})
			require.Equal(t, tt.lowered, l.lowered)
		})
	}
}
