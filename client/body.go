package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"

	"coapproxy/wire"
)

// Why a body in blocks stays incomplete, beside errors of the requests.
var (
	errBlockOrder = errors.New("a block does not continue the one before")
	errChanged    = errors.New("the representation changed between two blocks")
	errTooLong    = errors.New("the body is too long")
	errTooMany    = errors.New("too many bodies in blocks at once")
	errNotSafe    = errors.New("blocks are fetched for GET and FETCH only")
)

// complete fetches the further blocks of p, a response to r that was sent on w,
// and puts them together (RFC 7959 §2.4); those of a group response come from
// its own server (GP-117). What is missing in the end p.Incomplete tells.
func (c *Client) complete(ctx context.Context, r *Request, w way, p *Response) {
	to, err := r.followUp(w, p)
	if err != nil {
		p.Incomplete = err
		return
	}
	next := &Request{Method: r.Method, Confirmable: r.Confirmable, Payload: r.Payload, Wait: r.Wait}
	for _, o := range r.Options {
		switch o.ID {
		case wire.Block2, wire.ETag, wire.NoResponse, wire.Echo, c.config.Numbers.GroupETag:
		default:
			next.Options = append(next.Options, o)
		}
	}
	own := len(next.Options)
	etag, _ := wire.First(p.Options, wire.ETag)
	block, more := p.block()
	for more {
		switch {
		case !block.Fits(len(p.Payload) - block.Offset()):
			p.Incomplete = errBlockOrder
			return
		case len(p.Payload)+block.Size() > c.config.MaxBody || block.Num == wire.MaxBlockNum:
			p.Incomplete = errTooLong
			return
		}
		wanted := wire.Block{Num: uint32(len(p.Payload) / block.Size()), SZX: block.SZX}
		next.Options = append(next.Options[:own:own], message.Option{ID: wire.Block2, Value: wanted.Append(nil)})
		q, err := c.roundTrip(ctx, next, to)
		if err != nil {
			p.Incomplete = fmt.Errorf("block %d: %w", wanted.Num, err)
			return
		}
		if q.Code != p.Code {
			p.Incomplete = fmt.Errorf("block %d: %s", wanted.Num, wire.CodeString(q.Code))
			return
		}
		tag, _ := wire.First(q.Options, wire.ETag)
		if !bytes.Equal(tag, etag) {
			p.Incomplete = errChanged
			return
		}
		value, _ := wire.First(q.Options, wire.Block2)
		if block, err = p.parseBlock(value); err != nil || block.Offset() != len(p.Payload) {
			p.Incomplete = errBlockOrder
			return
		}
		p.Payload = append(p.Payload, q.Payload...)
		p.Blocks++
		more = block.More
	}
}

// roundTrip sends a request for one response and waits for it.
func (c *Client) roundTrip(ctx context.Context, r *Request, w way) (*Response, error) {
	m, err := r.message(w.uri, w.form, w.peer.Addr, &c.config.Numbers)
	if err != nil {
		return nil, err
	}
	k, err := c.send(w.peer, m, 0, 1)
	if err != nil {
		return nil, err
	}
	defer c.free(k)
	timer := time.NewTimer(r.Patience())
	defer timer.Stop()
	for {
		select {
		case p := <-k.responses:
			return p, nil
		case err := <-k.fate:
			if err != nil {
				return nil, err
			}
		case <-timer.C:
			return nil, ErrNoAnswer
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-c.ctx.Done():
			return nil, net.ErrClosed
		}
	}
}

// fetches are the bodies of one exchange that are being completed.
type fetches struct {
	client  *Client
	request *Request
	way     way
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	turn    chan struct{} // one entry per fetch under way
	done    chan *Response
	pending int
}

// Bounds of the bodies of one exchange that are fetched at the same time, and
// of those that wait for their turn. Beyond them bodies stay incomplete.
const (
	maxFetching = 4
	maxPending  = 1024
)

func (c *Client) newFetches(ctx context.Context, r *Request, w way) *fetches {
	f := &fetches{client: c, request: r, way: w, turn: make(chan struct{}, maxFetching), done: make(chan *Response, maxPending)}
	f.ctx, f.cancel = context.WithCancel(ctx)
	return f
}

// start fetches the rest of p, which comes back through done. It reports false
// when there is no room.
func (f *fetches) start(p *Response) bool {
	if f.pending == maxPending {
		return false
	}
	f.pending++
	f.wg.Go(func() {
		select {
		case f.turn <- struct{}{}:
			f.client.complete(f.ctx, f.request, f.way, p)
			<-f.turn
		case <-f.ctx.Done():
			p.Incomplete = context.Cause(f.ctx)
		}
		f.done <- p // has room for all that are pending
	})
	return true
}

// stop gives up what is pending and waits for its goroutines.
func (f *fetches) stop() {
	f.cancel()
	f.wg.Wait()
}
