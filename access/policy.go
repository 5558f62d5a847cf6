package access

import (
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"golang.org/x/time/rate"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// Policy is the layer that checks every request against what its client may
// do, before a cache or a leg sees it. It also identifies clients for the
// fronts. Safe for concurrent use.
type Policy struct {
	next     exchange.Handler
	config   Config
	networks []network                     // longest prefix first
	keys     map[string]*exchange.Identity // by PSK identity
	http     map[string]*exchange.Identity // by the name of HTTP credentials
	contexts map[string]*exchange.Identity // by name of an OSCORE context
	// certificates are the clients known by a name in their certificate.
	certificates map[CertificateName]*exchange.Identity
	groups       map[netip.AddrPort]*group
	named        map[hostPort]*group
	byName       map[string]*client
	heard        *Heard
	clients      []*client // in the order of the configuration
	prefixes     *prefixes // nil: no limit
}

type hostPort struct {
	host string
	port uint16
}

type network struct {
	prefix netip.Prefix
	client *client
}

type group struct {
	Group
	rate *rate.Limiter // nil: no limit
}

// client is a Client with its running state; it is Identity.Permissions.
type client struct {
	Client
	identity *exchange.Identity
	groups   map[*group]bool // nil: all
	running  atomic.Int64
	// observations may be shared with the same client of an earlier policy.
	observations *observations
	groupRate    *rate.Limiter // nil: no limit
	rate         *rate.Limiter
	requests     atomic.Uint64
	last         atomic.Int64 // Unix time of the latest request
}

// New returns the policy in front of next. heard is where servers that
// answered group requests are remembered.
func New(config Config, next exchange.Handler, heard *Heard) *Policy {
	p := &Policy{byName: make(map[string]*client), keys: make(map[string]*exchange.Identity), certificates: make(map[CertificateName]*exchange.Identity), contexts: make(map[string]*exchange.Identity), http: make(map[string]*exchange.Identity), next: next, config: config, groups: make(map[netip.AddrPort]*group), named: make(map[hostPort]*group), heard: heard}
	if p.config.Stats == nil {
		p.config.Stats = &Stats{}
	}
	p.prefixes = newPrefixes(config.PrefixRate, config.PrefixBurst)
	byName := make(map[string]*group)
	for _, g := range config.Groups {
		kept := &group{Group: g, rate: limiter(g.Rate, g.Burst)}
		byName[g.Name] = kept
		if g.Addr.IsValid() {
			p.groups[unzoned(g.Addr)] = kept
		} else {
			p.named[hostPort{g.Host, g.Port}] = kept
		}
	}
	for i := range config.Groups {
		g := byName[config.Groups[i].Name]
		for _, addr := range g.Addrs {
			at := unzoned(netip.AddrPortFrom(addr, g.Port))
			if p.groups[at] == nil { // the group that is configured by its address comes first
				p.groups[at] = g
			}
		}
	}
	for _, c := range config.Clients {
		kept := &client{Client: c, identity: &exchange.Identity{}, observations: &observations{}}
		*kept.identity = c.Identity
		p.byName[c.Identity.Name] = kept
		kept.identity.Permissions = kept
		p.clients = append(p.clients, kept)
		if !c.AllGroups {
			kept.groups = make(map[*group]bool)
			for _, name := range c.Groups {
				if g := byName[name]; g != nil {
					kept.groups[g] = true
				}
			}
		}
		kept.groupRate = limiter(config.GroupRate, config.GroupBurst)
		kept.rate = limiter(config.RequestRate, config.RequestBurst)
		known := *kept.identity
		known.Authenticated = true
		if c.PSK != "" {
			p.keys[c.PSK] = &known
		}
		for _, name := range c.Certificate {
			p.certificates[name] = &known
		}
		if c.HTTP != "" {
			p.http[c.HTTP] = &known
		}
		for _, name := range c.OSCORE { // OH-122
			p.contexts[name] = &known
		}
		for _, prefix := range c.Networks {
			p.networks = append(p.networks, network{prefix.Masked(), kept})
		}
	}
	slices.SortStableFunc(p.networks, func(a, b network) int { return b.prefix.Bits() - a.prefix.Bits() })
	return p
}

// limiter returns nil for a rate of 0, which is no limit. Rates keep one
// client's requests from becoming a whole group's responses at its will
// (GC-93).
func limiter(perSecond float64, burst int) *rate.Limiter {
	if perSecond <= 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(perSecond), burst)
}

