package main

import (
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/udp/coder"
	"github.com/stretchr/testify/require"

	"coapproxy/test/bench/internal/packet"
)

func decode(t *testing.T, b []byte) message.Message {
	t.Helper()
	m := message.Message{Options: make(message.Options, 0, 8)}
	_, err := coder.DefaultCoder.Decode(b, &m)
	require.NoError(t, err)
	return m
}

func TestAnswer(t *testing.T) {
	o := newOrigin(0)
	token := []byte{1, 2, 3, 4}
	path := packet.AppendOption(nil, 0, packet.URIPath, []byte("x"))

	con := decode(t, o.answer(nil, append(packet.AppendHeader(nil, packet.CON, packet.GET, 9, token), path...)))
	require.Equal(t, message.Acknowledgement, con.Type)
	require.Equal(t, codes.Content, con.Code)
	require.EqualValues(t, 9, con.MessageID)
	require.EqualValues(t, token, con.Token)
	require.Len(t, con.Payload, 16)
	maxAge, err := con.Options.GetUint32(message.MaxAge)
	require.NoError(t, err)
	require.Zero(t, maxAge)

	non := decode(t, o.answer(nil, append(packet.AppendHeader(nil, packet.NON, packet.GET, 9, token), path...)))
	require.Equal(t, message.NonConfirmable, non.Type)
	require.EqualValues(t, token, non.Token)

	stats := packet.AppendOption(nil, 0, packet.URIPath, []byte("stats"))
	count := decode(t, o.answer(nil, append(packet.AppendHeader(nil, packet.NON, packet.GET, 9, token), stats...)))
	require.Equal(t, "2", string(count.Payload))

	ping := decode(t, o.answer(nil, packet.AppendHeader(nil, packet.CON, packet.Empty, 77, nil)))
	require.Equal(t, message.Reset, ping.Type)
	require.EqualValues(t, 77, ping.MessageID)

	require.Empty(t, o.answer(nil, packet.AppendHeader(nil, packet.RST, packet.Empty, 1, nil)))
	require.Empty(t, o.answer(nil, []byte("stats")))
}

func TestNotification(t *testing.T) {
	registration := packet.AppendOption(packet.AppendHeader(nil, packet.NON, packet.GET, 1, nil), 0, packet.Observe, nil)
	m := decode(t, newOrigin(60).answer(nil, registration))
	observe, err := m.Options.GetUint32(message.Observe)
	require.NoError(t, err)
	require.EqualValues(t, 1, observe)
	maxAge, err := m.Options.GetUint32(message.MaxAge)
	require.NoError(t, err)
	require.EqualValues(t, 60, maxAge)
	require.Len(t, m.Payload, 16)
}

func TestMaxAge(t *testing.T) {
	m := decode(t, newOrigin(60).answer(nil, packet.AppendHeader(nil, packet.NON, packet.GET, 1, nil)))
	maxAge, err := m.Options.GetUint32(message.MaxAge)
	require.NoError(t, err)
	require.EqualValues(t, 60, maxAge)
}
