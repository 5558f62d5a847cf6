package access

import (
	"net/netip"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/exchange"
)

// Client is what one client entry allows.
type Client struct {
	Identity exchange.Identity
	// Networks identify the client by its source address (GP-24).
	Networks []netip.Prefix
	// PSK identifies the client by the identity of its pre-shared key; empty: by
	// none.
	PSK string
	// Certificate identifies the client by its certificate, which has one of these
	// names; empty: by none.
	Certificate []CertificateName
	// HTTP identifies the client by its name among the tokens and passwords of
	// HTTP clients; empty: by none.
	HTTP string
	// OSCORE identifies the client by the names of its OSCORE contexts.
	OSCORE []string
	// AllGroups allows every configured group, Groups the named ones.
	AllGroups bool
	Groups    []string
	// Methods restricts the methods towards groups; nil leaves it to the group.
	Methods []codes.Code
	// MaxTimeout bounds T' (GP-29).
	MaxTimeout time.Duration
	// AllowNoResponseZero lets No-Response 0 through (GC-33).
	AllowNoResponseZero bool
	// Forward lists the unicast targets (FP-85).
	Forward []Target
	// FollowUp allows unicast requests to servers heard in a permitted group
	// (GP-112).
	FollowUp bool
	// MaxExchanges bounds the running group exchanges of the client.
	MaxExchanges int
	// MaxObservations bounds the observations of the client; a registration beyond
	// it is a plain request.
	MaxObservations int
}

// Target is a pattern of unicast destinations.
type Target struct {
	// Scheme is that of the target URI; empty for every one.
	Scheme string
	// Any matches every host; else Host a name as written in the URI, or
	// Network an address after resolution.
	Any     bool
	Host    string
	Network netip.Prefix
	// Port is the port to match unless AnyPort.
	Port    uint16
	AnyPort bool
}

func (t *Target) matches(to *exchange.Target) bool {
	if t.Scheme != "" && t.Scheme != to.Scheme {
		return false
	}
	if !t.AnyPort && t.Port != to.Addr.Port() {
		return false
	}
	switch {
	case t.Any:
		return true
	case t.Host != "":
		return t.Host == to.Host
	default:
		return t.Network.Contains(to.Addr.Addr().WithZone(""))
	}
}

// Group is what may be done with one group.
type Group struct {
	Name string
	// Addr identifies the group, unless it is known by the name Host and Port
	// alone (GC-2).
	Addr netip.AddrPort
	Host string
	Port uint16
	// Addrs are addresses that Host is known to stand for: a request to one of
	// them is a request to this group, too (GC-2).
	Addrs []netip.Addr
	// Rate is the requests per second to this group by all clients together, 0
	// for no limit, with its burst (GP-113).
	Rate  float64
	Burst int
	// Methods allowed (GC-70).
	Methods []codes.Code
	// MaxTimeout bounds T' (GP-29).
	MaxTimeout time.Duration
	// Protected allows requests protected end to end, whose outer method says
	// nothing (GC-92).
	Protected bool
}

// Config is everything the policy knows.
type Config struct {
	Clients []Client
	Groups  []Group
	// Stats counts; made if nil.
	Stats *Stats
	// MaxTimeout bounds every T' (GP-29), MaxScope every IPv6 group (GC-5).
	MaxTimeout time.Duration
	MaxScope   uint8
	// AllowLoopback, AllowLinkLocal and AllowPrivate permit unicast targets at
	// such addresses (FP-11).
	AllowLoopback, AllowLinkLocal, AllowPrivate bool
	// UnsecuredClients lets a client whose own hop is not protected reach servers
	// under a secure scheme (FP-87).
	UnsecuredClients bool
	// GroupRate and RequestRate are requests per second and client, 0 for no
	// limit (GP-113, FP-37), with their bursts.
	GroupRate, RequestRate   float64
	GroupBurst, RequestBurst int
	// PrefixRate and PrefixBurst are the same per source network of clients that
	// have proven nothing but their address (FP-37, HC-105).
	PrefixRate  float64
	PrefixBurst int
}