// exceeds takes one from a limiter and reports whether there was none.
func exceeds(l *rate.Limiter, now time.Time) bool { return l != nil && !l.AllowN(now, 1) }

func unzoned(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().WithZone(""), a.Port())
}

// Identify returns the identity of a client (GP-23): by the OSCORE context of its
// request, or the pre-shared key or certificate it has proven to hold, or else by
// its network alone (GP-24), the longest matching prefix counting; nil for any
// other. A key or certificate that belongs to no client proves nothing.
func (p *Policy) Identify(peer netip.AddrPort, proven *exchange.Security) *exchange.Identity {
	if proven != nil && proven.OSCORE != "" {
		if id := p.contexts[proven.OSCORE]; id != nil {
			return id
		}
	}
	if proven != nil && proven.PSK {
		if id := p.keys[proven.PSKIdentity]; id != nil {
			return id
		}
	}
	if proven != nil && proven.Certificate != nil {
		if id := p.byCertificate(proven.Certificate); id != nil {
			return id
		}
	}
	addr := peer.Addr().WithZone("")
	for i := range p.networks {
		if p.networks[i].prefix.Contains(addr) {
			return p.networks[i].client.identity
		}
	}
	return nil
}

// IdentifyHTTP returns the identity of a client that has proven itself with a
// token or password of this name (HC-100); nil for any other.
func (p *Policy) IdentifyHTTP(name string) *exchange.Identity { return p.http[name] }

// MaxTimeout is the longest T' for a permitted group request: the smallest of
// what proxy, client and groups allow (GP-29).
func (p *Policy) MaxTimeout(r *exchange.Request) time.Duration {
	limit := p.config.MaxTimeout
	if c, ok := permissions(r); ok {
		limit = min(limit, c.Client.MaxTimeout)
	}
	limit = min(limit, p.groupOf(r.Target.Host, r.Target.Addr).MaxTimeout)
	for _, a := range r.Target.Also {
		limit = min(limit, p.groupOf(r.Target.Host, a.Addr).MaxTimeout)
	}
	return limit
}

func permissions(r *exchange.Request) (*client, bool) {
	if r.Client == nil {
		return nil, false
	}
	c, ok := r.Client.Permissions.(*client)
	return c, ok
}

func (p *Policy) groupOf(host string, addr netip.AddrPort) *group {
	if g := p.named[hostPort{host, addr.Port()}]; g != nil && host != "" {
		return g
	}
	return p.groups[unzoned(addr)]
}

// Exchange implements exchange.Handler.
func (p *Policy) Exchange(r *exchange.Request, w exchange.Sink) exchange.Canceler {
	if r.Client == nil || !r.Client.Authenticated {
		if l := p.prefixes.exceeded(r.Peer.Addr(), r.Arrival); l != nil {
			return p.limited(w, byPrefix, l)
		}
	}
	if r.Target.Group && len(p.config.Groups) == 0 {
		return exchange.Fail(w, exchange.Failf(exchange.GroupsDisabled, "group requests are not enabled")) // GP-22
	}
	c, ok := permissions(r)
	if !ok {
		return exchange.Fail(w, exchange.Failf(exchange.Denied, "client not identified").Because("clients")) // GP-23, FP-85
	}
	c.note(r.Arrival)
	if exceeds(c.rate, r.Arrival) {
		return p.limited(w, byClient, c.rate)
	}
	if s := p.observation(r, w, c); s != nil {
		return s.begun(p.checked(r, s, c))
	}
	return p.checked(r, w, c)
}

// checked carries out what the client may do.
func (p *Policy) checked(r *exchange.Request, w exchange.Sink, c *client) exchange.Canceler {
	if r.Target.Group {
		return p.group(r, w, c)
	}
	if wire.SecureScheme(r.Target.Scheme) && !r.Secured && !p.config.UnsecuredClients {
		return exchange.Fail(w, exchange.Failf(exchange.Denied, "a %s target needs a secured client", r.Target.Scheme).Because("proxy.require_secure_client")) // FP-87
	}
	if key := p.denies(r, c); key != "" {
		return exchange.Fail(w, exchange.Failf(exchange.Denied, "target not allowed").Because(key)) // FP-7, FP-11
	}
	return p.next.Exchange(r, w)
}

