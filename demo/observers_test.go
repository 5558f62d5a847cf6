package demo

import (
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/wire"
)

// sequence is the value of Observe, -1 for none.
func sequence(m wire.Message) int {
	value, ok := wire.ObserveOf(m.Options)
	if !ok {
		return -1
	}
	return int(value)
}

// register is a registration; its Token is kept for the notifications.
func register(path ...string) wire.Message { return with(get(path...), wire.Observe, "") }

func TestObserveDevice(t *testing.T) {
	g := start(t, Options{Devices: 2, Seed: 1})
	c, other := newClient(t), newClient(t)
	kitchen := g.Devices()[0].Addr
	first := c.ask(kitchen, register("light"))
	require.Equal(t, 1, sequence(first))
	require.Equal(t, "off", string(first.Payload))
	require.Equal(t, codes.Changed, other.ask(kitchen, put("on", "light")).Code)
	m, from := c.receive()
	require.Equal(t, kitchen, from)
	require.Equal(t, first.Token, m.Token)
	require.Equal(t, message.NonConfirmable, m.Type)
	require.Equal(t, 2, sequence(m))
	require.Equal(t, "on", string(m.Payload))

	// What does not change cannot be observed.
	require.Equal(t, -1, sequence(c.ask(kitchen, register("info"))))

	// GC-47: a notification now and then that has to be acknowledged.
	for i := range confirmEvery {
		require.Equal(t, codes.Changed, other.ask(kitchen, put("on", "light")).Code)
		m, _ = c.receive()
		require.Equal(t, i+3, sequence(m))
		if m.Type == message.Confirmable {
			break
		}
	}
	require.Equal(t, message.Confirmable, m.Type)
	data, err := (&wire.Message{Type: message.Reset, ID: m.ID}).Append(nil)
	require.NoError(t, err)
	_, err = c.conn.WriteToUDPAddrPort(data, kitchen) // the client is not interested
	require.NoError(t, err)
	require.Eventually(t, func() bool { return g.observed() == 0 }, 5*time.Second, time.Millisecond)
}

// A registration with the whole group is one with each device, and so is its end
// (GC-42, GC-48); the temperature comes by itself.
func TestObserveDevices(t *testing.T) {
	g := start(t, Options{Devices: 3, Seed: 1})
	c := newClient(t)
	var token []byte
	for _, answer := range c.askGroup(g, register("temp")) {
		token = answer.Token
		require.Equal(t, 1, sequence(answer))
	}
	require.Equal(t, 3, g.observed())
	require.NoError(t, c.conn.SetReadDeadline(time.Now().Add(2*driftEvery)))
	seen := make(map[string]bool)
	buf := make([]byte, 2048)
	for len(seen) < 3 {
		n, from, err := c.conn.ReadFromUDPAddrPort(buf)
		require.NoError(t, err)
		var m wire.Message
		require.NoError(t, m.Decode(buf[:n]))
		require.Equal(t, 2, sequence(m))
		seen[from.String()] = true
	}
	end := with(get("temp"), wire.Observe, "\x01")
	end.Token = token
	c.askGroup(g, end)
	require.Zero(t, g.observed())
}

// There is no room for everybody.
func TestObserversAreBounded(t *testing.T) {
	g := start(t, Options{Devices: 1, Seed: 1})
	c := newClient(t)
	again := register("light")
	for range maxObservers {
		m := c.ask(g.Devices()[0].Addr, register("light"))
		require.Equal(t, 1, sequence(m))
		again.Token = m.Token
	}
	require.Equal(t, -1, sequence(c.ask(g.Devices()[0].Addr, register("light"))))
	require.Equal(t, 2, sequence(c.ask(g.Devices()[0].Addr, again)), "a Token that is registered")
}

// observed is the number of all registrations.
func (g *Group) observed() (n int) {
	for _, d := range g.devices {
		d.mu.Lock()
		n += len(d.observers.all)
		d.mu.Unlock()
	}
	return n
}
