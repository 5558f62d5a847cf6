package test

import (
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// SIGHUP does not end the proxy; the log goes where log.output says.
func TestHangup(t *testing.T) {
	t.Parallel()
	origin := single(t, content)
	s := forwarding
	s.log = "debug\n  output: stdout"
	p := startProxy(t, group0, s)
	p.signal(syscall.SIGHUP)
	p.waitFor("configuration read again")
	in := newClient(t, here, clientAddr, p.addr()).ask(get(coap.CON, "coap://"+origin.addr().String()+"/x"))
	require.Equal(t, coap.CodeOf(2, 5), in.Code)
}
