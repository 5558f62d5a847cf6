package endpoint_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/endpoint"
	"coapproxy/wire"
)

// What a repeated request gets (RFC 7252 §4.5), by what has become of the
// first.
func TestRepeatedRequest(t *testing.T) {
	for _, tt := range []struct {
		name string
		typ  message.Type
		do   func(in *endpoint.Incoming)
		same bool // the same bytes again
		ack  bool // an empty ACK
	}{
		{"CON under way", message.Confirmable, func(*endpoint.Incoming) {}, false, false},
		{"CON acknowledged", message.Confirmable, (*endpoint.Incoming).Ack, false, true},
		{"CON answered", message.Confirmable, func(in *endpoint.Incoming) { in.Respond(content("x"), message.NonConfirmable, nil) }, true, false},
		{"CON answered separately", message.Confirmable, func(in *endpoint.Incoming) {
			in.Ack()
			in.Respond(content("x"), message.NonConfirmable, nil)
		}, false, true},
		{"CON finished", message.Confirmable, (*endpoint.Incoming).Finish, false, true},
		{"CON answered with what cannot be encoded", message.Confirmable, func(in *endpoint.Incoming) {
			in.Respond(&wire.Message{Code: codes.Content, Options: message.Options{{ID: 11}, {ID: 3}}}, message.NonConfirmable, nil)
		}, false, true},
		{"NON under way", message.NonConfirmable, func(*endpoint.Incoming) {}, false, false},
		{"NON answered", message.NonConfirmable, func(in *endpoint.Incoming) { in.Respond(content("x"), message.NonConfirmable, nil) }, false, false},
		{"NON finished", message.NonConfirmable, (*endpoint.Incoming).Finish, false, false},
	} {
		for _, method := range []codes.Code{codes.GET, codes.POST} {
			t.Run(tt.name+" "+method.String(), func(t *testing.T) {
				inBed(t, func(t *testing.T, b *bed) {
					var h keeping
					b.serve(&h)
					client := b.raw(clientAddr, serverAddr)
					client.send(request(tt.typ, method, 7))
					tt.do(h.one(t))
					b.engine.Flush()
					first := client.got()
					for i := range uint64(3) {
						client.send(request(tt.typ, method, 7))
						require.Empty(t, h.take(), "a repeated request is not delivered again")
						require.Equal(t, i+1, b.stats.Duplicates.Load())
						switch {
						case tt.same:
							require.Equal(t, first, client.got())
						case tt.ack:
							requireEmpty(t, message.Acknowledgement, 7, client.one())
						default:
							client.none()
						}
					}
				})
			})
		}
	}
}

// A reply that was lost because the send queue was full is not lost for whoever
// asks again.
func TestRepeatedRequestAfterFullQueue(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		var h keeping
		e := b.serve(&h)
		client := b.raw(clientAddr, serverAddr)
		client.send(con(codes.POST, 7))
		in := h.one(t)
		empty := e.Stuff()
		in.Respond(content("x"), message.NonConfirmable, nil)
		require.EqualValues(t, 1, b.stats.SendDropped.Load())
		empty()
		b.engine.Flush()
		client.none()
		client.send(con(codes.POST, 7))
		m := client.one()
		require.Equal(t, message.Acknowledgement, m.Type)
		require.Equal(t, "x", string(m.Payload))
	})
}

// A repetition is told by Message ID and source endpoint, not by what it says;
// another address, port or Message ID is another request.
func TestWhatIsARepetition(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		var h keeping
		b.serve(&h)
		client := b.raw(clientAddr, serverAddr)
		client.send(con(codes.GET, 7))
		h.one(t)
		other := con(codes.PUT, 7)
		other.Token, other.Payload = []byte("else"), []byte("else")
		client.send(other)
		require.Empty(t, h.take())
		client.send(con(codes.GET, 8))
		h.one(t)
		b.raw(netip.AddrPortFrom(clientAddr.Addr(), 9), serverAddr).send(con(codes.GET, 7))
		h.one(t)
		b.raw(strange, serverAddr).send(con(codes.GET, 7))
		h.one(t)
	})
}

