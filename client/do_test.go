package client

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/endpoint"
	"coapproxy/wire"
)

// GP-116: a response is identified by its Reply-From, never by its source.
func TestManyResponsesOnRealSockets(t *testing.T) {
	const members = 40
	c, s := dialUDP(t, Config{}, func(a *asked) {
		if isEarlyStop(a.Message) {
			a.Finish()
			return
		}
		for i := range members {
			typ := message.NonConfirmable
			if i%2 == 0 {
				typ = message.Confirmable
			}
			a.relay(typ, fmt.Sprintf("192.0.2.%d:5683", i+1), codes.Content, fmt.Sprint("answer ", i))
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	servers := make(map[string]string)
	for p, err := range c.Do(ctx, groupGet(60)) {
		require.NoError(t, err)
		require.Equal(t, codes.Content, p.Code)
		require.Equal(t, c.Peer(), p.Peer)
		require.NotNil(t, p.From)
		servers[p.From.ServerURI()] = string(p.Payload)
		if len(servers) == members {
			break
		}
	}
	require.Len(t, servers, members)
	require.Equal(t, "answer 6", servers["coap://192.0.2.7"])

	request := <-s.requests
	require.Equal(t, message.Confirmable, request.Type)
	require.Len(t, request.Token, 8) // GP-114
	stop := <-s.requests             // GP-40
	require.True(t, isEarlyStop(stop))
	require.Equal(t, message.Confirmable, stop.Type)
	require.Equal(t, request.Token, stop.Token)
	require.NotEqual(t, request.ID, stop.ID)
}

// GP-114: the Token outlives the responses, for T' and a margin.
func TestWindow(t *testing.T) {
	tests := []struct {
		name        string
		confirmable bool
		at          []time.Duration // when the servers answer, after the request reached the proxy
		want        int
		end         time.Duration
	}{
		{"nobody answers", true, nil, 0, 11 * time.Second},
		{"nobody answers, non-confirmable", false, nil, 0, 11 * time.Second},
		{"at any time", true, []time.Duration{0, 1 * time.Second, 9 * time.Second}, 3, 11 * time.Second},
		{"within the margin", false, []time.Duration{10*time.Second + 900*time.Millisecond}, 1, 11 * time.Second},
		{"too late", true, []time.Duration{time.Second, 11*time.Second + time.Millisecond}, 1, 11 * time.Second},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, s, _ := dialMemory(t, Config{}, func(a *asked) {
					a.Ack()
					for i, at := range test.at {
						time.AfterFunc(at, func() {
							a.relay(message.NonConfirmable, fmt.Sprintf("192.0.2.%d:61616", i+1), codes.Content, "21.5")
						})
					}
				})
				r := groupGet(10)
				r.Confirmable = test.confirmable
				began := time.Now()
				got, err := collect(t.Context(), t, c, r)
				require.NoError(t, err)
				require.Len(t, got, test.want)
				require.Equal(t, test.end, time.Since(began))
				for i, p := range got {
					require.Equal(t, test.at[i], p.Elapsed)
					require.Equal(t, fmt.Sprintf("coap://192.0.2.%d:61616", i+1), p.From.ServerURI())
				}
				require.Len(t, s.requests, 1, "an exchange that ran out is not stopped")
				time.Sleep(time.Second) // for what is still under way
			})
		})
	}
}

// A confirmable request that is lost at first opens its window late: the peer's
// time runs from when it has the request (GP-32).
func TestWindowOpensWhenThePeerHasTheRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _, conn := dialMemory(t, Config{}, func(a *asked) {
			a.Ack()
			time.AfterFunc(1900*time.Millisecond, func() { a.relay(message.NonConfirmable, "192.0.2.7:5683", codes.Content, "late") })
		})
		lost := 0
		conn.setLoss(func([]byte) bool { lost++; return lost <= 2 }) // arrives after 6 s at the least
		got, err := collect(t.Context(), t, c, groupGet(2))
		require.NoError(t, err)
		require.Len(t, got, 1)
		require.GreaterOrEqual(t, got[0].Elapsed, 6*time.Second)
	})
}

