package exchange

import (
	"bytes"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
)

// Handler carries out requests: a layer or a leg. See the package comment for
// the contract.
type Handler interface {
	// Exchange begins r and returns without blocking; responses and the end go
	// to w. The returned Canceler is never nil.
	Exchange(r *Request, w Sink) Canceler
}

// Sink takes the responses of one exchange and its end.
type Sink interface {
	// Respond takes one response. It never blocks. Stop asks the caller to end
	// the exchange: no further Respond follows, End does.
	Respond(*Response) Verdict
	// End closes the exchange. The error is nil when it ran to its regular end
	// (the single response of a unicast request, T' of a group request), and a
	// *Failure where the front has something to tell its client.
	End(error)
}

// Locator is a Sink that wants to know where its request goes, for its log. The
// layer that finds out tells it before it passes the request on, and so before
// any other call; a name is not resolved yet then. The Target is borrowed.
type Locator interface {
	Locate(t *Target)
}

// Acknowledged is a Sink that wants to know that its request has reached the
// other side. The leg calls it when it learns that otherwise than by a response,
// on any goroutine, also while another call on the Sink runs or after the last:
// it only takes note. Not every leg can tell.
type Acknowledged interface {
	Acknowledge()
}

// Attended is a Sink of an observation that can find out whether its client is still
// there.
type Attended interface {
	// Attend begins to, if nothing has shown that for a while. It is called under no
	// lock, on any goroutine, also while another call on the Sink runs or after the
	// last; the caller flushes.
	Attend()
}

// Forgetter is a Canceler that can also end its exchange without telling the
// other side, which knows that it is over. Otherwise it is Cancel.
type Forgetter interface {
	Canceler
	Forget()
}

// Verdict is a Sink's answer to a response.
type Verdict uint8

// Continue wants further responses, Stop wants none.
const (
	Continue Verdict = iota
	Stop
)

// Canceler stops a running exchange.
type Canceler interface {
	// Cancel ends the exchange; its sink gets End(ErrCanceled) if it has not
	// ended yet, possibly before Cancel returns.
	Cancel()
}

// Extender is a Canceler whose exchange can be made to last longer: one of a
// group request, beyond its T' (GC-82).
type Extender interface {
	Canceler
	// Extend moves the end to a later time. It reports false if the exchange has
	// ended or is just ending, and is to be called under no lock.
	Extend(until time.Time) bool
}

// Renewer is a Canceler whose exchange is an observation that can be made to
// bring the current state, also where it has not changed: by registering again
// (RFC 7641 §3.3.1).
type Renewer interface {
	Canceler
	// Renew asks for it. It does nothing when that is under way already, and is to
	// be called under no lock.
	Renew()
}

// Ended is the Canceler of an exchange that was over before Exchange returned.
type Ended struct{}

// Cancel does nothing.
func (Ended) Cancel() {}

// HandlerFunc is a Handler made of a function.
type HandlerFunc func(r *Request, w Sink) Canceler

// Exchange calls f.
func (f HandlerFunc) Exchange(r *Request, w Sink) Canceler { return f(r, w) }

// Fail ends an exchange that has not begun with err.
func Fail(w Sink, err error) Canceler {
	w.End(err)
	return Ended{}
}

// Request is one request on its way through the proxy.
type Request struct {
	// ID tells exchanges apart in logs; unique per process.
	ID uint64
	// Method is the request code, known or not (FP-26).
	Method codes.Code
	// Confirmable says that the client asked for reliable transport.
	Confirmable bool
	// Secured says that the client's hop is protected, by DTLS, TLS or OSCORE,
	// whether or not the client has proven who it is (FP-87).
	Secured bool
	// BERT says that client and proxy may exchange blocks of several times 1024
	// bytes (RFC 8323 §6).
	BERT bool
	// Replaces: this registration to observe takes the place of one of the same
	// client, which ends as soon as this one has begun.
	Replaces bool
	// Form is how the client named Target.
	Form Form
	// Options are sorted by number. From the front they come as received. The
	// layer that finds the target removes what belongs to the client's hop:
	// Proxy-*, Uri-Host and Uri-Port (see Target), Multicast-Timeout (see
	// Timeout); after it Uri-Path and Uri-Query are those of the target.
	Options message.Options
	Payload []byte
	// Target is where the request goes.
	Target Target
	// Route names the route of the proxy's reverse side by which a front that has
	// routes of its own has found the target; empty: none. The servers that answer are
	// announced as the route says.
	Route string
	// Timeout is T', how long a client of a group waits.
	Timeout Timeout
	// Client is who asks; nil while nobody has been identified.
	Client *Identity
	// Peer is the transport address of the client, for logs and limits.
	Peer netip.AddrPort
	// Local is the address and port the request was sent to (FP-4, FP-8), and
	// Scheme that of the URI under which they are served, e.g. "coap+tcp".
	Local  netip.AddrPort
	Scheme string
	// Arrival is when the request was received; T' counts from here.
	Arrival time.Time
	// PreviousHop is the measured round trip to the client, 0 when unknown
	// (GP-94).
	PreviousHop time.Duration
	// BodyLimit is the longest response body in bytes that the front can hand
	// to its client in one piece (GC-54).
	BodyLimit int
	// Stored says what the client wants of stored responses.
	Stored Stored
	// Sealing protects the request on its way to the server, for a leg that sends
	// messages (OH-3); nil: it is sent as it is.
	Sealing Sealing

	kept *Request // as a layer keeps it: see Kept
}

