package membership

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// lookupType is the resource type of endpoint lookup (RFC 9176 §9.3).
const lookupType = "core.rd-lookup-ep"

// document returns the link-format document in a response.
func document(p *exchange.Response) (string, error) {
	switch {
	case p.Code != codes.Content:
		return "", fmt.Errorf("response %s", wire.CodeString(p.Code))
	case wire.Has(p.Options, wire.Block2):
		return "", errors.New("only a part of the list")
	}
	if value, ok := wire.First(p.Options, wire.ContentFormat); ok {
		if format, _ := wire.Uint(value); format != linkFormat {
			return "", fmt.Errorf("content-format %d", format)
		}
	}
	return string(p.Payload), nil
}

// maxFound bounds the links in which the lookup resource is searched.
const maxFound = 256

// find enters where the endpoint lookup is (RFC 9176 §4.3).
func (d *Directory) find(l *lookup, p *exchange.Response) error {
	list, err := document(p)
	if err != nil {
		return fmt.Errorf("discovery of the lookup resource: %w", err)
	}
	links, err := parseLinks(list, maxFound)
	if err != nil {
		return fmt.Errorf("discovery of the lookup resource: %w", err)
	}
	for i := range links {
		rt, _ := links[i].param("rt")
		if !slices.Contains(strings.Fields(rt), lookupType) {
			continue
		}
		target := links[i].target
		if strings.HasPrefix(target, "/") && !strings.HasPrefix(target, "//") {
			target = "coap://" + d.config.Target.Addr.Addr().WithZone("").String() + target
			if d.config.Target.Addr.Addr().Is6() {
				target = "coap://[" + d.config.Target.Addr.Addr().WithZone("").String() + "]" + links[i].target
			}
		}
		uri, err := wire.ParseURI(target)
		if err != nil || uri.Addr != d.config.Target.Addr.Addr().WithZone("") || len(uri.Path) == 0 {
			continue // another host's
		}
		d.mu.Lock()
		if d.current == l {
			d.path = uri.Path
		}
		d.mu.Unlock()
		return nil
	}
	return errors.New("it has no endpoint lookup (" + lookupType + "); write the path of its lookup resource")
}

// members reads a list. whole is false if it has members whose address it does
// not tell: such as are registered by name or with another scheme than coap,
// from which responses to group requests come.
func (d *Directory) members(list string) (servers []netip.AddrPort, whole bool, err error) {
	links, err := parseLinks(list, 16*d.config.MaxMembers)
	if err != nil {
		return nil, false, err
	}
	whole = true
	for i := range links {
		uri, err := wire.ParseURI(links[i].base())
		if err != nil || !strings.EqualFold(uri.Scheme, "coap") || !uri.Addr.IsValid() || uri.Addr.IsMulticast() {
			whole = false
			continue
		}
		addr := uri.Addr
		if addr.Is6() && addr.IsLinkLocalUnicast() {
			if d.config.Zone == "" {
				whole = false
				continue
			}
			addr = addr.WithZone(d.config.Zone)
		}
		servers = append(servers, netip.AddrPortFrom(addr, uri.Port))
	}
	servers = unique(servers)
	if len(servers) > d.config.MaxMembers {
		servers, whole = servers[:d.config.MaxMembers], false
	}
	return servers, whole, nil
}

// base is the URI of the endpoint that a link of a list belongs to: its base in an
// endpoint lookup, its target in a resource lookup. libcoap's directory has
// neither, and tells the authority from which an endpoint registered in A.
func (l *link) base() string {
	if base, ok := l.param("base"); ok {
		return base
	}
	if authority, ok := l.param("A"); ok && strings.HasPrefix(authority, "[") {
		return "coap://" + authority
	}
	return l.target
}