func TestNothingComesBack(t *testing.T) {
	tests := []struct {
		name    string
		request *Request
		handle  func(*asked)
		lose    bool
		want    error
		after   time.Duration
	}{
		{"group, confirmable, peer silent", groupGet(3), nil, true, endpoint.ErrNoAck, 0},
		{"group, confirmable, impatient", &Request{Method: codes.GET, URI: "coap://224.0.1.187/", Form: ProxyURI, Confirmable: true,
			Timeout: seconds(3), Wait: 5 * time.Second}, nil, true, ErrNoAnswer, 5 * time.Second},
		{"confirmable, acknowledged only", &Request{Method: codes.GET, URI: "coap://192.0.2.2/", Confirmable: true}, (*asked).Ack, false, ErrNoAnswer, 95 * time.Second},
		{"non-confirmable", &Request{Method: codes.GET, URI: "coap://192.0.2.2/"}, nil, true, ErrNoAnswer, 30 * time.Second},
		{"own patience", &Request{Method: codes.GET, URI: "coap://192.0.2.2/", Wait: time.Second}, nil, true, ErrNoAnswer, time.Second},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, _, conn := dialMemory(t, Config{}, test.handle)
				conn.setLoss(func([]byte) bool { return test.lose })
				began := time.Now()
				got, err := collect(t.Context(), t, c, test.request)
				require.ErrorIs(t, err, test.want)
				require.Empty(t, got)
				if test.after > 0 {
					require.Equal(t, test.after, time.Since(began))
				}
			})
		})
	}
}

func TestNobodyThereAndReset(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	dead, err := net.ListenPacket("udp4", "127.0.0.1:0")
	require.NoError(t, err)
	peer := dead.LocalAddr().(*net.UDPAddr).AddrPort()
	require.NoError(t, dead.Close())
	c, err := Dial(ctx, peer, Config{})
	require.NoError(t, err)
	defer c.Close()
	for _, confirmable := range []bool{true, false} {
		_, err = collect(ctx, t, c, &Request{Method: codes.GET, URI: "coap://127.0.0.1/", Confirmable: confirmable})
		require.ErrorIs(t, err, endpoint.ErrUndeliverable)
	}

	// A client has no request handler: it resets requests.
	other, err := Dial(ctx, c.LocalAddr(), Config{Local: c.Peer()})
	require.NoError(t, err)
	defer other.Close()
	_, err = collect(ctx, t, c, &Request{Method: codes.GET, URI: "coap://127.0.0.1/", Confirmable: true})
	require.ErrorIs(t, err, endpoint.ErrReset)
}

// GP-39, GP-85: what the proxy itself says is the end of a group exchange.
func TestTheProxysOwnWordEndsTheExchange(t *testing.T) {
	tests := []struct {
		name    string
		code    codes.Code
		options message.Options
		check   func(t *testing.T, r *Request, p *Response)
	}{
		{"no Multicast-Timeout", codes.BadRequest, message.Options{{ID: wire.MulticastTimeout}}, func(t *testing.T, _ *Request, p *Response) {
			require.True(t, p.TimeoutMissing()) // GP-26
		}},
		{"denied", codes.Unauthorized, nil, func(t *testing.T, r *Request, p *Response) {
			require.False(t, p.TimeoutMissing())
			_, ok := r.WithTimeout(p)
			require.False(t, ok)
		}},
		{"too short", codes.ProxyingNotSupported, message.Options{{ID: wire.MulticastTimeout, Value: []byte{20}}}, func(t *testing.T, r *Request, p *Response) {
			next, ok := r.WithTimeout(p) // GP-99
			require.True(t, ok)
			require.Equal(t, seconds(20), next.Timeout)
			require.Equal(t, seconds(10), r.Timeout)
		}},
		{"too short, but no longer wanted", codes.ProxyingNotSupported, message.Options{{ID: wire.MulticastTimeout, Value: []byte{10}}}, func(t *testing.T, r *Request, p *Response) {
			_, ok := r.WithTimeout(p) // GP-99
			require.False(t, ok)
		}},
		{"Group-ETag still valid", codes.Valid, message.Options{{ID: wire.GroupETag, Value: []byte{1}}}, nil},
		{"Echo wanted", codes.Unauthorized, message.Options{{ID: wire.Echo, Value: []byte{7}}}, func(t *testing.T, r *Request, p *Response) {
			next, ok := r.WithEcho(p)
			require.True(t, ok)
			require.Equal(t, message.Options{{ID: wire.Echo, Value: []byte{7}}}, next.Options)
			require.Empty(t, r.Options)
			_, ok = next.WithEcho(p)
			require.False(t, ok, "once is enough")
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, s, _ := dialMemory(t, Config{}, func(a *asked) { a.respond(test.code, "no", test.options...) })
				r := groupGet(10)
				began := time.Now()
				got, err := collect(t.Context(), t, c, r)
				require.NoError(t, err)
				require.Len(t, got, 1)
				require.Nil(t, got[0].From)
				require.Zero(t, time.Since(began))
				require.Len(t, s.requests, 1)
				if test.check != nil {
					test.check(t, r, got[0])
				}
			})
		})
	}
}