// Stored is what a client wants of stored responses; the zero value leaves it to
// the cache. HTTP clients say so with Cache-Control (HC-57); CoAP has no words
// for it.
type Stored struct {
	// Confirmed wants a stored response only if its server confirms it now.
	Confirmed bool
	// Unkept wants nothing of the exchange stored.
	Unkept bool
	// Only wants nothing but what is stored: NoAnswer is the end otherwise.
	Only bool
	// Limited wants a stored response only if it is at most MaxAge old.
	Limited bool
	MaxAge  time.Duration
}

// Admits reports whether a response that was received so long ago may be used.
func (s *Stored) Admits(age time.Duration) bool {
	return !s.Confirmed && (!s.Limited || age <= s.MaxAge)
}

// Clone returns a copy that owns its bytes.
func (r *Request) Clone() *Request {
	c := *r
	c.Options = CloneOptions(r.Options)
	c.Payload = bytes.Clone(r.Payload)
	c.Target.Also = slices.Clone(r.Target.Also)
	return &c
}

// Target is the resolved destination of a request.
type Target struct {
	// Scheme of the target URI, lower case, e.g. "coap".
	Scheme string
	// Host is the registered name in the target URI, empty for an address
	// literal: only a name is repeated in Uri-Host (GC-72).
	Host string
	// Addr is the address to send to, with the zone of a link-local address as
	// an interface name. Port is never 0.
	Addr netip.AddrPort
	// Group marks a group request (GP-21).
	Group bool
	// NextHop names the next proxy that the request goes to instead (FP-39); empty:
	// it goes to Addr. The address in Addr is invalid then if the target has a name
	// that was not resolved, and its zone is the next proxy's to understand.
	NextHop string
	// GroupName is the name under which the operator configured the group at
	// Addr; the access layer fills it in.
	GroupName string
	// Also holds the further groups of a name that resolves to more than one
	// multicast address (GC-2).
	Also []GroupAddr
	// Announced are the names of the groups in whose responses this server was
	// announced as a target at the proxy, for a request that came to such a target
	// (GP-56); never changed, so that it may be kept.
	Announced []string
}

// String returns the scheme and authority of the target as a log shows them,
// the port always written; empty for no target.
func (t Target) String() string {
	switch {
	case t.Scheme == "":
		return ""
	case t.Host == "":
		return t.Scheme + "://" + t.Addr.String()
	default:
		return t.Scheme + "://" + t.Host + ":" + strconv.Itoa(int(t.Addr.Port()))
	}
}

// Form is how a request names its target: the option that makes it a proxy
// request. A next proxy is told in the same form (FP-39).
type Form uint8

// NoForm is that of a request to a target of the proxy itself, or from another
// protocol.
const (
	NoForm Form = iota
	FormURI
	FormCRI
	FormScheme
	FormSchemeNumber
	// FormServer is that of a request that a next proxy gets as a server does, without
	// any Proxy option: it announced a target of its own there (GP-118).
	FormServer
)

// GroupAddr is one more group of a group request.
type GroupAddr struct {
	Addr netip.AddrPort
	Name string // as Target.GroupName
}

// Timeout is the value of Multicast-Timeout, or its absence.
type Timeout struct {
	// Seconds is T'; 0 asks for no responses at all (GP-2).
	Seconds uint32
	// Present is false when the request had no such option.
	Present bool
}

// Duration is T' as a duration.
func (t Timeout) Duration() time.Duration { return time.Duration(t.Seconds) * time.Second }

// Response is one response of one server, or of the proxy itself.
type Response struct {
	Code    codes.Code
	Options message.Options // sorted by number
	Payload []byte
	// From is the server that answered; invalid for a response that the proxy
	// made itself (GP-39). A link-local address carries its zone.
	From netip.AddrPort
	// ReplyFrom is the value of Reply-From under which the client is to know the
	// server, where it is not the address From: what a reverse-proxy announces
	// (GP-53, GP-54), or what a next hop said that is no address (GP-101). Nil:
	// made of From; empty but not nil: the client is told nothing. Borrowed like
	// everything here.
	ReplyFrom []byte
	// GroupPort is the port of the group URI that led to this response, 0 for
	// a unicast request (GP-121).
	GroupPort uint16
}

// Clone returns a copy that owns its bytes.
func (p *Response) Clone() *Response {
	c := *p
	c.Options = CloneOptions(p.Options)
	c.Payload = bytes.Clone(p.Payload)
	c.ReplyFrom = bytes.Clone(p.ReplyFrom)
	return &c
}

// CloneOptions copies options and their values into memory of their own.
func CloneOptions(options message.Options) message.Options {
	if options == nil {
		return nil
	}
	size := 0
	for _, o := range options {
		size += len(o.Value)
	}
	values := make([]byte, 0, size)
	clone := make(message.Options, len(options))
	for i, o := range options {
		start := len(values)
		values = append(values, o.Value...)
		clone[i] = message.Option{ID: o.ID, Value: values[start:len(values):len(values)]}
	}
	return clone
}
