package service

import (
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"go.uber.org/zap"

	"coapproxy/blockwise"
	"coapproxy/config"
	"coapproxy/exchange"
	"coapproxy/oscorehop"
	"coapproxy/proxy"
	"coapproxy/wire"
)

// oscoreStats counts what OSCORE does for the proxy.
type oscoreStats struct {
	Unprotected atomic.Uint64    `metric:"requests_total" help:"OSCORE layers removed from requests."`
	Protected   atomic.Uint64    `metric:"responses_total" help:"OSCORE layers put round responses."`
	Challenges  atomic.Uint64    `metric:"challenges_total" help:"Requests challenged with Echo because the replay window was lost."`
	Unsent      atomic.Uint64    `metric:"unsent_total" help:"Responses that could not be protected and were not sent."`
	Refused     [4]atomic.Uint64 `metric:"refused_total" help:"Protected requests that were not verified." label:"reason"`
}

// refusalNames are the label values of oscoreStats.Refused, by [oscorehop.Refusal].
func refusalNames(i int) string {
	return [...]string{"malformed", "no_context", "replayed", "forged"}[i]
}

// oscoreHop is the proxy as an OSCORE endpoint. It holds the contexts as long as
// the process lives: their sequence numbers outlive every configuration.
type oscoreHop struct {
	store  *oscorehop.BoltStore
	keeper *oscorehop.Keeper
	ring   *oscorehop.Keyring
	hop    oscorehop.Hop
	outer  *blockwise.Outer
	stats  oscoreStats
	log    *zap.Logger
}

// openOSCORE opens what the contexts of a configuration are kept in.
func (p *Proxy) openOSCORE(c *config.Config, log *zap.Logger) (*oscoreHop, error) {
	store, err := oscorehop.OpenBoltStore(c.OSCORE.Store)
	if err != nil {
		return nil, fmt.Errorf("OSCORE store: %w", err)
	}
	h := &oscoreHop{store: store, keeper: oscorehop.NewKeeper(store), log: log, hop: oscorehop.Hop{Numbers: *p.numbers}}
	h.ring = oscorehop.NewKeyring(h.keeper)
	for _, n := range c.OSCORE.Options {
		h.hop.Further = append(h.hop.Further, optionID(n))
	}
	p.metrics.Register("oscore", &h.stats, refusalNames)
	pieces := new(blockwise.OuterStats)
	h.outer = blockwise.NewOuter(pieces)
	p.metrics.Register("oscore_pieces", pieces, nil)
	return h, nil
}

// protectionOf loads the contexts that a configuration names and returns how
// requests protected with them are served; nil when there never were any. When a
// context file is wrong nothing is changed.
func (p *Proxy) protectionOf(c *config.Config, targets *proxy.Targets, log *zap.Logger) (*proxy.Protection, error) {
	if p.oscore == nil {
		if len(c.ClientContexts())+len(c.HopContexts()) == 0 {
			return nil, nil
		}
		h, err := p.openOSCORE(c, log)
		if err != nil {
			return nil, err
		}
		p.oscore = h
	}
	if err := p.oscore.load(c); err != nil {
		return nil, err
	}
	return &proxy.Protection{Layers: p.oscore, MaxLayers: c.OSCORE.MaxLayers, Itself: targets.Itself, PassesThrough: targets.PassesThrough, Pieces: p.oscore.outer}, nil
}

// load reads the context files. Contexts that the configuration does not have any
// more stay until keep.
func (h *oscoreHop) load(c *config.Config) error {
	change, err := h.ring.Load(c.OSCORE.Contexts, c.ClientContexts(), c.HopContexts())
	if err == nil && len(change.Opened)+len(change.Replaced) > 0 {
		h.log.Info("OSCORE contexts", zap.Int("open", len(h.ring.All())), zap.Strings("new", change.Opened), zap.Strings("replaced", change.Replaced))
	}
	return err
}

// keep closes the contexts that the configuration now in force does not have.
func (h *oscoreHop) keep(c *config.Config) {
	if h == nil {
		return
	}
	gone, err := h.ring.Keep(append(c.ClientContexts(), c.HopContexts()...)...)
	if len(gone) > 0 || err != nil {
		h.log.Info("OSCORE contexts are gone", zap.Strings("names", gone), zap.Error(err))
	}
}

// close stores what was used and closes everything; no exchange is left then.
func (h *oscoreHop) close() {
	if h == nil {
		return
	}
	if err := errors.Join(h.keeper.Close(), h.store.Close()); err != nil {
		h.log.Error("OSCORE store not closed", zap.Error(err))
	}
}

// towards puts the layer of a context, named in the configuration, in front of a
// leg. The context is looked up for each request: a reload may replace it.
func (p *Proxy) towards(context string, next exchange.Handler) exchange.Handler {
	return exchange.HandlerFunc(func(r *exchange.Request, w exchange.Sink) exchange.Canceler {
		h := p.oscore
		t := &oscorehop.Towards{Next: next, Hop: &h.hop, Context: func() *oscorehop.Context { return h.ring.Get(context) }, Used: h.watch, Whole: h.outer.Fetch}
		return t.Exchange(r, w)
	})
}

// protectedServers is the leg over UDP with a layer for the servers that have one
// (OH-102, OH-121).
func (p *Proxy) protectedServers(c *config.Config, next exchange.Handler) exchange.Handler {
	if len(c.OSCORE.Servers) == 0 {
		return next
	}
	type server struct {
		exchange.Handler
		nested bool
	}
	servers := make(map[netip.AddrPort]server)
	for _, s := range c.OSCORE.Servers {
		servers[netip.AddrPortFrom(s.Target.Addr, s.Target.Port)] = server{p.towards(s.Context, next), s.Nested}
	}
	return exchange.HandlerFunc(func(r *exchange.Request, w exchange.Sink) exchange.Canceler {
		if s, ok := servers[r.Target.Addr]; ok && (s.nested || !wire.Has(r.Options, wire.OSCORE)) {
			return s.Exchange(r, w)
		}
		return next.Exchange(r, w)
	})
}

