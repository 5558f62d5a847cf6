package httpbridge

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"go.uber.org/zap"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// LegConfig says what a Leg is made of. Engine, Stats and Log must be set; zero
// values elsewhere are replaced by the defaults.
type LegConfig struct {
	Engine *exchange.Engine
	// Roots are the authorities that vouch for https servers; nil: those of the
	// system.
	Roots *x509.CertPool
	// Redirect finds out where a redirection leads, or why it may not be followed;
	// the request is the one that was redirected. It may block. Nil: none is
	// followed (HC-34).
	Redirect func(ctx context.Context, r *exchange.Request, to *url.URL) (exchange.Target, error)
	// Redirects is how many are followed for one request, 5.
	Redirects int
	// Requests bounds the requests at a time, 256; one more gets 5.03. One client
	// has three quarters of them at most.
	Requests int
	// Body is the longest response body, 1 MiB.
	Body int
	// Timeout is how long a request may take altogether, 30 s.
	Timeout time.Duration
	// Query carries out FETCH as QUERY (HC-21).
	Query bool
	// Loose is as in Media.
	Loose bool
	// Pseudonym names this proxy in Via fields (HC-106), as that of Config; empty: no
	// Via.
	Pseudonym string
	Stats     *LegStats
	Log       *zap.Logger
}

// LegStats counts what a Leg does.
type LegStats struct {
	Requests  atomic.Uint64 `metric:"requests_total" help:"Requests carried out at HTTP servers."`
	Running   atomic.Int64  `metric:"requests" help:"Requests to HTTP servers running."`
	Redirects atomic.Uint64 `metric:"redirects_total" help:"Redirections of HTTP servers followed."`
	TooLong   atomic.Uint64 `metric:"responses_too_long_total" help:"Responses of HTTP servers refused for their length."`
	// Latency is that of responses that were used.
	Latency exchange.Histogram `metric:"latency_seconds" help:"Time from a request to an HTTP server to its response, redirections followed."`
}

// Leg carries out CoAP requests at HTTP servers (RFC 7252 §10.1): the other
// direction of the cross-proxy. The target's URI is in the Proxy-Uri option, as it
// was written; where it leads is in Target, which the layers before have
// permitted, and no other address is ever dialled. At this edge requests are
// pulled: each has a goroutine, of which there is a bounded number.
type Leg struct {
	LegConfig
	media     *mediaTypes
	transport *http.Transport
	slots     exchange.Shares
	// tags remembers entity tags of servers by what CoAP clients know of them.
	tags    *lru.Cache[string, string]
	ctx     context.Context
	running exchange.Tasks
}

// maxOriginTags bounds the entity tags remembered.
const maxOriginTags = 4096

// NewLeg returns a Leg whose requests end with ctx; Wait waits for them.
func NewLeg(ctx context.Context, c LegConfig) *Leg {
	for _, d := range []struct {
		value    *int
		standard int
	}{{&c.Redirects, 5}, {&c.Requests, 256}, {&c.Body, 1 << 20}} {
		if *d.value <= 0 {
			*d.value = d.standard
		}
	}
	if c.Timeout <= 0 {
		c.Timeout = 30 * time.Second
	}
	l := &Leg{LegConfig: c, media: newMediaTypes(Media{Loose: c.Loose}), ctx: ctx}
	l.tags, _ = lru.New[string, string](maxOriginTags) // fails for sizes below 1 only
	l.transport = &http.Transport{DialContext: l.dial, DialTLSContext: l.dialTLS, DisableCompression: true,
		MaxIdleConns: 64, MaxIdleConnsPerHost: 4, MaxConnsPerHost: 16, IdleConnTimeout: time.Minute,
		MaxResponseHeaderBytes: 32 << 10, ExpectContinueTimeout: time.Second}
	context.AfterFunc(ctx, l.transport.CloseIdleConnections)
	return l
}

// Wait waits for the requests under way, after the context has ended.
func (l *Leg) Wait() {
	l.running.Wait()
	l.transport.CloseIdleConnections()
}

