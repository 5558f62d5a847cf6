package main

import (
	"bytes"
	"cmp"
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"coapproxy/endpoint"
	"coapproxy/exchange"
	"coapproxy/wire"
)

// peerOfRequest is a proxy or server that answers as a test says.
type peerOfRequest struct {
	endpoint *endpoint.Endpoint
	handle   func(*askedOf)
	requests chan *wire.Message
}

// askedOf is one request at a peer.
type askedOf struct {
	endpoint.Incoming
	*wire.Message
	peer *peerOfRequest
}

// newPeer runs a peer on loopback until the end of the test.
func newPeer(t *testing.T, handle func(*askedOf)) *peerOfRequest {
	t.Helper()
	conn, err := endpoint.ListenUDP(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"), endpoint.UDPOptions{})
	require.NoError(t, err)
	engine := exchange.NewEngine()
	p := &peerOfRequest{handle: handle, requests: make(chan *wire.Message, 64)}
	p.endpoint = endpoint.New(endpoint.Config{Conn: conn, Engine: engine, Requests: p, Params: endpoint.DefaultParams(),
		Dedup: endpoint.DefaultDedupLimits(), MaxToken: 8, Stats: &endpoint.Stats{}, Log: zap.NewNop()})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { engine.Run(ctx) })
	wg.Go(func() { _ = p.endpoint.Serve(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return p
}

func (p *peerOfRequest) uri() string { return "coap://" + p.endpoint.LocalAddr().String() }

// HandleRequest implements endpoint.RequestHandler.
func (p *peerOfRequest) HandleRequest(rx *endpoint.Reception, m *wire.Message) {
	own := *m
	own.Options, own.Payload = exchange.CloneOptions(m.Options), bytes.Clone(m.Payload)
	a := &askedOf{Message: &own, peer: p}
	a.Accept(rx, m)
	own.Token = a.Incoming.Token
	p.requests <- &own
	p.handle(a)
}

func (a *askedOf) isEarlyStop() bool {
	return len(a.Options) == 1 && a.Options[0].ID == wire.MulticastTimeout && len(a.Options[0].Value) == 0
}

func (a *askedOf) respond(code codes.Code, payload string, options ...message.Option) {
	a.Incoming.Respond(&wire.Message{Code: code, Options: options, Payload: []byte(payload)}, message.NonConfirmable, nil)
}

// relay sends the response of a group member.
func (a *askedOf) relay(server string, code codes.Code, payload string, options ...message.Option) {
	a.Ack()
	if server != "" {
		options = append(options, message.Option{ID: wire.ReplyFrom, Value: wire.AppendReplyFrom(nil, wire.SchemeCoAP, netip.MustParseAddrPort(server))})
	}
	slices.SortStableFunc(options, func(a, b message.Option) int { return cmp.Compare(a.ID, b.ID) })
	e := a.peer.endpoint
	_ = e.Send(a.Peer, a.Path, &wire.Message{Type: message.NonConfirmable, Code: code, ID: e.NextID(a.Peer.Addr),
		Token: a.Incoming.Token, Options: options, Payload: []byte(payload)}, nil)
}

// requestCommand runs the subcommand request.
func requestCommand(ctx context.Context, t *testing.T, stdin string, args ...string) (out, errs string, code int) {
	t.Helper()
	leaks := goleak.IgnoreCurrent()
	defer goleak.VerifyNone(t, leaks)
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var o, e bytes.Buffer
	code = runRequest(ctx, stdio{strings.NewReader(stdin), &o, &e}, args)
	return o.String(), e.String(), code
}
