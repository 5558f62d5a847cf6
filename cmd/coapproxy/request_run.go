package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"coapproxy/client"
	"coapproxy/endpoint"
	"coapproxy/wire"
)

// asker carries out the subcommand request.
type asker struct {
	settings *requestSettings
	client   *client.Client
	oscore   *oscoreClient // nil: nothing is protected
	show     *requestOutput
	tally    requestTally
}

// requestTally is what the summary is made of.
type requestTally struct {
	began     time.Time
	responses int
	successes int
	servers   map[string]bool
	codes     map[string]int
	order     []string // of codes, as they came
	observed  bool     // a notification has come
	ended     ending
	reason    string // further words to ended
}

// ending is what ended an exchange.
type ending string

// The endings, as the summary in JSON has them.
const (
	endTimeout     ending = "timeout"         // the time of a group request is over
	endSingle      ending = "single-response" // there was one response to wait for
	endSent        ending = "sent"            // no responses were wanted
	endRefused     ending = "refused"         // the proxy itself answered
	endStopAfter   ending = "stop-after"      // --stop-after
	endInterrupted ending = "interrupted"     // Ctrl-C
	endObservation ending = "observation-end" // the server ended the observation
	endNoAnswer    ending = "no-answer"
	endError       ending = "error"
)

// newAsker opens the port.
func newAsker(ctx context.Context, s *requestSettings, stdio stdio, to destination) (*asker, error) {
	a := &asker{settings: s, show: newRequestOutput(stdio, s)}
	a.tally = requestTally{began: time.Now(), servers: make(map[string]bool), codes: make(map[string]int)}
	a.show.scheme = to.scheme
	config := client.Config{Local: s.bind, Numbers: s.numbers}
	if s.verbose {
		config.Trace = a.show.sent
	}
	var err error
	if config.Way, err = s.secrets.way(to); err != nil {
		return nil, err
	}
	if len(s.oscore)+len(s.through) > 0 {
		if a.oscore, err = newOSCOREClient(s.oscore, s.via != "", s.through, s.numbers); err != nil {
			return nil, err
		}
		config.Protector = a.oscore
	}
	if a.client, err = client.Dial(ctx, to.addr, config); err != nil {
		return nil, errors.Join(err, a.oscore.Close())
	}
	return a, nil
}

// close ends what newAsker began.
func (a *asker) close() {
	a.client.Close()
	if err := a.oscore.Close(); err != nil {
		a.show.hint("the sequence numbers of the OSCORE context could not be kept: %v", err)
	}
}

// run asks, and asks again where an answer says how, and returns the exit code.
func (a *asker) run(ctx context.Context) int {
	s := a.settings
	r := &s.request
	if s.groupWithoutTimeout() {
		a.show.hint("%s is a group: the proxy wants to know how long to wait, with --multicast-timeout SECONDS", r.URI)
	}
	if len(r.Payload) > 1024 {
		a.show.hint("a payload of %d bytes may be too long for a message; 1024 fit everywhere", len(r.Payload)) // RFC 7252 §4.6
	}
	for again := r; again != nil; {
		again = a.ask(ctx, again)
	}
	if n := a.client.Dropped(); n > 0 {
		a.show.hint("%d responses came faster than they could be printed and are lost", n)
	}
	if n := a.client.Unread(); n > 0 {
		a.show.hint("%d responses were not protected as they must be and are lost", n)
	}
	a.show.summary(&a.tally)
	if a.tally.successes > 0 || a.tally.ended == endSent {
		return exitOK
	}
	return exitFailed
}

// ask carries out one exchange. It returns the request to send after it, if any.
func (a *asker) ask(ctx context.Context, r *client.Request) (again *client.Request) {
	t := &a.tally
	stop := a.show.startProgress(r, t)
	defer stop()
	here := 0
	t.ended, t.reason = a.regularEnd(r), ""
	for p, err := range a.client.Do(ctx, r) {
		if err != nil {
			t.ended, t.reason = failedEnd(ctx, err)
			return nil
		}
		here++
		a.take(r, p)
		if here == 1 {
			again = a.again(r, p)
			if r.Timeout.Present && p.From == nil && !p.Success() {
				t.ended = endRefused
			}
		}
		if again == nil && t.responses == a.settings.stopAfter {
			t.ended = endStopAfter
			return nil
		}
	}
	switch {
	case again != nil || !r.Observe:
	case !t.observed:
		a.show.hint("no response has Observe, so no notifications will come: the resource cannot be observed, or not through this proxy")
	case !r.Timeout.Present:
		t.ended = endObservation
	}
	return again
}

