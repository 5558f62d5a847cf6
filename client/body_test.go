package client

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/wire"
)

// blockOf returns the wanted block of a body and its Block2 option.
func blockOf(a *asked, body string, szx uint8) (string, message.Option) {
	want := wire.Block{SZX: szx}
	if value, ok := wire.First(a.Options, wire.Block2); ok {
		want, _ = wire.ParseBlock(value)
	}
	start := min(want.Offset(), len(body))
	end := min(start+want.Size(), len(body))
	want.More = end < len(body)
	return body[start:end], message.Option{ID: wire.Block2, Value: want.Append(nil)}
}

func optionText(options message.Options, id message.OptionID) string {
	value, _ := wire.First(options, id)
	return string(value)
}

func TestBodyInBlocks(t *testing.T) {
	body := strings.Repeat("0123456789abcdef", 200)[:3100]
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	for _, confirmable := range []bool{true, false} {
		c, s := dialUDP(t, Config{}, func(a *asked) {
			payload, block := blockOf(a, body, 6)
			a.respond(codes.Content, payload, message.Option{ID: wire.ETag, Value: []byte{1}}, block)
		})
		got, err := collect(ctx, t, c, &Request{Method: codes.GET, URI: "coap://127.0.0.1/big?x=1", Confirmable: confirmable,
			Options: message.Options{{ID: wire.Accept, Value: []byte{40}}, {ID: wire.ETag, Value: []byte{9}}}})
		require.NoError(t, err)
		require.Len(t, got, 1)
		require.NoError(t, got[0].Incomplete)
		require.Equal(t, body, string(got[0].Payload))
		require.Equal(t, 4, got[0].Blocks)
		tokens := make(map[string]bool)
		for num := range 4 {
			r := <-s.requests
			tokens[string(r.Token)] = true
			require.Equal(t, "big", optionText(r.Options, wire.URIPath))
			require.Equal(t, "x=1", optionText(r.Options, wire.URIQuery))
			require.Equal(t, []byte{40}, []byte(optionText(r.Options, wire.Accept)))
			if num > 0 {
				require.False(t, wire.Has(r.Options, wire.ETag))
				require.Equal(t, wire.Block{Num: uint32(num), SZX: 6}.Append(nil), []byte(optionText(r.Options, wire.Block2)))
			}
		}
		require.Len(t, tokens, 4)
	}
}

// GP-117: the further blocks of a group response come from its own server,
// through the same proxy, while other responses arrive.
func TestGroupBodyInBlocks(t *testing.T) {
	tests := []struct {
		form   Form
		server string
		id     message.OptionID
		want   string // how the follow-up names server 2001:db8::7, port 61616
		host   string
	}{
		{ProxyURI, "[2001:db8::7]:61616", wire.ProxyURI, "coap://[2001:db8::7]:61616/big", ""},
		{ProxyURI, "[fe80::7%3]:5683", wire.ProxyURI, "coap://[fe80::7%253]/big", ""},
		{ProxyCRI, "[2001:db8::7]:5683", wire.ProxyCRI, "\x83\x20\x81\x50\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x07\x81\x63big", ""},
		{ProxyScheme, "[2001:db8::7]:61616", wire.ProxyScheme, "coap", "[2001:db8::7]"},
		// The zone survives in Proxy-Cri and never in Uri-Host (GP-57).
		{ProxyScheme, "[fe80::7%3]:5683", wire.ProxyCRI, "\x83\x20\x82\x50\xfe\x80" + strings.Repeat("\x00", 13) + "\x07\x613\x81\x63big", ""},
	}
	body := strings.Repeat("x", 40)
	for _, test := range tests {
		t.Run(fmt.Sprint(test.form, test.server), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, s, _ := dialMemory(t, Config{}, func(a *asked) {
					payload, block := blockOf(a, body, 0)
					if wire.Has(a.Options, wire.MulticastTimeout) {
						a.relay(message.Confirmable, test.server, codes.Content, payload, block)
						a.relay(message.Confirmable, "192.0.2.9:5683", codes.Content, "short")
						return
					}
					time.AfterFunc(4*time.Second, func() { a.respond(codes.Content, payload, block) })
				})
				r := groupGet(5)
				r.URI, r.Form = "coap://[ff05::fd]/big", test.form
				began := time.Now()
				got, err := collect(t.Context(), t, c, r)
				require.NoError(t, err)
				require.Len(t, got, 2)
				require.Equal(t, "short", string(got[0].Payload))
				require.Equal(t, body, string(got[1].Payload))
				require.Equal(t, 3, got[1].Blocks)
				require.NoError(t, got[1].Incomplete)
				require.Equal(t, 8*time.Second, time.Since(began), "beyond the end of the window")
				<-s.requests
				for range 2 {
					next := <-s.requests
					require.False(t, wire.Has(next.Options, wire.MulticastTimeout))
					require.Equal(t, test.want, optionText(next.Options, test.id))
					require.Equal(t, test.host, optionText(next.Options, wire.URIHost))
				}
				require.Empty(t, s.requests)
				time.Sleep(2 * time.Second)
			})
		})
	}
}