// FP-90: how long a request is remembered after it was answered.
func TestRequestLifetimes(t *testing.T) {
	const ms = time.Millisecond
	for _, tt := range []struct {
		name     string
		typ      message.Type
		methods  []codes.Code
		lifetime time.Duration
	}{
		{"idempotent CON", message.Confirmable, []codes.Code{codes.GET, codes.PUT, codes.DELETE, wire.FETCH, wire.IPATCH}, 45 * time.Second},
		{"idempotent NON", message.NonConfirmable, []codes.Code{codes.GET, codes.PUT, codes.DELETE, wire.FETCH, wire.IPATCH}, 45 * time.Second},
		{"non-idempotent CON", message.Confirmable, []codes.Code{codes.POST, wire.PATCH, 8, 31}, endpoint.ExchangeLifetime},
		{"non-idempotent NON", message.NonConfirmable, []codes.Code{codes.POST, wire.PATCH, 8, 31}, endpoint.NonLifetime},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, method := range tt.methods {
				inBed(t, func(t *testing.T, b *bed) {
					served := 0
					e := b.serve(handlerFunc(func(rx *endpoint.Reception, m *wire.Message) {
						served++
						answering{}.HandleRequest(rx, m)
					}))
					client := b.raw(clientAddr, serverAddr)
					client.send(request(tt.typ, method, 7))
					require.Equal(t, 1, served)
					pass(tt.lifetime - ms)
					client.send(request(tt.typ, method, 7))
					require.Equal(t, 1, served, method)
					pass(ms)
					client.send(request(tt.typ, method, 7))
					require.Equal(t, 2, served, method)

					pass(tt.lifetime)
					client.send(request(tt.typ, method, 8))
					entries, slab := e.Remembered()
					require.Equal(t, 1, entries, "the old one is forgotten")
					require.LessOrEqual(t, slab, 2)
				})
			}
		})
	}
}

// A Message ID that comes again after its lifetime is a new request, even if
// the old one is still under way, and the old one may finish whenever it likes.
func TestRequestOutlivesItsMessageID(t *testing.T) {
	for _, method := range []codes.Code{codes.GET, codes.POST} {
		t.Run(method.String(), func(t *testing.T) {
			inBed(t, func(t *testing.T, b *bed) {
				var h keeping
				e := b.serve(&h)
				client := b.raw(clientAddr, serverAddr)
				client.send(con(method, 7))
				old := h.one(t)
				pass(endpoint.ExchangeLifetime - time.Millisecond)
				requireEmpty(t, message.Acknowledgement, 7, client.one())
				client.send(con(method, 7))
				requireEmpty(t, message.Acknowledgement, 7, client.one())
				require.Empty(t, h.take())
				pass(time.Millisecond)
				client.send(con(method, 7))
				current := h.one(t)
				old.Respond(content("old"), message.NonConfirmable, nil)
				b.engine.Flush()
				require.Equal(t, "old", string(client.one().Payload))
				current.Respond(content("new"), message.NonConfirmable, nil)
				b.engine.Flush()
				first := client.one()
				require.Equal(t, message.Acknowledgement, first.Type)
				client.send(con(method, 7))
				require.Equal(t, first, client.one(), "the new one is the one that is remembered")
				entries, _ := e.Remembered()
				require.Equal(t, 1, entries)
			})
		})
	}
}

// FP-90: when the table of non-idempotent requests is full new ones get 5.03,
// none is forgotten early, and idempotent ones are served.
func TestNonIdempotentTableFull(t *testing.T) {
	const limit = 4
	inBed(t, func(t *testing.T, b *bed) {
		served := make(map[uint16]int)
		b.serve(handlerFunc(func(rx *endpoint.Reception, m *wire.Message) {
			served[m.ID]++
			answering{}.HandleRequest(rx, m)
		}), func(c *endpoint.Config) { c.Dedup.NonIdempotent, c.Dedup.Idempotent = limit, 2 })
		client := b.raw(clientAddr, serverAddr)
		post := func(typ message.Type, id uint16, code codes.Code) {
			t.Helper()
			client.send(request(typ, codes.POST, id))
			require.Equal(t, code.String(), client.one().Code.String())
		}
		for id := range uint16(limit) {
			post(message.Confirmable, id, codes.Content)
		}
		post(message.Confirmable, 100, codes.ServiceUnavailable)
		post(message.NonConfirmable, 101, codes.ServiceUnavailable)
		post(message.Confirmable, 100, codes.ServiceUnavailable) // tried again, not remembered
		require.EqualValues(t, 3, b.stats.DedupFull.Load())
		for id := range uint16(20) {
			client.send(con(codes.GET, 200+id))
			require.Equal(t, codes.Content, client.one().Code)
		}
		pass(endpoint.ExchangeLifetime - time.Second)
		for id := range uint16(limit) {
			post(message.Confirmable, id, codes.Content) // repeated
			require.Equal(t, 1, served[id])
		}
		require.Zero(t, served[100])
		pass(time.Second)
		post(message.Confirmable, 100, codes.Content)
		require.Equal(t, 1, served[100])
	})
}

// A request that takes longer than the lifetime of its Message ID holds up none
// of those that came after it.
func TestLongRequestDoesNotFillTheTable(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		var h keeping
		e := b.serve(&h, func(c *endpoint.Config) { c.Dedup.NonIdempotent = 3 })
		client := b.raw(clientAddr, serverAddr)
		client.send(non(codes.POST, 1))
		long := h.one(t)
		for id := range uint16(20) {
			for i := range uint16(2) {
				client.send(non(codes.POST, 100+2*id+i))
				h.one(t).Finish()
			}
			require.Zero(t, b.stats.DedupFull.Load())
			pass(endpoint.NonLifetime)
		}
		long.Finish()
		client.send(non(codes.POST, 2))
		h.one(t).Finish()
		entries, slab := e.Remembered()
		require.Equal(t, 1, entries)
		require.LessOrEqual(t, slab, 4)
	})
}