// Pending is the number of requests under way.
func (l *Leg) Pending() int { return l.slots.Total() }

// Exchange implements exchange.Handler.
func (l *Leg) Exchange(r *exchange.Request, w exchange.Sink) exchange.Canceler {
	method, ok := l.method(r.Method)
	if !ok {
		w.Respond(&exchange.Response{Code: codes.MethodNotAllowed, Payload: []byte("HTTP has no such method")}) // HC-21
		w.End(nil)
		return exchange.Ended{}
	}
	if f := l.checkOptions(r); f != nil {
		return exchange.Fail(w, f)
	}
	asker := r.Peer.Addr()
	if !l.slots.Take(asker, l.Requests) {
		return exchange.Fail(w, &exchange.Failure{Reason: exchange.Overloaded, Detail: "too many HTTP requests are running", RetryAfter: time.Second})
	}
	l.Stats.Requests.Add(1)
	l.Stats.Running.Add(1)
	ctx, cancel := context.WithTimeoutCause(l.ctx, l.Timeout, errTooLate)
	kept := r.Clone()
	if !l.running.Go(func() {
		defer cancel()
		begun := time.Now()
		p, err := l.carryOut(ctx, method, kept)
		l.slots.Give(asker)
		l.Stats.Running.Add(-1)
		switch {
		case err == nil:
			l.Stats.Latency.Observe(time.Since(begun))
			w.Respond(p)
			w.End(nil)
		case errors.Is(context.Cause(ctx), context.Canceled):
			w.End(exchange.ErrCanceled)
		default:
			w.End(legFailure(ctx, err))
		}
		l.Engine.Flush()
	}) {
		cancel()
		l.slots.Give(asker)
		l.Stats.Running.Add(-1)
		return exchange.Fail(w, &exchange.Failure{Reason: exchange.Overloaded, Detail: "shutting down", RetryAfter: time.Second})
	}
	return canceler(cancel)
}

type canceler context.CancelFunc

// Cancel implements exchange.Canceler.
func (c canceler) Cancel() { c() }

var errTooLate = errors.New("the HTTP server took too long")

// legFailure is the end of a request that got no response.
func legFailure(ctx context.Context, err error) *exchange.Failure {
	var failure *exchange.Failure
	var verify *tls.CertificateVerificationError
	var operation *net.OpError
	f := &exchange.Failure{Reason: exchange.BadResponse, Detail: "the HTTP server's response cannot be used", Err: err}
	switch {
	case errors.As(err, &failure):
		return failure
	case errors.Is(context.Cause(ctx), errTooLate):
		f.Reason, f.Detail = exchange.NoAnswer, "the HTTP server did not answer in time" // HC-22
	case errors.As(err, &verify):
		f.Reason, f.Detail = exchange.Unreachable, "the certificate of the HTTP server cannot be verified"
	case errors.As(err, &operation) && operation.Op == "dial":
		f.Reason, f.Detail = exchange.Unreachable, "the HTTP server cannot be reached"
	}
	return f
}

// carryOut carries the request out, redirections included.
func (l *Leg) carryOut(ctx context.Context, method string, r *exchange.Request) (*exchange.Response, error) {
	text, ok := wire.First(r.Options, wire.ProxyURI)
	if !ok {
		return nil, exchange.Failf(exchange.Internal, "no URI for the HTTP server")
	}
	target, err := url.Parse(string(text))
	if err != nil {
		return nil, exchange.Failf(exchange.BadOption, "the target URI is malformed")
	}
	where := r.Target
	for followed := 0; ; followed++ {
		response, err := l.ask(ctx, method, r, target, where)
		if err != nil {
			return nil, err
		}
		next, err := l.redirection(response, method, target)
		switch {
		case err != nil:
		case next == nil:
			p, err := l.translate(response, r, where, target)
			_ = response.Body.Close()
			return p, err
		case l.Redirect == nil || followed == l.Redirects:
			err = exchange.Failf(exchange.BadResponse, "the HTTP server redirects, and that is not followed") // HC-33
		default:
			where, err = l.Redirect(ctx, r, next) // HC-34: inside the permission rules
		}
		_, _ = io.CopyN(io.Discard, response.Body, maxDiscard) // the connection may be used again
		_ = response.Body.Close()
		if err != nil {
			return nil, err
		}
		l.Stats.Redirects.Add(1)
		l.Log.Debug("following a redirection", zap.Uint64("exchange", r.ID), zap.Stringer("to", next))
		target = next
	}
}