// GP-118: in the reverse case the follow-up goes to the address of the first
// item, with what the second one says.
func TestFollowUpInTheReverseCase(t *testing.T) {
	body := strings.Repeat("y", 30)
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	direct := make(chan *wire.Message, 8)
	_, dedicated := dialUDP(t, Config{}, func(a *asked) {
		direct <- a.Message
		payload, block := blockOf(a, body, 0)
		a.respond(codes.Content, payload, block)
	})
	address := dedicated.endpoint.LocalAddr()
	c, _ := dialUDP(t, Config{}, func(a *asked) {
		if isEarlyStop(a.Message) {
			a.Finish()
			return
		}
		from := wire.ReplyFromValue{
			Server: wire.URI{Scheme: "coap", Addr: address.Addr(), Port: address.Port(), ExplicitPort: true},
			Ref:    &wire.ReplyFromRef{Host: "device.example", Port: 1234, Path: []string{"lamps", "7"}},
		}
		payload, block := blockOf(a, body, 0)
		a.relay(message.NonConfirmable, "", codes.Content, payload, block, message.Option{ID: wire.ReplyFrom, Value: from.Append(nil)})
	})
	r := groupGet(60)
	r.URI, r.Form = "coap://127.0.0.1/light?all", Direct
	for p, err := range c.Do(ctx, r) {
		require.NoError(t, err)
		require.NoError(t, p.Incomplete)
		require.Equal(t, body, string(p.Payload))
		break
	}
	m := <-direct
	require.Equal(t, "device.example", optionText(m.Options, wire.URIHost))
	require.Equal(t, wire.AppendUint(nil, 1234), []byte(optionText(m.Options, wire.URIPort)))
	var path []string
	for segment := range wire.All(m.Options, wire.URIPath) {
		path = append(path, string(segment))
	}
	require.Equal(t, []string{"lamps", "7", "light"}, path)
	require.Equal(t, "all", optionText(m.Options, wire.URIQuery))
}

func TestIncompleteBodies(t *testing.T) {
	body := strings.Repeat("z", 100)
	block := func(b wire.Block) message.Option { return message.Option{ID: wire.Block2, Value: b.Append(nil)} }
	etag := func(b byte) message.Option { return message.Option{ID: wire.ETag, Value: []byte{b}} }
	first := func(a *asked) bool { return !wire.Has(a.Options, wire.Block2) }
	tests := []struct {
		name   string
		method codes.Code
		group  bool
		config Config
		handle func(*asked)
		want   string
		length int
	}{
		{name: "error", want: "block 1: 4.08 Request Entity Incomplete", length: 16, handle: func(a *asked) {
			if first(a) {
				a.respond(codes.Content, body[:16], block(wire.Block{More: true}))
				return
			}
			a.respond(codes.RequestEntityIncomplete, "")
		}},
		{name: "changed", want: errChanged.Error(), length: 16, handle: func(a *asked) {
			if first(a) {
				a.respond(codes.Content, body[:16], etag(1), block(wire.Block{More: true}))
				return
			}
			a.respond(codes.Content, body[:16], etag(2), block(wire.Block{Num: 1}))
		}},
		{name: "wrong block", want: errBlockOrder.Error(), length: 16, handle: func(a *asked) {
			if first(a) {
				a.respond(codes.Content, body[:16], block(wire.Block{More: true}))
				return
			}
			a.respond(codes.Content, body[:16], block(wire.Block{Num: 2}))
		}},
		{name: "no block option", want: errBlockOrder.Error(), length: 16, handle: func(a *asked) {
			if first(a) {
				a.respond(codes.Content, body[:16], block(wire.Block{More: true}))
				return
			}
			a.respond(codes.Content, body)
		}},
		{name: "short block", want: errBlockOrder.Error(), length: 15, handle: func(a *asked) {
			a.respond(codes.Content, body[:15], block(wire.Block{More: true}))
		}},
		{name: "too long", config: Config{MaxBody: 40}, want: errTooLong.Error(), length: 32, handle: func(a *asked) {
			payload, b := blockOf(a, body, 0)
			a.respond(codes.Content, payload, b)
		}},
		{name: "no answer", want: "block 1: " + ErrNoAnswer.Error(), length: 16, handle: func(a *asked) {
			if first(a) {
				a.respond(codes.Content, body[:16], block(wire.Block{More: true}))
				return
			}
			a.Ack()
		}},
		{name: "not safe", method: codes.POST, want: errNotSafe.Error(), length: 16, handle: func(a *asked) {
			a.respond(codes.Changed, body[:16], block(wire.Block{More: true}))
		}},
		{name: "group, server unknown", group: true, want: errNoIdentity.Error(), length: 16, handle: func(a *asked) {
			a.relay(message.NonConfirmable, "", codes.Content, body[:16], block(wire.Block{More: true}))
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, _, _ := dialMemory(t, test.config, test.handle)
				r := &Request{Method: max(test.method, codes.GET), URI: "coap://192.0.2.2/big", Confirmable: true}
				if test.group {
					r = groupGet(2)
				}
				got, err := collect(t.Context(), t, c, r)
				require.NoError(t, err)
				require.Len(t, got, 1)
				require.EqualError(t, got[0].Incomplete, test.want)
				require.Equal(t, body[:test.length], string(got[0].Payload))
			})
		})
	}
}

// What is pending when the caller leaves is given up.
func TestLeavingWhileBlocksAreFetched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s, _ := dialMemory(t, Config{}, func(a *asked) {
			switch {
			case isEarlyStop(a.Message):
				a.Finish()
			case wire.Has(a.Options, wire.MulticastTimeout):
				for i := range 2 * maxFetching {
					a.relay(message.NonConfirmable, fmt.Sprintf("192.0.2.%d:5683", i+10), codes.Content, strings.Repeat("x", 16),
						message.Option{ID: wire.Block2, Value: wire.Block{More: true}.Append(nil)})
				}
			default:
				a.Ack()
			}
		})
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		got, err := collect(ctx, t, c, groupGet(60))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Empty(t, got)
		synctest.Wait()
		require.Len(t, s.requests, 1+maxFetching+1, "the request, those under way, the Early Stop Request")
	})
}
