package service

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"strings"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"golang.org/x/sys/unix"

	"coapproxy/access"
	"coapproxy/config"
	"coapproxy/endpoint"
	"coapproxy/exchange"
	"coapproxy/multicast"
	"coapproxy/wire"
)

// What the configuration says, in the words of the packages that do it.

func optionID(n uint16) message.OptionID { return message.OptionID(n) }

func isNoFamily(err error) bool {
	return errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT)
}

func openGroup(c *config.Config) multicast.Open {
	return func(ctx context.Context, local netip.AddrPort, m endpoint.MulticastOptions) (endpoint.PacketConn, error) {
		return endpoint.ListenUDP(ctx, local, endpoint.UDPOptions{ReceiveBuffer: int(c.Limits.ReceiveBuffer),
			SendBuffer: int(c.Limits.ReceiveBuffer), Multicast: &m})
	}
}

func openClient(c *config.Config) func(context.Context, netip.Addr) (endpoint.PacketConn, error) {
	return func(ctx context.Context, wildcard netip.Addr) (endpoint.PacketConn, error) {
		return endpoint.ListenUDP(ctx, netip.AddrPortFrom(wildcard, 0), endpoint.UDPOptions{
			ReceiveBuffer: int(c.Limits.ReceiveBuffer), SendBuffer: int(c.Limits.ReceiveBuffer), Errors: true})
	}
}

func groupsOf(c *config.Config) []multicast.Group {
	var out []multicast.Group
	for i := range c.Groups {
		g := &c.Groups[i]
		repeat := multicast.NoRepeat
		switch g.Repeat {
		case config.RepeatSameMID:
			repeat = multicast.SameMessageID
		case config.RepeatNewMID:
			repeat = multicast.NewMessageID
		}
		out = append(out, multicast.Group{Name: g.Name, Interfaces: g.Interfaces, HopLimit: g.HopLimitFor, Loopback: g.Loopback,
			NStart: g.NStart, Queue: g.Queue, Leisure: g.Leisure, FireRate: g.FireAndForgetRate, FireBurst: g.FireAndForgetBurst,
			ProbingRate: g.ProbingRate, Repeat: repeat, AllowedSources: g.AllowedSources, MaxResponses: g.MaxResponses,
			MaxBytes: int(g.MaxBytes)})
	}
	return out
}

// groupBody is the largest request payload of all groups a request goes to.
func groupBody(c *config.Config) func(*exchange.Request) int {
	limits := make(map[string]int)
	for i := range c.Groups {
		limits[c.Groups[i].Name] = int(c.Groups[i].MaxRequestPayload)
	}
	return func(r *exchange.Request) int {
		limit := limits[r.Target.GroupName]
		for _, a := range r.Target.Also {
			limit = min(limit, limits[a.Name])
		}
		return limit
	}
}

func nstartOf(c *config.Config) func(netip.AddrPort) int {
	own := make(map[netip.AddrPort]int)
	for _, t := range c.Limits.NStartTargets {
		own[netip.AddrPortFrom(t.Target.Addr, t.Target.Port)] = t.NStart
	}
	if targets := c.Limits.NStartTargets; len(targets) <= 4 { // comparing them is quicker than a look into the map
		return func(server netip.AddrPort) int {
			for i := len(targets) - 1; i >= 0; i-- {
				if targets[i].Target.Port == server.Port() && targets[i].Target.Addr == server.Addr() {
					return targets[i].NStart
				}
			}
			return c.Limits.NStart
		}
	}
	return func(server netip.AddrPort) int {
		if n, ok := own[server]; ok {
			return n
		}
		return c.Limits.NStart
	}
}