// FP-90: the replies kept for non-idempotent requests are bounded in bytes,
// those for idempotent ones make room for newer ones.
func TestReplyBytes(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		b.serve(answering{}, func(c *endpoint.Config) { c.Dedup.ReplyBytes = 100 })
		client := b.raw(clientAddr, serverAddr)
		refused := uint16(0)
		for id := range uint16(20) {
			client.send(con(codes.POST, id))
			if client.one().Code == codes.ServiceUnavailable {
				refused++
			}
		}
		require.InDelta(t, 13, refused, 2, "replies of about 14 bytes")
		for id := range uint16(20) {
			client.send(con(codes.GET, 100+id))
			require.Equal(t, codes.Content, client.one().Code)
		}
		require.InDelta(t, 13, b.stats.DedupEvicted.Load(), 2)
	})
}

// GC-16, GC-12, RFC 7252 §4.2: a repeated CON response gets the same ACK or RST
// again and is not delivered again.
func TestRepeatedResponse(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		known, delivered := true, 0
		b.serve(nil, func(c *endpoint.Config) {
			c.Requests = nil
			c.Responses = responsesFunc(func(peer endpoint.Peer, m *wire.Message) bool {
				require.Equal(t, clientAddr, peer.Addr)
				delivered++
				return known
			})
		})
		peer := b.raw(clientAddr, serverAddr)
		for range 3 {
			peer.send(con(codes.Content, 1))
			requireEmpty(t, message.Acknowledgement, 1, peer.one())
		}
		require.Equal(t, 1, delivered)
		known = false
		for range 3 {
			peer.send(con(codes.Content, 2))
			requireEmpty(t, message.Reset, 2, peer.one())
		}
		require.Equal(t, 2, delivered)
		require.EqualValues(t, 4, b.stats.Duplicates.Load())
		require.EqualValues(t, 3, b.stats.ResetsSent.Load())
		// After the lifetime of its Message ID it is a new one.
		known = true
		pass(endpoint.ExchangeLifetime - time.Millisecond)
		peer.send(con(codes.Content, 2))
		requireEmpty(t, message.Reset, 2, peer.one())
		pass(time.Millisecond)
		peer.send(con(codes.Content, 2))
		requireEmpty(t, message.Acknowledgement, 2, peer.one())
		require.Equal(t, 3, delivered)
	})
}

// GC-16: where a Token outlives a response, repeated NON responses are dropped,
// elsewhere the Token tells; in neither case anything is said about them.
func TestRepeatedNonResponse(t *testing.T) {
	for _, dedup := range []bool{true, false} {
		inBed(t, func(t *testing.T, b *bed) {
			delivered := 0
			b.serve(nil, func(c *endpoint.Config) {
				c.Requests = nil
				c.Responses = responsesFunc(func(endpoint.Peer, *wire.Message) bool { delivered++; return delivered == 1 })
				c.DedupResponses = dedup
			})
			peer := b.raw(clientAddr, serverAddr)
			for range 3 {
				peer.send(non(codes.Content, 1))
				peer.none()
			}
			want := 3
			if dedup {
				want = 1
				pass(endpoint.NonLifetime)
				peer.send(non(codes.Content, 1))
				require.Equal(t, 2, delivered)
				want++
			}
			require.Equal(t, want, delivered)
		})
	}
}

// A full table of responses forgets the oldest, and never a request (FP-90).
func TestResponseTableFull(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		served := 0
		e := b.serve(handlerFunc(func(rx *endpoint.Reception, m *wire.Message) {
			served++
			answering{}.HandleRequest(rx, m)
		}), func(c *endpoint.Config) {
			c.Responses = responsesFunc(func(endpoint.Peer, *wire.Message) bool { return true })
			c.Dedup.Idempotent, c.DedupResponses = 4, true
		})
		peer := b.raw(clientAddr, serverAddr)
		peer.send(con(codes.POST, 1))
		first := peer.one()
		for id := range uint16(50) {
			peer.send(con(codes.Content, 100+id))
			requireEmpty(t, message.Acknowledgement, 100+id, peer.one())
			peer.send(non(codes.Content, 200+id))
		}
		require.EqualValues(t, 2*(50-4), b.stats.DedupEvicted.Load())
		entries, slab := e.Remembered()
		require.Equal(t, 9, entries)
		require.Equal(t, 9, slab)
		peer.send(con(codes.POST, 1))
		require.Equal(t, first, peer.one())
		require.Equal(t, 1, served)
	})
}