// An error of a server has a Reply-From and ends nothing (GP-39), and its Echo
// challenge is none to the group.
func TestAServersErrorEndsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _, _ := dialMemory(t, Config{}, func(a *asked) {
			a.relay(message.NonConfirmable, "192.0.2.1:5683", codes.Unauthorized, "", message.Option{ID: wire.ReplyFrom - 1, Value: nil})
			time.AfterFunc(2*time.Second, func() { a.relay(message.NonConfirmable, "192.0.2.2:5683", codes.Content, "") })
		})
		r := groupGet(5)
		got, err := collect(t.Context(), t, c, r)
		require.NoError(t, err)
		require.Len(t, got, 2)
		got[0].Options = message.Options{{ID: wire.Echo, Value: []byte{1}}}
		_, ok := r.WithEcho(got[0])
		require.False(t, ok)
	})
}

// GP-115: nothing is wanted, and said so with both options.
func TestNoResponsesWanted(t *testing.T) {
	tests := []struct {
		name        string
		confirmable bool
		options     message.Options
		noResponse  []byte
		handle      func(*asked)
		want        int
		after       time.Duration
	}{
		{"confirmable", true, nil, []byte{26}, (*asked).Ack, 0, 0},
		{"non-confirmable", false, nil, []byte{26}, (*asked).Finish, 0, 0},
		{"errors wanted, none comes", true, message.Options{{ID: wire.NoResponse, Value: []byte{2}}}, []byte{2}, (*asked).Ack, 0, time.Second},
		{"errors wanted, one comes", true, message.Options{{ID: wire.NoResponse, Value: []byte{2}}}, []byte{2},
			func(a *asked) { a.respond(codes.Unauthorized, "who are you?") }, 1, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, s, _ := dialMemory(t, Config{}, test.handle)
				r := groupGet(0)
				r.Confirmable, r.Options = test.confirmable, test.options
				began := time.Now()
				got, err := collect(t.Context(), t, c, r)
				require.NoError(t, err)
				require.Len(t, got, test.want)
				require.Equal(t, test.after, time.Since(began))
				request := <-s.requests
				value, ok := wire.First(request.Options, wire.MulticastTimeout)
				require.True(t, ok)
				require.Empty(t, value)
				value, _ = wire.First(request.Options, wire.NoResponse)
				require.Equal(t, test.noResponse, value)
				synctest.Wait()
				require.Empty(t, s.requests)
			})
		})
	}
}

// GP-40, GP-116: who stops early says so under the same Token and then takes
// nothing any more.
func TestEarlyStop(t *testing.T) {
	cause := errors.New("the user went away")
	for _, confirmable := range []bool{true, false} {
		for _, byContext := range []bool{true, false} {
			t.Run(fmt.Sprintf("confirmable=%v context=%v", confirmable, byContext), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var request *asked
					c, s, _ := dialMemory(t, Config{}, func(a *asked) {
						if isEarlyStop(a.Message) {
							a.Finish()
							return
						}
						request = a
						a.relay(message.NonConfirmable, "192.0.2.7:5683", codes.Content, "one")
					})
					ctx, cancel := context.WithCancelCause(t.Context())
					r := groupGet(60)
					r.Confirmable = confirmable
					var last error
					for _, err := range c.Do(ctx, r) {
						last = err
						if byContext {
							cancel(cause)
						} else {
							break
						}
					}
					if byContext {
						require.ErrorIs(t, last, cause)
					} else {
						require.NoError(t, last)
					}
					first, stop := <-s.requests, <-s.requests
					require.True(t, isEarlyStop(stop))
					require.Equal(t, first.Token, stop.Token)
					require.Equal(t, first.Type, stop.Type)

					// The Token is free: a confirmable response is reset (GP-44).
					synctest.Wait()
					request.relay(message.Confirmable, "192.0.2.8:5683", codes.Content, "two")
					synctest.Wait()
					require.EqualValues(t, 1, s.stats.ResetsReceived.Load())
					require.Zero(t, c.Dropped())
					cancel(nil)
				})
			})
		}
	}
}