// take counts and prints a response.
func (a *asker) take(r *client.Request, p *client.Response) {
	server := serverOf(r, p)
	code := wire.CodeString(p.Code)
	a.show.locked(func() {
		t := &a.tally
		t.responses++
		if p.From != nil || r.Form == client.Direct && !r.Timeout.Present {
			t.servers[server] = true
		}
		if p.Success() && p.Incomplete == nil {
			t.successes++
		}
		if t.codes[code]++; t.codes[code] == 1 {
			t.order = append(t.order, code)
		}
		t.observed = t.observed || r.Observe && p.Success() && wire.Has(p.Options, wire.Observe)
	})
	a.show.response(server, p)
	switch least, tooShort := p.MinTimeout(); {
	case p.TimeoutMissing() && a.settings.groupWithoutTimeout(): // has been told already
	case p.TimeoutMissing() && !r.Timeout.Present:
		a.show.hint("this is a group: the proxy wants to know how long to wait, with --multicast-timeout SECONDS") // GP-26
	case p.TimeoutMissing():
		a.show.hint("the proxy did not understand the multicast timeout it was given") // GP-26
	case tooShort && !a.settings.retry:
		a.show.hint("the way through the proxies takes longer: use --multicast-timeout %d, or --retry", least) // GP-96
	}
}

// again returns the request that a response asks to be sent once more.
func (a *asker) again(r *client.Request, p *client.Response) *client.Request {
	if next, ok := r.WithEcho(p); ok { // FP-80
		a.show.hint("the other side wants to know that the request is fresh: sent again with its Echo value")
		return next
	}
	if !a.settings.retry || r.Timeout != a.settings.request.Timeout {
		return nil // once is enough
	}
	next, ok := r.WithTimeout(p) // GP-99
	if !ok {
		return nil
	}
	a.show.hint("sent again with a multicast timeout of %d s", next.Timeout.Seconds)
	return next
}

// regularEnd is what ends an exchange that nothing happens to.
func (a *asker) regularEnd(r *client.Request) ending {
	switch {
	case r.Timeout.Present && r.Timeout.Seconds == 0:
		return endSent
	case r.Timeout.Present:
		return endTimeout
	}
	return endSingle
}

// failedEnd tells what the error at the end of an exchange means.
func failedEnd(ctx context.Context, err error) (ending, string) {
	switch {
	case ctx.Err() != nil:
		return endInterrupted, ""
	case errors.Is(err, client.ErrNoAnswer):
		return endNoAnswer, "no answer in time"
	case errors.Is(err, endpoint.ErrNoAck):
		return endNoAnswer, "the other side does not acknowledge the request"
	case errors.Is(err, endpoint.ErrReset):
		return endError, "the other side rejected the message (RST)"
	case errors.Is(err, endpoint.ErrUndeliverable):
		return endError, unreachable(err)
	}
	return endError, err.Error()
}

// unreachable says what is known of a peer that cannot be reached.
func unreachable(err error) string {
	why := strings.TrimLeft(strings.TrimPrefix(err.Error(), endpoint.ErrUndeliverable.Error()), ":\n ")
	if why == "" {
		return "nobody is there: the network says that the address or port cannot be reached"
	}
	if errors.Is(err, context.DeadlineExceeded) {
		why += " (to a wrong pre-shared key the other side says nothing)"
	}
	return "the other side cannot be reached: " + strings.ReplaceAll(why, "\n", ": ")
}

// serverOf names who made a response: the server that Reply-From tells (GP-116),
// the peer of a request to a single server, else the proxy (GP-39).
func serverOf(r *client.Request, p *client.Response) string {
	switch {
	case p.From != nil:
		return p.From.ServerURI()
	case r.Timeout.Present:
		return "proxy"
	}
	return peerURI(p.Scheme, p.Peer)
}

// sentence is the summary in words.
func (t *requestTally) sentence() string {
	var b strings.Builder
	switch {
	case t.responses > 0:
		b.WriteString(count(t.responses, "response"))
	case t.ended == endSent:
		b.WriteString("sent")
	default:
		b.WriteString("no responses")
	}
	if len(t.servers) > 0 {
		b.WriteString(" from " + count(len(t.servers), "server"))
	}
	fmt.Fprintf(&b, " in %.1f s", time.Since(t.began).Seconds())
	for i, code := range t.order {
		sep := ", "
		if i == 0 {
			sep = ": "
		}
		fmt.Fprintf(&b, "%s%d × %s", sep, t.codes[code], code)
	}
	if words := t.ended.words(); words != "" {
		b.WriteString("; " + words)
	}
	if t.reason != "" {
		b.WriteString(": " + t.reason)
	}
	return b.String()
}

func (e ending) words() string {
	switch e {
	case endTimeout:
		return "ended by the multicast timeout"
	case endSingle:
		return ""
	case endSent:
		return "no responses wanted"
	case endRefused:
		return "refused by the proxy"
	case endStopAfter:
		return "stopped early, by --stop-after"
	case endInterrupted:
		return "interrupted"
	case endObservation:
		return "the server ended the observation"
	case endNoAnswer:
		return "gave up"
	}
	return "failed"
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
