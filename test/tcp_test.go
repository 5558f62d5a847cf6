package test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// group0 is no group.
var group0 netip.AddrPort

// overTCP are settings with a second listener, over TCP.
func overTCP(s settings) settings {
	s.listen = "- coap://127.0.0.1:0\n- coap+tcp://127.0.0.1:0"
	return s
}

// libcoap's client over TCP, bodies of all sizes both ways (FP-72, FP-89).
func TestTCPWithLibcoap(t *testing.T) {
	t.Parallel()
	port := newSocketPort(t)
	start(t, here, "coap-server", "coap-server-notls", "-A", "127.0.0.1", "-p", port, "-d", "10", "-v", "7").waitFor("created UDP")
	p := startProxy(t, group0, overTCP(forwarding))
	via := fmt.Sprintf("coap+tcp://%v", p.addrs[1])
	uri := fmt.Sprintf("coap://127.0.0.1:%s/example_data", port)
	for _, size := range []int{1, 1023, 1024, 1025, 65536} {
		body := bytes.Repeat([]byte("0123456789abcdef"), size/16+1)[:size]
		file, back := filepath.Join(t.TempDir(), "body"), filepath.Join(t.TempDir(), "back")
		require.NoError(t, os.WriteFile(file, body, 0o600))
		put := start(t, here, "coap-client", "coap-client-notls", "-B", "20", "-P", via, "-m", "put", "-f", file, uri)
		require.Zero(t, put.wait())
		get := start(t, here, "coap-client", "coap-client-notls", "-B", "20", "-P", via, "-o", back, uri)
		require.Zero(t, get.wait())
		got, err := os.ReadFile(back)
		require.NoError(t, err)
		require.Equal(t, sha256.Sum256(body), sha256.Sum256(got), "%d bytes", size)
	}
}

// A group over TCP: every response is a message of its own, and closing the
// connection ends the exchange (GP-44).
func TestGroupOverTCP(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 4, content)
	p := startProxy(t, group, overTCP(settings{}))
	conn, err := net.Dial("tcp", p.addrs[1].String())
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	sendFrame(t, conn, &coap.Message{Code: 0xe1}) // CSM
	m := get(coap.NON, fmt.Sprintf("coap://%v/x", group), timeout(60))
	m.Token = []byte{0xa1}
	sendFrame(t, conn, m)
	seen := make(map[string]bool)
	for len(seen) < len(servers) {
		in := readFrame(t, conn)
		if in.Code>>5 == 7 {
			continue // its CSM
		}
		require.Equal(t, coap.CodeOf(2, 5), in.Code)
		require.Equal(t, []byte{0xa1}, in.Token)
		server, err := coap.ReplyFromServer(in.All(coap.ReplyFrom)[0])
		require.NoError(t, err)
		seen[server.String()] = true
	}
	require.NoError(t, conn.Close())
	eventually(t, func() bool { return len(p.entries("group exchange ended")) == 1 }, "the exchange goes on")
}

// newSocketPort is a UDP port of 127.0.0.1 that is free now.
func newSocketPort(t *testing.T) string {
	t.Helper()
	return fmt.Sprint(newSocketPorts(t))
}

// sendFrame writes a message.
func sendFrame(t *testing.T, conn net.Conn, m *coap.Message) {
	t.Helper()
	require.NoError(t, tcpConn{conn}.put(m))
}

// readFrame reads one.
func readFrame(t *testing.T, conn net.Conn) *coap.Message {
	t.Helper()
	m, err := tcpConn{conn}.take()
	require.NoError(t, err)
	return m
}