// A peer that does not acknowledge the Early Stop Request is waited for only
// briefly.
func TestEarlyStopOfADeadPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _, conn := dialMemory(t, Config{StopWait: 4 * time.Second}, func(a *asked) {
			a.relay(message.NonConfirmable, "192.0.2.7:5683", codes.Content, "one")
		})
		began := time.Now()
		for _, err := range c.Do(t.Context(), groupGet(60)) {
			require.NoError(t, err)
			conn.setLoss(func([]byte) bool { return true })
			break
		}
		require.Equal(t, 4*time.Second, time.Since(began))
	})
}

// GP-114: neither a Token in use nor one used lately is drawn again.
func TestTokensAreNotReused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s, _ := dialMemory(t, Config{}, func(a *asked) { a.respond(codes.Content, "") })
		drawn := []uint64{1, 1, 2, 1, 2, 3}
		c.tokens.draw = func() uint64 { v := drawn[0]; drawn = drawn[1:]; return v }
		get := func() uint64 {
			_, err := collect(t.Context(), t, c, &Request{Method: codes.GET, URI: "coap://192.0.2.2/"})
			require.NoError(t, err)
			return binary.BigEndian.Uint64((<-s.requests).Token)
		}
		require.EqualValues(t, 1, get())
		require.EqualValues(t, 2, get())
		time.Sleep(tokenHold - time.Second)
		require.EqualValues(t, 3, get())
		time.Sleep(2 * time.Second)
		drawn = []uint64{3, 1}
		require.EqualValues(t, 1, get())
	})
}

func TestHeldTokensAreBounded(t *testing.T) {
	next := uint64(0)
	tokens := newTokens(func() uint64 { next++; return next })
	now := time.Now()
	for range 3 * maxHeldTokens {
		tokens.free(tokens.take(now, func(uint64) bool { return false }), now)
	}
	require.Len(t, tokens.held, maxHeldTokens)
	require.Len(t, tokens.order, maxHeldTokens)
}

// What comes faster than it is read is dropped and counted.
func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const sent = maxWaiting + 100
		c, _, _ := dialMemory(t, Config{}, func(a *asked) {
			for range sent {
				a.relay(message.NonConfirmable, "192.0.2.7:5683", codes.Content, "")
			}
		})
		n := 0
		for _, err := range c.Do(t.Context(), groupGet(5)) {
			require.NoError(t, err)
			synctest.Wait()
			n++
		}
		require.EqualValues(t, sent, uint64(n)+c.Dropped())
		require.NotZero(t, c.Dropped())
	})
}

func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _, _ := dialMemory(t, Config{}, func(a *asked) {
			a.relay(message.NonConfirmable, "192.0.2.7:5683", codes.Content, "")
		})
		var last error
		for _, err := range c.Do(t.Context(), groupGet(60)) {
			last = err
			c.Close()
		}
		require.ErrorIs(t, last, net.ErrClosed)
		_, err := collect(t.Context(), t, c, groupGet(60))
		require.ErrorIs(t, err, net.ErrClosed)
	})
}

// A response under a known Token that does not come from the peer is nobody's.
func TestForeignResponse(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	stranger, err := net.ListenPacket("udp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer stranger.Close()
	var c *Client
	c, _ = dialUDP(t, Config{}, func(a *asked) {
		forged := &wire.Message{Type: message.NonConfirmable, Code: codes.Content, ID: 1, Token: a.Incoming.Token, Payload: []byte("forged")}
		data, err := forged.Append(nil)
		if err == nil {
			_, err = stranger.WriteTo(data, net.UDPAddrFromAddrPort(a.Peer.Addr))
		}
		if err != nil {
			t.Error(err)
		}
		a.respond(codes.Content, "real")
	})
	got, err := collect(ctx, t, c, &Request{Method: codes.GET, URI: "coap://127.0.0.1/", Confirmable: true})
	require.NoError(t, err)
	require.Len(t, got, 1)
	require.Equal(t, "real", string(got[0].Payload))
}