var _ proxy.Unprotector = (*oscoreHop)(nil)

// Unprotect implements proxy.Unprotector.
func (h *oscoreHop) Unprotect(m *wire.Message) (*wire.Message, proxy.Layer, *proxy.LayerRefusal) {
	outer := oscorehop.Message{Code: m.Code, Options: m.Options, Payload: m.Payload}
	option, err := oscorehop.RequestOption(outer)
	if err != nil {
		return nil, nil, h.refusal(err, nil)
	}
	c, err := h.ring.Find(option)
	if err != nil {
		return nil, nil, h.refusal(err, nil)
	}
	inner, responder, err := h.hop.UnprotectRequest(c, outer, option)
	h.watch(c)
	if err != nil {
		return nil, nil, h.refusal(err, &oscoreLayer{hop: h, responder: responder, security: exchange.Security{OSCORE: c.Name()}})
	}
	h.stats.Unprotected.Add(1)
	out := *m
	out.Code, out.Options, out.Payload = inner.Code, inner.Options, inner.Payload
	return &out, &oscoreLayer{hop: h, responder: responder, security: exchange.Security{OSCORE: c.Name()}}, nil
}

// refusal says why a layer could not be removed. layer is its, for an answer that
// goes inside.
func (h *oscoreHop) refusal(err error, layer *oscoreLayer) *proxy.LayerRefusal {
	var verify *oscorehop.VerifyError
	var challenge *oscorehop.ChallengeError
	var plaintext *oscorehop.PlaintextError
	switch {
	case errors.As(err, &challenge): // OH-54
		h.stats.Challenges.Add(1)
		return &proxy.LayerRefusal{Answer: challenge.Response.OnWire(), Authentic: true, Reason: err}
	case errors.As(err, &plaintext): // OC-24
		r := &proxy.LayerRefusal{Authentic: true, Reason: err}
		if answer, err := layer.Protect(&wire.Message{Code: codes.BadRequest, Payload: []byte("malformed plaintext")}); err == nil {
			r.Answer = answer
		}
		return r
	case errors.As(err, &verify): // OH-50 to OH-53
		h.stats.Refused[verify.Reason].Add(1)
		return &proxy.LayerRefusal{Answer: verify.Response().OnWire(), Forged: verify.Reason == oscorehop.Forged, Reason: err}
	}
	return &proxy.LayerRefusal{Reason: err} // a challenge that could not be protected
}

// watch tells the operator how far the keys of a context are used up (OC-54).
func (h *oscoreHop) watch(c *oscorehop.Context) {
	u, risen := c.Risen()
	if !risen {
		return
	}
	write := h.log.Warn
	if u.Level == oscorehop.Refused {
		write = h.log.Error
	}
	write("OSCORE context: make a new one", zap.String("context", c.Name()), zap.Stringer("level", u.Level), zap.Stringer("limit", u.Limit),
		zap.Uint64("protected", u.Encryptions), zap.Uint64("failed", u.Failures), zap.Uint64("sequence", u.Sequence))
}

// oscoreLayer is one layer that was removed from a request.
type oscoreLayer struct {
	hop       *oscoreHop
	responder *oscorehop.Responder
	security  exchange.Security
}

// Security implements proxy.Layer.
func (l *oscoreLayer) Security() *exchange.Security { return &l.security }

// Context implements proxy.Layer.
func (l *oscoreLayer) Context() string { return l.security.OSCORE }

// WornOut implements proxy.Layer.
func (l *oscoreLayer) WornOut() bool {
	return l.responder.Context().Usage().Level >= oscorehop.Soft
}

// Protect implements proxy.Layer.
func (l *oscoreLayer) Protect(m *wire.Message) (*wire.Message, error) {
	h := l.hop
	out, err := l.responder.Protect(oscorehop.Message{Code: m.Code, Options: m.Options, Payload: m.Payload}, h.hop.Outgoing(m.Options))
	var unknown *oscorehop.UnknownOptionError
	var large *oscorehop.TooLargeError
	if errors.As(err, &unknown) || errors.As(err, &large) { // OH-57
		h.log.Info("response cannot be protected", zap.String("context", l.security.OSCORE), zap.Error(err))
		out, err = l.responder.Protect(l.unprotectable(m, err), h.hop.Outgoing(nil))
	}
	h.watch(l.responder.Context())
	if err != nil {
		h.stats.Unsent.Add(1)
		if !errors.Is(err, oscorehop.ErrClosed) {
			h.log.Warn("response not sent: it cannot be protected", zap.String("context", l.security.OSCORE), zap.Error(err)) // OH-63
		}
		return nil, err
	}
	h.stats.Protected.Add(1)
	return out.OnWire(), nil
}

// unprotectable is the 5.02 in place of a response that cannot go through a layer;
// it still says which server of a group is meant.
func (l *oscoreLayer) unprotectable(m *wire.Message, why error) oscorehop.Message {
	out := oscorehop.Message{Code: codes.BadGateway, Payload: []byte("the response cannot be protected")}
	var unknown *oscorehop.UnknownOptionError
	if errors.As(why, &unknown) {
		out.Payload = fmt.Appendf(nil, "the response has option %d, which cannot be protected", unknown.ID)
	}
	numbers := &l.hop.hop.Numbers
	for _, o := range m.Options {
		switch o.ID {
		case wire.MaxAge:
			continue
		case numbers.ReplyFrom, numbers.ResponseForwarding:
			out.Options = append(out.Options, o)
		}
	}
	return out
}