// maxDiscard is how much of an unwanted body is read.
const maxDiscard = 4 << 10

// redirection is where a response leads, nil if it does not.
func (l *Leg) redirection(response *http.Response, method string, from *url.URL) (*url.URL, error) {
	switch response.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
	default:
		return nil, nil
	}
	if method != http.MethodGet { // HC-34
		return nil, exchange.Failf(exchange.BadResponse, "the HTTP server redirects, and that is not followed")
	}
	to, err := from.Parse(response.Header.Get("Location"))
	if err != nil || to.Scheme != "http" && to.Scheme != "https" || to.Host == "" || to.User != nil ||
		from.Scheme == "https" && to.Scheme == "http" {
		return nil, exchange.Failf(exchange.BadResponse, "the HTTP server redirects to where nothing can be asked")
	}
	to.Fragment, to.RawFragment = "", ""
	return to, nil
}

// ask sends one HTTP request to the place where target has been found to be.
func (l *Leg) ask(ctx context.Context, method string, r *exchange.Request, target *url.URL, where exchange.Target) (*http.Response, error) {
	at := *target
	at.Host = pinned(target.Hostname(), where.Addr)
	// The path goes out as it was written.
	if at.Opaque == "" && at.Path == "" {
		at.Path = "/"
	}
	q, err := http.NewRequestWithContext(ctx, method, at.String(), http.NoBody)
	if err != nil {
		return nil, exchange.Failf(exchange.BadOption, "the target URI is malformed")
	}
	q.Host = target.Host
	if len(r.Payload) > 0 {
		q.Body, q.ContentLength = io.NopCloser(strings.NewReader(string(r.Payload))), int64(len(r.Payload))
		q.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(string(r.Payload))), nil }
	} else if method != http.MethodGet && method != http.MethodDelete {
		q.Body, q.ContentLength = http.NoBody, 0
	}
	l.fields(q.Header, r, target)
	return l.transport.RoundTrip(q)
}

// pinned is a host by which the transport keeps connections apart: by the name
// that the server has to prove, and by the address that was permitted.
func pinned(host string, at netip.AddrPort) string {
	return hex.EncodeToString([]byte(host)) + "." + hex.EncodeToString([]byte(at.Addr().String())) + ":" + fmt.Sprint(at.Port())
}

// unpin takes apart what pinned has made.
func unpin(authority string) (host string, at netip.AddrPort, err error) {
	name, port, err := net.SplitHostPort(authority)
	if err != nil {
		return "", at, err
	}
	first, second, _ := strings.Cut(name, ".")
	text, err := hex.DecodeString(first)
	if err != nil {
		return "", at, err
	}
	addr, err := hex.DecodeString(second)
	if err != nil {
		return "", at, err
	}
	at, err = netip.ParseAddrPort(net.JoinHostPort(string(addr), port))
	return string(text), at, err
}

func (l *Leg) dial(ctx context.Context, network, authority string) (net.Conn, error) {
	_, at, err := unpin(authority)
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	return d.DialContext(ctx, network, at.String())
}

func (l *Leg) dialTLS(ctx context.Context, network, authority string) (net.Conn, error) {
	host, _, err := unpin(authority)
	if err != nil {
		return nil, err
	}
	c, err := l.dial(ctx, network, authority)
	if err != nil {
		return nil, err
	}
	secured := tls.Client(c, &tls.Config{ServerName: host, RootCAs: l.Roots, MinVersion: tls.VersionTLS12})
	if err := secured.HandshakeContext(ctx); err != nil {
		_ = c.Close()
		return nil, err
	}
	return secured, nil
}
