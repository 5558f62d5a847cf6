package client

import (
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"go.uber.org/zap"

	"coapproxy/endpoint"
	"coapproxy/exchange"
	"coapproxy/wire"
)

// Config says how a Client behaves. The zero value is ready for use.
type Config struct {
	// Local is the address and port to send from; when invalid, any port of the
	// address family of the peer.
	Local netip.AddrPort
	// Way is how the peer is reached; the zero value stands for CoAP over UDP.
	Way Way
	// Numbers are the option numbers; the zero value stands for
	// wire.DefaultNumbers.
	Numbers wire.Numbers
	// Params are the transmission parameters; the zero value stands for
	// endpoint.DefaultParams.
	Params endpoint.Params
	// Margin is T - T' (GP-114): how much longer than the peer a group exchange
	// keeps its Token. It must cover one round trip to the peer; 0 stands for
	// one second.
	Margin time.Duration
	// StopWait is how long a confirmable Early Stop Request waits for its ACK
	// after the exchange itself is over; 0 stands for three seconds.
	StopWait time.Duration
	// MaxBody is the longest body in bytes that is put together from blocks;
	// 0 stands for 1 MiB.
	MaxBody int
	// Trace, if not nil, is called with every request that is sent, Early Stop
	// Requests and those for further blocks included, but not with
	// retransmissions. The message is borrowed. Calls may be concurrent.
	Trace func(m *wire.Message, to netip.AddrPort)
	// Protector protects requests and reads their responses; nil: they are sent as
	// they are.
	Protector Protector
	// Log takes what the message layer has to say; nil for nothing.
	Log *zap.Logger
}