// limited refuses a request for a limit that is exhausted.
func (p *Policy) limited(w exchange.Sink, by int, l *rate.Limiter) exchange.Canceler {
	p.config.Stats.Limited[by].Add(1)
	return exchange.Fail(w, tooMany(l))
}

func tooMany(l *rate.Limiter) *exchange.Failure {
	wait := time.Duration(float64(time.Second) / float64(l.Limit()))
	return &exchange.Failure{Reason: exchange.TooManyRequests, Detail: "too many requests", RetryAfter: max(wait, time.Second)} // FP-37, GP-113
}

// group checks a group request (GP-23).
func (p *Policy) group(r *exchange.Request, w exchange.Sink, c *client) exchange.Canceler {
	protected := wire.Has(r.Options, wire.OSCORE)
	check := func(addr netip.AddrPort) (*group, *exchange.Failure) {
		g := p.groupOf(r.Target.Host, addr)
		switch {
		case g == nil:
			return nil, exchange.Failf(exchange.Denied, "group not allowed").Because("groups")
		case c.groups != nil && !c.groups[g]:
			return nil, exchange.Failf(exchange.Denied, "group not allowed").Because("clients[].groups")
		case addr.Addr().Is6() && addr.Addr().As16()[1]&0x0f > p.config.MaxScope: // GC-5
			return nil, exchange.Failf(exchange.Denied, "multicast scope not allowed").Because("proxy.max_scope")
		case protected && !g.Protected: // GC-92
			return nil, exchange.Failf(exchange.Denied, "protected group requests are not allowed").Because("groups[].protected_requests")
		case !protected && !slices.Contains(g.Methods, r.Method):
			return nil, exchange.Failf(exchange.MethodNotAllowed, "method not allowed for this group").Because("groups[].methods") // GC-70
		case !protected && c.Methods != nil && !slices.Contains(c.Methods, r.Method):
			return nil, exchange.Failf(exchange.MethodNotAllowed, "method not allowed for this group").Because("clients[].methods") // GC-70
		}
		return g, nil
	}
	g, f := check(r.Target.Addr)
	if f != nil {
		return exchange.Fail(w, f)
	}
	r.Target.GroupName = g.Name
	for i := range r.Target.Also {
		also, f := check(r.Target.Also[i].Addr)
		if f != nil {
			return exchange.Fail(w, f)
		}
		r.Target.Also[i].Name = also.Name
	}
	if exceeds(c.groupRate, r.Arrival) {
		return p.limited(w, byClientGroup, c.groupRate)
	}
	if exceeds(g.rate, r.Arrival) {
		return p.limited(w, byGroup, g.rate)
	}
	for _, a := range r.Target.Also {
		if also := p.groupOf(r.Target.Host, a.Addr); also != g && exceeds(also.rate, r.Arrival) {
			return p.limited(w, byGroup, also.rate)
		}
	}
	if !c.AllowNoResponseZero {
		r.Options = withoutNoResponseZero(r.Options)
	}
	if wire.IsRegistration(r.Method, r.Options) { // which may run for ever, and counts as an observation
		return p.next.Exchange(r, newGroupSink(w, nil, p.heard, &r.Target))
	}
	if c.running.Add(1) > int64(c.MaxExchanges) {
		c.running.Add(-1)
		p.config.Stats.Limited[byExchanges].Add(1)
		return exchange.Fail(w, &exchange.Failure{Reason: exchange.TooManyRequests, Detail: "too many group requests are running", RetryAfter: time.Second})
	}
	return p.next.Exchange(r, newGroupSink(w, c, p.heard, &r.Target))
}

// withoutNoResponseZero removes a No-Response that asks for more responses than
// there would be without it (GC-33).
func withoutNoResponseZero(options message.Options) message.Options {
	value, ok := wire.First(options, wire.NoResponse)
	if !ok {
		return options
	}
	if v, ok := wire.Uint(value); !ok || v != 0 {
		return options
	}
	kept := make(message.Options, 0, len(options))
	for _, o := range options {
		if o.ID != wire.NoResponse {
			kept = append(kept, o)
		}
	}
	return kept
}