func (p *Proxy) policyOf(c *config.Config) access.Config {
	out := access.Config{Stats: &p.stats.access, MaxTimeout: c.Proxy.MaxTimeout, MaxScope: c.Proxy.MaxScope.Value(), AllowLoopback: c.Proxy.AllowLoopback,
		AllowLinkLocal: c.Proxy.AllowLinkLocal, AllowPrivate: c.Proxy.AllowPrivate, UnsecuredClients: !c.Proxy.RequireSecureClient, GroupRate: c.Limits.GroupRate,
		GroupBurst: c.Limits.GroupBurst, RequestRate: c.Limits.RequestRate, RequestBurst: c.Limits.RequestBurst, PrefixRate: c.Limits.PrefixRate, PrefixBurst: c.Limits.PrefixBurst}
	for i := range c.Groups {
		g := &c.Groups[i]
		kept := access.Group{Name: g.Name, Host: g.URI.Host, Port: g.URI.Port, Methods: methodsOf(g.Methods),
			MaxTimeout: g.MaxTimeout, Protected: g.ProtectedRequests, Rate: g.Rate, Burst: g.Burst}
		if g.URI.Addr.IsValid() {
			kept.Addr = netip.AddrPortFrom(g.URI.Addr, g.URI.Port)
		} else {
			kept.Addrs = c.Names[g.URI.Host]
		}
		out.Groups = append(out.Groups, kept)
	}
	for i := range c.Clients {
		out.Clients = append(out.Clients, clientOf(&c.Clients[i]))
	}
	return out
}

func clientOf(c *config.Client) access.Client {
	out := access.Client{
		Identity: exchange.Identity{Name: c.Name, ProveAddress: c.Echo == config.EchoRequired, PresetTimeout: c.PresetTimeout,
			Delivery: exchange.Delivery{Outstanding: c.ConOutstanding, Queue: c.ConQueue, Rate: c.ResponseRate, Burst: c.ResponseBurst}},
		Networks: c.Networks, PSK: c.PSK, Certificate: certificateNames(c.Certificate), HTTP: c.HTTP, OSCORE: c.OSCORE, AllGroups: c.Groups.All(), Groups: c.Groups, MaxTimeout: c.MaxTimeout,
		AllowNoResponseZero: c.AllowNoResponseZero, FollowUp: c.FollowUp, MaxExchanges: c.MaxExchanges, MaxObservations: c.MaxObservations,
	}
	switch c.Dialect {
	case config.DialectLegacy:
		out.Identity.Dialect = exchange.Legacy
	case config.DialectBoth:
		out.Identity.Dialect = exchange.Both
	}
	switch c.ResponseType {
	case config.ResponseCon:
		out.Identity.Delivery.Type = exchange.Confirmable
	case config.ResponseNon:
		out.Identity.Delivery.Type = exchange.NonConfirmable
	}
	if c.Methods != nil {
		out.Methods = methodsOf(c.Methods)
	}
	for _, t := range c.Forward {
		out.Forward = append(out.Forward, access.Target{Scheme: t.Scheme, Any: t.Any, Host: t.Host, Network: t.Network, Port: t.Port, AnyPort: t.AnyPort})
	}
	return out
}

func methodsOf(names []config.Method) []codes.Code {
	var out []codes.Code
	for _, n := range names {
		if code, err := wire.ParseMethod(string(n)); err == nil {
			out = append(out, code)
		}
	}
	return out
}

func identifierOf(c *config.Config) string {
	if c.Proxy.Identifier != "" {
		return c.Proxy.Identifier
	}
	name, err := os.Hostname()
	if err != nil || name == "" {
		return "coapproxy"
	}
	return strings.ReplaceAll(name, " ", "-")
}

func ownNames(c *config.Config) map[string]bool {
	names := make(map[string]bool)
	for _, n := range c.Proxy.OwnNames {
		names[strings.ToLower(n)] = true
	}
	return names
}

// zoneOf returns the interface of a link-local server (GP-57).
func zoneOf(c *config.Config, heard *access.Heard) func(netip.Addr) string {
	return func(server netip.Addr) string {
		if zone := heard.Zone(server); zone != "" {
			return zone
		}
		return c.Proxy.DefaultInterface
	}
}

func dedupOf(c *config.Config) endpoint.DedupLimits {
	dedup := endpoint.DefaultDedupLimits()
	dedup.Idempotent, dedup.NonIdempotent = c.Limits.DedupEntries, c.Limits.DedupNonIdempotent
	return dedup
}

func numbersOf(n config.OptionNumbers) *wire.Numbers {
	return &wire.Numbers{MulticastTimeout: optionID(n.MulticastTimeout), LegacyTimeout: optionID(n.LegacyTimeout),
		ReplyFrom: optionID(n.ReplyFrom), GroupETag: optionID(n.GroupETag), ResponseForwarding: optionID(n.ResponseForwarding)}
}

func certificateNames(names config.CertificateNames) []access.CertificateName {
	var out []access.CertificateName
	for _, n := range names {
		out = append(out, access.CertificateName(n))
	}
	return out
}
