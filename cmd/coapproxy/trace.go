package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/client"
	"coapproxy/endpoint"
	"coapproxy/wire"
)

const traceText = `Shows the proxies on the way to a URI, as traceroute does for routers: it sends GET requests with a growing Hop-Limit
(RFC 8768), and the proxy that uses up the last hop answers 5.08 with the names of all proxies up to itself. Each line
has the time the answer took. The requests carry an option of their own value, 65000, which makes them different from
any that a proxy has stored the response of, so that a proxy with the resource in its cache does not hide those behind
it (FP-50). What knows nothing of Hop-Limit does not show. Exit codes: 0 the server answered, 1 it did not, 2 wrong
command line.`

// traceNonce is the number of the option that keeps caches from answering: from
// the range for experiments (RFC 7252 §12.2), elective, safe to forward and part
// of the cache key.
const traceNonce message.OptionID = 65000

// tracer carries out the subcommand trace.
type tracer struct {
	stdio    stdio
	client   *client.Client
	request  client.Request
	settings *requestSettings
	most     int
	tries    int
}

// runTrace is the subcommand trace.
func runTrace(ctx context.Context, stdio stdio, args []string) int {
	t := &tracer{stdio: stdio, settings: &requestSettings{numbers: wire.DefaultNumbers()}}
	s := t.settings
	flags := newFlags(stdio, "trace", "[flags] --via PROXY URI", traceText)
	flags.StringVar(&s.via, "via", "", "`URI` of the first proxy, e.g. coap://127.0.0.1:5683")
	flags.Func("multicast-timeout", "for the URI of a group: how long the first proxy has, `SECONDS` (default 10)", func(v string) (err error) {
		t.request.Timeout, err = parseSeconds(v)
		return err
	})
	s.secrets.add(flags)
	flags.IntVar(&t.most, "max-hops", 16, "give up after `N` proxies, 1 to 255")
	flags.IntVar(&t.tries, "tries", 3, "how often to ask each, `N`")
	timeVar(flags, &t.request.Wait, "timeout", 2*time.Second, "how long to wait for each answer, `TIME`")
	positional, code, done := parseMixed(flags, args, 1, 1)
	if done {
		return code
	}
	fail := func(code int, err error) int {
		fmt.Fprintln(stdio.err, "coapproxy trace:", err)
		return code
	}
	t.request.Method, t.request.URI, t.request.Form, t.request.Confirmable = codes.GET, positional[0], client.ProxyURI, false
	s.request = t.request
	switch {
	case s.via == "":
		return fail(exitUsage, errors.New("name the first proxy with --via"))
	case t.most < 1 || t.most > 255:
		return fail(exitUsage, errors.New("--max-hops is a number from 1 to 255"))
	case t.tries < 1 || t.request.Wait <= 0:
		return fail(exitUsage, errors.New("--tries and --timeout are positive"))
	}
	if err := s.check(); err != nil {
		return fail(exitUsage, err)
	}
	if s.groupWithoutTimeout() {
		t.request.Timeout.Seconds, t.request.Timeout.Present = 10, true
	}
	to, err := s.resolve(ctx, net.DefaultResolver)
	switch {
	case errors.Is(err, client.ErrRequest):
		return fail(exitUsage, err)
	case err != nil:
		return fail(exitFailed, err)
	}
	way, err := s.secrets.way(to)
	if err == nil {
		t.client, err = client.Dial(ctx, to.addr, client.Config{Way: way})
	}
	switch {
	case errors.Is(err, client.ErrRequest):
		return fail(exitUsage, err)
	case err != nil:
		return fail(exitFailed, err)
	}
	defer t.client.Close()
	fmt.Fprintf(stdio.out, "trace to %s through %s, %d proxies at most\n", t.request.URI, s.via, t.most)
	return t.run(ctx)
}

// run asks with one hop, two hops and so on.
func (t *tracer) run(ctx context.Context) int {
	last := ""
	for hops := 1; hops <= t.most+1 && hops <= 255; hops++ {
		p, took, err := t.ask(ctx, hops)
		switch {
		case ctx.Err() != nil:
			return exitFailed
		case errors.Is(err, client.ErrNoAnswer), errors.Is(err, endpoint.ErrNoAck):
			t.line(hops, "*", took, "no answer")
			continue
		case err != nil:
			fmt.Fprintln(t.stdio.err, "coapproxy trace:", err)
			return exitFailed
		}
		if p.Code != wire.HopLimitReached {
			return t.arrived(hops, p, took)
		}
		path := strings.Fields(string(p.Payload))
		name, note := "(no name)", ""
		if len(path) > 0 {
			name = path[len(path)-1]
		}
		if len(path) != hops && len(path) > 0 {
			note = "path: " + strings.Join(path, " ")
		}
		t.line(hops, name, took, note)
		if looped := strings.Join(path, " "); len(path) < hops && looped == last {
			fmt.Fprintln(t.stdio.out, "the way is a loop:", looped)
			return exitFailed
		} else if len(path) < hops {
			last = looped
		}
	}
	fmt.Fprintf(t.stdio.out, "not reached within %d proxies\n", t.most)
	return exitFailed
}

// arrived shows the end of the way.
func (t *tracer) arrived(hops int, p *client.Response, took time.Duration) int {
	who := "the server"
	if t.request.Timeout.Present {
		who = "a proxy"
		if p.From != nil {
			who = p.From.ServerURI()
		}
	}
	t.line(hops, wire.CodeString(p.Code), took, who)
	if p.Code>>5 == 5 && !p.Success() {
		fmt.Fprintf(t.stdio.out, "  %q\n", p.Payload)
		return exitFailed
	}
	return exitOK
}

func (t *tracer) line(hops int, what string, took time.Duration, note string) {
	line := fmt.Sprintf("%2d  %-24s %8.1f ms  %s", hops, what, float64(took)/float64(time.Millisecond), note)
	fmt.Fprintln(t.stdio.out, strings.TrimRight(line, " "))
}

// ask sends a request that so many proxies may hand on, and again if nothing
// comes back.
func (t *tracer) ask(ctx context.Context, hops int) (p *client.Response, took time.Duration, err error) {
	for range t.tries {
		nonce := make([]byte, 8)
		if _, err := rand.Read(nonce); err != nil {
			return nil, 0, err
		}
		r := t.request
		r.Options = []message.Option{{ID: wire.HopLimit, Value: []byte{byte(hops)}}, {ID: traceNonce, Value: nonce}}
		within, cancel := context.WithTimeout(ctx, t.request.Wait)
		began := time.Now()
		for p, err = range t.client.Do(within, &r) {
			break
		}
		if took = time.Since(began); p != nil {
			took = p.Elapsed
		}
		over := within.Err() != nil
		cancel()
		if p != nil && err == nil {
			return p, took, nil
		}
		if over && ctx.Err() == nil || err == nil {
			err = client.ErrNoAnswer
		}
		if !errors.Is(err, client.ErrNoAnswer) && !errors.Is(err, endpoint.ErrNoAck) {
			return nil, took, err
		}
	}
	return nil, took, err
}
