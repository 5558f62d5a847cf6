package client

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/wire"
)

func TestObserve(t *testing.T) {
	observe := func(n byte) message.Option { return message.Option{ID: wire.Observe, Value: []byte{n}} }
	get := &Request{Method: codes.GET, URI: "coap://192.0.2.2/temp", Confirmable: true, Observe: true}

	t.Run("notifications", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c, s, _ := dialMemory(t, Config{}, func(a *asked) {
				if value, _ := wire.First(a.Options, wire.Observe); len(value) == 1 {
					a.respond(codes.Content, "deregistered")
					return
				}
				a.respond(codes.Content, "0", observe(1))
				for i, n := range []byte{2, 4, 3, 5} {
					time.AfterFunc(time.Duration(i+1)*time.Hour, func() {
						a.relay(message.NonConfirmable, "", codes.Content, fmt.Sprint(n), observe(n))
					})
				}
				time.AfterFunc(2*time.Hour+time.Second, func() { // overtaken
					a.relay(message.NonConfirmable, "", codes.Content, "old", observe(2))
				})
			})
			var got []string
			for p, err := range c.Do(t.Context(), get) {
				require.NoError(t, err)
				got = append(got, fmt.Sprint(string(p.Payload), p.Stale))
				if string(p.Payload) == "5" {
					break
				}
			}
			// 3 comes an hour after 4 and is therefore newer (RFC 7641 §3.4).
			require.Equal(t, []string{"0false", "2false", "4false", "oldtrue", "3false", "5false"}, got)
			first, last := <-s.requests, <-s.requests
			require.Equal(t, first.Token, last.Token)
			value, ok := wire.First(last.Options, wire.Observe)
			require.True(t, ok)
			require.Equal(t, []byte{1}, value)
		})
	})
	t.Run("not registered", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c, s, _ := dialMemory(t, Config{}, func(a *asked) { a.respond(codes.Content, "21.5") })
			got, err := collect(t.Context(), t, c, get)
			require.NoError(t, err)
			require.Len(t, got, 1)
			require.Len(t, s.requests, 1)
		})
	})
	t.Run("ended by an error", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c, _, _ := dialMemory(t, Config{}, func(a *asked) {
				a.respond(codes.Content, "0", observe(1))
				time.AfterFunc(time.Hour, func() { a.relay(message.NonConfirmable, "", codes.NotFound, "") })
			})
			got, err := collect(t.Context(), t, c, get)
			require.NoError(t, err)
			require.Len(t, got, 2)
		})
	})
	t.Run("group beyond its time", func(t *testing.T) { // GP-64
		synctest.Test(t, func(t *testing.T) {
			c, s, _ := dialMemory(t, Config{}, func(a *asked) {
				if isEarlyStop(a.Message) {
					a.Finish()
					return
				}
				a.relay(message.NonConfirmable, "192.0.2.7:5683", codes.Content, "a", observe(9))
				a.relay(message.NonConfirmable, "192.0.2.8:5683", codes.Content, "b", observe(8)) // another server: not stale
				time.AfterFunc(time.Minute, func() { a.relay(message.NonConfirmable, "192.0.2.7:5683", codes.Content, "c", observe(10)) })
			})
			r := groupGet(2)
			r.Observe = true
			var got []string
			for p, err := range c.Do(t.Context(), r) {
				require.NoError(t, err)
				require.False(t, p.Stale)
				if got = append(got, string(p.Payload)); len(got) == 3 {
					break
				}
			}
			require.Equal(t, []string{"a", "b", "c"}, got)
			<-s.requests
			require.True(t, isEarlyStop(<-s.requests)) // GP-45
		})
	})
}