// groupSink notes which servers answer, and when the exchange ends.
type groupSink struct {
	sink   exchange.Sink
	heard  *Heard
	client *client // nil: it does not count as running
	via    string  // the next proxy
	groups []string
	one    [1]string // room for groups: there is nearly always one
}

func newGroupSink(w exchange.Sink, c *client, heard *Heard, to *exchange.Target) *groupSink {
	s := &groupSink{sink: w, client: c, heard: heard, via: to.NextHop}
	s.groups = append(s.one[:0], to.GroupName)
	for _, a := range to.Also {
		s.groups = append(s.groups, a.Name)
	}
	return s
}

// Respond implements exchange.Sink.
func (s *groupSink) Respond(p *exchange.Response) exchange.Verdict {
	if p.From.IsValid() {
		for _, g := range s.groups {
			s.heard.note(p.From, g, s.via)
		}
	}
	return s.sink.Respond(p)
}

// End implements exchange.Sink.
func (s *groupSink) End(err error) {
	if s.client != nil {
		s.client.running.Add(-1)
	}
	s.sink.End(err)
}

// Allows reports whether the client of r may reach to by unicast, as it would have
// to for a request of its own: for redirections of HTTP servers (HC-34).
func (p *Policy) Allows(r *exchange.Request, to exchange.Target) bool {
	c, ok := permissions(r)
	asked := exchange.Request{Target: to, Client: r.Client, Arrival: r.Arrival}
	return ok && p.denies(&asked, c) == ""
}

// Offers reports whether a client may reach a target at all: one of the groups that
// it stands for, or the server. What a name stands for is not asked.
func (p *Policy) Offers(id *exchange.Identity, groups []string, to *exchange.Target) bool {
	if id == nil {
		return false
	}
	c, ok := id.Permissions.(*client)
	if !ok {
		return false
	}
	for _, g := range groups {
		if c.AllGroups || slices.Contains(c.Groups, g) {
			return true
		}
	}
	return !to.Group && slices.ContainsFunc(c.Forward, func(t Target) bool { return t.matches(to) })
}

// denies checks a unicast target and returns the key of the configuration that
// denies it, empty for none: the client's list, and the kinds of address that are
// out of bounds unless allowed (FP-11); a name that a next proxy resolves is checked
// there. A server heard in one of the client's groups, or announced for one, passes
// both; the former under the scheme of groups (GP-112), and it is reached the way it
// was heard: behind a next proxy, unless the client's own list has it.
func (p *Policy) denies(r *exchange.Request, c *client) string {
	permitted := func(name string) bool { return c.AllGroups || slices.Contains(c.Groups, name) }
	key := p.listDenies(r, c)
	if key == "" || c.FollowUp && slices.ContainsFunc(r.Target.Announced, permitted) {
		return ""
	}
	if !c.FollowUp || r.Target.Scheme != "coap" {
		return key
	}
	via, ok := p.heard.in(r.Target.Addr, r.Arrival, permitted)
	if !ok {
		return key
	}
	if r.Target.NextHop == "" {
		r.Target.NextHop = via
	}
	return ""
}

// listDenies checks a unicast target by the client's list.
func (p *Policy) listDenies(r *exchange.Request, c *client) string {
	addr := r.Target.Addr.Addr()
	switch {
	case !addr.IsValid() && r.Target.NextHop != "":
	case addr.IsUnspecified(), addr.IsMulticast(), addr == broadcast: // GC-9
		return "groups"
	case addr.IsLoopback() && !p.config.AllowLoopback:
		return "proxy.allow_loopback"
	case addr.IsLinkLocalUnicast() && !p.config.AllowLinkLocal:
		return "proxy.allow_link_local"
	case addr.IsPrivate() && !p.config.AllowPrivate:
		return "proxy.allow_private"
	}
	for i := range c.Forward {
		if c.Forward[i].matches(&r.Target) {
			return ""
		}
	}
	return "clients[].forward"
}

// NamesGroup reports whether a host name and port are those of a group.
func (p *Policy) NamesGroup(host string, port uint16) bool {
	return p.named[hostPort{host, port}] != nil
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})
