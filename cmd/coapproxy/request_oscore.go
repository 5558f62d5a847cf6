package main

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/client"
	"coapproxy/oscorehop"
	"coapproxy/wire"
)

// sequenceFile is what is added to the name of a context file to name the one that
// keeps its sequence numbers.
const sequenceFile = ".seq"

// oscoreClient is the OSCORE side of the subcommand request: layers for the
// proxies on the way and for the server (OH-3).
type oscoreClient struct {
	hop     oscorehop.Hop
	hops    []oscoreHopLayer   // of the proxies, the nearest one first
	server  *oscorehop.Context // nil: no layer for the server
	stores  []*oscorehop.BoltStore
	keepers []*oscorehop.Keeper
}

// oscoreHopLayer is the layer for one proxy.
type oscoreHopLayer struct {
	context *oscorehop.Context
	// next is the proxy behind this one, which it is told to forward to; nil for
	// the last one, which gets the request itself.
	next *wire.URI
}

// newOSCOREClient opens contexts: files are in the order of the way, first those of
// the proxies, of which there are as many as further has and one more when via is
// set, and then that of the server. Close closes what was opened.
func newOSCOREClient(files []string, via bool, further []wire.URI, numbers wire.Numbers) (_ *oscoreClient, err error) {
	proxies := len(further)
	if via {
		proxies++
	}
	switch {
	case len(further) > 0 && !via:
		return nil, fmt.Errorf("%w: --through needs a proxy before it: --via", client.ErrRequest)
	case len(further) > 0 && len(files) < proxies:
		return nil, fmt.Errorf("%w: --through needs one --oscore for each proxy", client.ErrRequest)
	case len(files) > proxies+1:
		return nil, fmt.Errorf("%w: %d --oscore for %d proxies and a server", client.ErrRequest, len(files), proxies)
	}
	o := &oscoreClient{hop: oscorehop.Hop{Numbers: numbers}}
	defer func() {
		if err != nil {
			err = errors.Join(err, o.Close())
		}
	}()
	for i, file := range files {
		c, err := o.open(file)
		if err != nil {
			return nil, err
		}
		switch {
		case i >= proxies:
			o.server = c
		case i < len(further):
			o.hops = append(o.hops, oscoreHopLayer{context: c, next: &further[i]})
		default:
			o.hops = append(o.hops, oscoreHopLayer{context: c})
		}
	}
	return o, nil
}

func (o *oscoreClient) open(file string) (*oscorehop.Context, error) {
	p, err := oscorehop.ReadFile(file)
	if err != nil {
		return nil, err
	}
	store, err := oscorehop.OpenBoltStore(file + sequenceFile)
	if err != nil {
		return nil, err
	}
	o.stores = append(o.stores, store)
	keeper := oscorehop.NewKeeper(store)
	o.keepers = append(o.keepers, keeper)
	c, err := oscorehop.Open(p, keeper)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return c, nil
}

// Close stores what was used.
func (o *oscoreClient) Close() error {
	if o == nil {
		return nil
	}
	var err error
	for _, k := range o.keepers {
		err = errors.Join(err, k.Close())
	}
	for _, s := range o.stores {
		err = errors.Join(err, s.Close())
	}
	return err
}

// Protect implements client.Protector.
func (o *oscoreClient) Protect(m *wire.Message) (*wire.Message, client.Opener, error) {
	out := oscorehop.Message{Code: m.Code, Options: m.Options, Payload: m.Payload}
	opener := &oscoreOpener{client: o}
	if o.server != nil {
		var err error
		if out, opener.server, err = o.server.ProtectRequest(out, oscorehop.DefaultClasses); err != nil {
			return nil, nil, err
		}
	}
	for i := len(o.hops) - 1; i >= 0; i-- {
		if next := o.hops[i].next; next != nil {
			out.Options = towards(out.Options, next)
		}
		protected, r, err := o.hops[i].context.ProtectRequest(out, o.hop.Outgoing(out.Options))
		if err != nil {
			return nil, nil, err
		}
		out, opener.hops = protected, append(opener.hops, r)
	}
	return out.OnWire(), opener, nil
}

// towards names the next proxy as the target of a request that is protected for it.
func towards(options message.Options, next *wire.URI) message.Options {
	out := next.AppendOptions(nil, netip.AddrPort{}) // host and port are always written, see FP-4
	out = append(out, message.Option{ID: wire.ProxyScheme, Value: []byte(next.Scheme)})
	out = append(out, options...)
	slices.SortStableFunc(out, func(a, b message.Option) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// ProtectStop implements client.Protector.
func (o *oscoreClient) ProtectStop(m *wire.Message) (*wire.Message, error) {
	out := oscorehop.Message{Code: m.Code, Options: m.Options, Payload: m.Payload}
	if len(o.hops) > 0 {
		var err error
		if out, _, err = o.hops[0].context.ProtectRequest(out, o.hop.Outgoing(out.Options)); err != nil {
			return nil, err
		}
	}
	return out.OnWire(), nil
}

// oscoreOpener takes the layers off the responses to one request, in the reverse
// order of their being put round it (OH-5).
type oscoreOpener struct {
	client *oscoreClient
	server *oscorehop.Requester
	hops   []*oscorehop.Requester // the farthest proxy first
}

var errNoLayer = errors.New("a response without the OSCORE layer it must have")

// Open implements client.Opener.
func (o *oscoreOpener) Open(m *wire.Message) (*wire.Message, bool, error) {
	out := oscorehop.Message{Code: m.Code, Options: m.Options, Payload: m.Payload}
	for i := len(o.hops) - 1; i >= 0; i-- {
		if !wire.Has(out.Options, wire.OSCORE) {
			return o.bare(m, out, i == len(o.hops)-1)
		}
		var err error
		if out, err = o.client.hop.UnprotectResponse(o.hops[i], out); err != nil {
			return nil, false, err
		}
	}
	if o.server != nil {
		if !wire.Has(out.Options, wire.OSCORE) {
			return o.bare(m, out, len(o.hops) == 0)
		}
		var err error
		if out, err = o.server.Unprotect(out, oscorehop.DefaultClasses); err != nil {
			return nil, false, err
		}
	}
	return withMessage(m, out), true, nil
}

// bare is a response that lacks a layer: an error of whoever is on the way (OH-45),
// or the 2.03 of a proxy that confirms a Group-ETag. Without any layer nothing says
// that it is not forged.
func (o *oscoreOpener) bare(m *wire.Message, out oscorehop.Message, forgeable bool) (*wire.Message, bool, error) {
	if out.Code>>5 < 4 && (forgeable || out.Code != codes.Valid) {
		return nil, false, errNoLayer
	}
	return withMessage(m, out), !forgeable, nil
}

func withMessage(m *wire.Message, out oscorehop.Message) *wire.Message {
	plain := *m
	plain.Code, plain.Options, plain.Payload = out.Code, out.Options, out.Payload
	return &plain
}
