package httpbridge

import (
	"context"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"coapproxy/exchange"
)

// load is what is under way. Safe for concurrent use.
type load struct {
	budget *budget
	// requests have been admitted; exchanges were begun by them and may outlive them.
	requests, exchanges atomic.Int64
	draining            atomic.Bool
	// serving ends when draining begins: who would go on for ever ends then.
	serving context.Context
	refuse  context.CancelFunc
	settled sync.Once
	idle    chan struct{} // closed when draining and nothing is under way

	mu        sync.Mutex
	perClient map[asker]int
}

func newLoad(totalBytes int) *load {
	l := &load{budget: newBudget(totalBytes), perClient: make(map[asker]int), idle: make(chan struct{})}
	l.serving, l.refuse = context.WithCancel(context.Background())
	return l
}

// asker is somebody whose requests are counted: a client entry by its name, or an
// address.
type asker struct {
	name string
	addr netip.Addr
}

// admit counts the request in (HC-97); release counts it out.
func (f *Front) admit(x *call) (asker, *problem) {
	who := asker{addr: x.peer.Addr()}
	if x.client != nil && x.proven != ByNetwork {
		who = asker{name: x.client.Name}
	}
	limit := int64(f.Limits.Exchanges)
	tooMany := f.requests.Add(1) > limit || f.exchanges.Load() >= limit
	switch {
	case f.draining.Load():
		f.requestEnded()
		return who, refuse(http.StatusServiceUnavailable, "shutting down", "").retryAfter(stopRetry)
	case tooMany:
		f.requestEnded()
		return who, refuse(http.StatusServiceUnavailable, "too many exchanges are running", "").retryAfter(time.Second)
	case !f.count(who, f.Limits.ClientExchanges):
		f.requestEnded()
		return who, refuse(http.StatusTooManyRequests, "too many requests of this client are running", "").retryAfter(time.Second)
	}
	f.Stats.Running.Add(1)
	return who, nil
}

// count counts a request of a client in, if that makes no more than limit.
func (l *load) count(who asker, limit int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.perClient[who]
	if n >= limit {
		return false
	}
	l.perClient[who] = n + 1
	return true
}

func (f *Front) release(who asker) {
	f.Stats.Running.Add(-1)
	f.mu.Lock()
	if n := f.perClient[who]; n > 1 {
		f.perClient[who] = n - 1
	} else {
		delete(f.perClient, who)
	}
	f.mu.Unlock()
	f.requestEnded()
}

// begun counts an exchange as begun; the result is called at its end.
func (l *load) begun() (ended func()) {
	l.exchanges.Add(1)
	return l.exchangeEnded
}

func (l *load) exchangeEnded() {
	l.exchanges.Add(-1)
	l.settle()
}

func (l *load) requestEnded() {
	l.requests.Add(-1)
	l.settle()
}

// whileServing is ctx, ended also when draining begins, then with errStopping as its
// cause.
func (l *load) whileServing(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(l.serving, func() { cancel(errStopping) })
	return ctx, func() { stop(); cancel(nil) }
}

var errStopping = &exchange.Failure{Reason: exchange.Overloaded, Detail: "the proxy stops", RetryAfter: stopRetry}

// stopRetry is when those come back whose exchanges ended because the proxy stops.
const stopRetry = 10 * time.Second

// settle tells Drain if nothing is under way any more.
func (l *load) settle() {
	if l.draining.Load() && l.requests.Load() == 0 && l.exchanges.Load() == 0 {
		l.settled.Do(func() { close(l.idle) })
	}
}

// Drain refuses new requests from now on and waits until those under way, and
// the exchanges they began, have ended or ctx has; those that watch something are
// ended. It reports how many were left. It may be called once.
func (l *load) Drain(ctx context.Context) int {
	l.draining.Store(true)
	l.refuse()
	l.settle()
	select {
	case <-l.idle:
	case <-ctx.Done():
	}
	return int(l.requests.Load() + l.exchanges.Load())
}