func (c *Config) setDefaults() {
	if c.Way.Scheme == "" {
		c.Way.Scheme = "coap"
	}
	if c.Numbers == (wire.Numbers{}) {
		c.Numbers = wire.DefaultNumbers()
	}
	if c.Params == (endpoint.Params{}) {
		c.Params = endpoint.DefaultParams()
	}
	if c.Margin == 0 {
		c.Margin = time.Second
	}
	if c.StopWait == 0 {
		c.StopWait = 3 * time.Second
	}
	if c.MaxBody == 0 {
		c.MaxBody = 1 << 20
	}
	if c.Trace == nil {
		c.Trace = func(*wire.Message, netip.AddrPort) {}
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
}

// Client asks one peer. It is safe for concurrent use.
type Client struct {
	config  Config
	peer    endpoint.Peer
	engine  *exchange.Engine
	carrier carrier
	bert    bool // blocks may be as RFC 8323 §6 has them
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	dropped atomic.Uint64
	unread  atomic.Uint64

	mu     sync.Mutex
	calls  map[uint64]*call
	tokens *tokens
}

// Dial opens a port for talking to peer, a proxy or a server, or connects to it. ctx
// bounds the opening only; Close ends what Dial began. Over coap and coaps nothing is
// sent yet.
func Dial(ctx context.Context, peer netip.AddrPort, config Config) (*Client, error) {
	peer = netip.AddrPortFrom(namedZone(peer.Addr().Unmap()), peer.Port())
	c, err := newClient(peer, config)
	if err != nil {
		return nil, err
	}
	if c.config.Way.overDatagrams() {
		err = c.openDatagrams(ctx)
	} else {
		err = c.openConnection(ctx)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// receiveBuffer is the wanted size of the socket's receive buffer in bytes: a
// whole group may answer at once.
const receiveBuffer = 4 << 20

// namedZone gives a zone that is an interface index the name under which the
// socket layer reports it.
func namedZone(a netip.Addr) netip.Addr {
	index, err := strconv.Atoi(a.Zone())
	if err != nil {
		return a
	}
	i, err := net.InterfaceByIndex(index)
	if err != nil {
		return a
	}
	return a.WithZone(i.Name)
}

// newClient makes a Client that has no carrier yet.
func newClient(peer netip.AddrPort, config Config) (*Client, error) {
	config.setDefaults()
	var seed [32]byte
	if _, err := crand.Read(seed[:]); err != nil {
		return nil, fmt.Errorf("seed tokens: %w", err)
	}
	c := &Client{config: config, peer: endpoint.NamedPeer(peer, config.Way.Name), engine: exchange.NewEngine(), calls: make(map[uint64]*call),
		tokens: newTokens(rand.NewChaCha8(seed).Uint64)}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.wg.Go(func() { c.engine.Run(c.ctx) })
	return c, nil
}

// Close ends all exchanges, with net.ErrClosed, and waits for the goroutines of
// the client.
func (c *Client) Close() {
	c.cancel()
	c.wg.Wait()
}

// LocalAddr is the address and port the client sends from.
func (c *Client) LocalAddr() netip.AddrPort { return c.carrier.LocalAddr() }

// Peer is the address of the proxy or server that is asked.
func (c *Client) Peer() netip.AddrPort { return c.peer.Addr }

// Dropped is how many responses were lost because an exchange was not read fast
// enough: more than 4096 waited for the loop over Do.
func (c *Client) Dropped() uint64 { return c.dropped.Load() }

// Unread is how many responses were dropped because their protection was not what
// it had to be.
func (c *Client) Unread() uint64 { return c.unread.Load() }

// maxWaiting bounds the responses of one exchange that wait to be read.
const maxWaiting = 4096

// call is one Token in use.
type call struct {
	token     uint64
	peer      endpoint.Peer
	id        uint16 // Message ID of the request
	sent      time.Time
	port      uint16 // of the target URI, for GP-121; 0 when unknown
	open      Opener // nil: responses come as they are
	responses chan *Response
	fate
}

// fate is what becomes of a message on the message layer: nil for an ACK. The
// first news counts.
type fate chan error

func newFate() fate { return make(fate, 1) }

// Acknowledged implements endpoint.Watcher.
func (f fate) Acknowledged(uint16) { f.tell(nil) }

// Failed implements endpoint.Watcher.
func (f fate) Failed(_ uint16, err error) { f.tell(err) }

func (f fate) tell(err error) {
	select {
	case f <- err:
	default:
	}
}

// send sends a request with a Token of its own. waiting bounds the responses
// that may wait to be read. The Token is in use until free.
func (c *Client) send(to endpoint.Peer, m *wire.Message, port uint16, waiting int) (*call, error) {
	m, open, err := c.protect(m)
	if err != nil {
		return nil, err
	}
	k := &call{peer: to, port: port, open: open, id: c.carrier.NextID(to.Addr), sent: time.Now(), fate: newFate(),
		responses: make(chan *Response, waiting)}
	c.mu.Lock()
	k.token = c.tokens.take(k.sent, func(t uint64) bool { return c.calls[t] != nil })
	c.calls[k.token] = k
	c.mu.Unlock()
	m.ID, m.Token = k.id, k.tokenBytes()
	c.config.Trace(m, to.Addr)
	if err := c.carrier.Send(to, endpoint.Path{}, m, k); err != nil {
		c.free(k)
		return nil, err
	}
	c.engine.Flush()
	return k, nil
}

func (k *call) tokenBytes() []byte { return binary.BigEndian.AppendUint64(nil, k.token) }

// free takes a Token out of use; it is not used again for a long time
// (GP-114, GP-116).
func (c *Client) free(k *call) {
	c.mu.Lock()
	if c.calls[k.token] == k {
		delete(c.calls, k.token)
		c.tokens.free(k.token, time.Now())
	}
	c.mu.Unlock()
	c.carrier.Settle(k.peer.Addr, k.id)
}

// HandleResponse implements endpoint.ResponseHandler. A Token is not freed by a
// response (GP-114).
func (c *Client) HandleResponse(_ *endpoint.Endpoint, peer endpoint.Peer, m *wire.Message) bool {
	return c.take(peer.Addr, m)
}

// take takes a response, which is borrowed. It reports whether the Token is in use.
func (c *Client) take(peer netip.AddrPort, m *wire.Message) bool {
	if len(m.Token) != 8 {
		return false
	}
	token := binary.BigEndian.Uint64(m.Token)
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.calls[token]
	if k == nil || k.peer.Addr != peer {
		return false
	}
	protected := true
	if k.open != nil {
		var err error
		if m, protected, err = k.open.Open(m); err != nil {
			c.config.Log.Info("response dropped", zap.Stringer("peer", peer), zap.Error(err))
			c.unread.Add(1)
			return true
		}
	}
	c.carrier.Settle(peer, k.id) // a response implies the ACK (RFC 7252 §5.2.2)
	if len(k.responses) == cap(k.responses) {
		c.dropped.Add(1)
		return true
	}
	p := newResponse(m, &c.config.Numbers, k.port)
	p.bert, p.Scheme = c.bert, c.config.Way.Scheme
	p.Peer, p.Elapsed, p.Unprotected = peer, time.Since(k.sent), !protected
	k.responses <- p // has room: only here, under the lock, it is filled
	return true
}

// tell sends a message that belongs to a call whose Token has been freed, under
// that Token, and waits for the ACK of a confirmable one for a short time.
func (c *Client) tell(k *call, m *wire.Message) {
	sealed, err := c.protectTold(m)
	if err != nil {
		c.config.Log.Debug("not told to stop", zap.Stringer("peer", k.peer.Addr), zap.Error(err))
		return
	}
	m = sealed
	m.ID, m.Token = c.carrier.NextID(k.peer.Addr), k.tokenBytes()
	c.config.Trace(m, k.peer.Addr)
	told := newFate()
	if c.carrier.Send(k.peer, endpoint.Path{}, m, told) != nil {
		return
	}
	c.engine.Flush()
	if m.Type == message.Confirmable {
		timer := time.NewTimer(c.config.StopWait)
		defer timer.Stop()
		select {
		case err := <-told:
			if err != nil {
				c.config.Log.Debug("not told to stop", zap.Stringer("peer", k.peer.Addr), zap.Error(err))
			}
		case <-timer.C:
		case <-c.ctx.Done():
		}
	}
	c.carrier.Settle(k.peer.Addr, m.ID)
}
