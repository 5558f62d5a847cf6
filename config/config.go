// Package config turns the proxy's one YAML file into plain structs with every
// default filled in. It is strict: an unknown key, a wrong type, a value out of
// range or a contradiction is a [Problem] that names the line, the key and what
// to write instead, and all problems of a file are reported at once.
//
// The package opens no sockets and starts nothing; beside the file itself it
// looks at the host only to see whether a named network interface exists.
//
// The structs below are the schema: a field's yaml tag is its key, and the
// values a missing key gets are in defaults.go. config.example.yaml shows every
// key. Numbers such as GP-29 refer to docs/rules.
package config

import (
	"net/netip"
	"time"
)

// Config is one whole configuration. A Config returned by [Load] or [Parse] is
// valid; one made in code starts from [Default] and is checked with
// [Config.Validate]. It is not changed after that, so it may be shared between
// goroutines.
type Config struct {
	Listen []Listener `yaml:"listen"`
	// Credentials says where the secrets are.
	Credentials Credentials `yaml:"credentials"`
	// Clients says who may do what; a peer that no entry covers gets nothing
	// (GP-23, FP-85).
	Clients []Client `yaml:"clients"`
	// Groups lists the groups that can be reached at all (GP-22).
	Groups []Group `yaml:"groups"`
	// Names maps host names, in lower case, to addresses. A name listed here is
	// not looked up in the DNS. One name has multicast or unicast addresses,
	// never both (GC-3).
	Names map[string][]netip.Addr `yaml:"names"`
	// Routes are what the proxy stands in for (FP-1, GP-21).
	Routes  []Route `yaml:"routes"`
	Proxy   Proxy   `yaml:"proxy"`
	Cache   Cache   `yaml:"cache"`
	HTTP    HTTP    `yaml:"http"`
	Control Control `yaml:"control"`
	Metrics Metrics `yaml:"metrics"`
	Limits  Limits  `yaml:"limits"`
	Log     Log     `yaml:"log"`
	OSCORE  OSCORE  `yaml:"oscore"`
	// NextHop lists the next proxies of chains (FP-39).
	NextHop []NextHop `yaml:"next_hop"`

	source source
}

// Client is an access entry: a set of peers and what they may do.
type Client struct {
	// Name identifies the entry in logs and counters; unique.
	Name string `yaml:"name"`
	// Networks are trusted for identifying a client by source address alone
	// (GP-24). When entries overlap, the longest prefix wins; the same prefix
	// in two entries is a problem.
	Networks []netip.Prefix `yaml:"networks"`
	// PSK is the identity of the client's pre-shared key (GP-23); unique.
	PSK string `yaml:"psk"`
	// Certificate has names of which the client's certificate has one (GP-23); no
	// two clients have the same.
	Certificate CertificateNames `yaml:"certificate"`
	// HTTP is the client's name in the file of tokens and passwords (HC-100);
	// unique.
	HTTP string `yaml:"http"`
	// OSCORE names the Security Contexts that are this client's (OH-122): files in
	// OSCORE.Contexts, without their extension.
	OSCORE []string `yaml:"oscore"`
	// Dialect is the generation of the group options spoken with this client
	// (GP-127).
	Dialect Dialect `yaml:"dialect"`
	// PresetTimeout stands in for a missing Multicast-Timeout of a legacy
	// client (GP-127), in whole seconds; 0 means that the option is required.
	PresetTimeout time.Duration `yaml:"preset_timeout"`
	// Groups are the names of the groups this client may reach (GP-23).
	Groups GroupNames `yaml:"groups"`
	// Methods further restricts the methods of those groups (GC-70); nil means
	// no restriction of its own.
	Methods []Method `yaml:"methods"`
	// MaxTimeout is the longest Multicast-Timeout this client gets (GP-29), in
	// whole seconds; the smallest of the client's, the group's and the proxy's
	// applies. Parse fills in the proxy's where the file has none.
	MaxTimeout time.Duration `yaml:"max_timeout"`
	// AllowNoResponseZero lets a No-Response of 0, which widens the number of
	// responses, pass to a group instead of being removed (GC-33).
	AllowNoResponseZero bool `yaml:"allow_no_response_zero"`
	// Forward lists the unicast targets this client may reach (FP-85); none
	// when empty.
	Forward []Target `yaml:"forward"`
	// FollowUp lets the client reach, by unicast, every server it heard in one
	// of its groups (GP-112, FP-11).
	FollowUp bool `yaml:"follow_up"`
	// Echo says whether the client, where only its address tells who it is, must
	// prove that it is there (FP-81).
	Echo Echo `yaml:"echo"`
	// MaxExchanges bounds the group exchanges the client has running.
	MaxExchanges int `yaml:"max_exchanges"`
	// MaxObservations bounds the observations the client has running; 0: it may
	// observe nothing.
	MaxObservations int `yaml:"max_observations"`
	// ConOutstanding bounds the relayed CON responses not yet acknowledged
	// (GP-33).
	ConOutstanding int `yaml:"con_outstanding"`
	// ConQueue bounds the relayed responses waiting behind those (GP-33), or
	// because of ResponseRate.
	ConQueue int `yaml:"con_queue"`
	// ResponseRate is how many relayed NON responses per second each host of the
	// client gets, ResponseBurst how many at once; rate 0 means as they come
	// (GC-84).
	ResponseRate  float64 `yaml:"response_rate"`
	ResponseBurst int     `yaml:"response_burst"`
	// ResponseType is the message type of relayed responses (GP-33).
	ResponseType ResponseType `yaml:"response_type"`
}

// Group is one CoAP group, a multicast address and port (GC-2), or all the
// groups behind one name.
type Group struct {
	// Name is what Client.Groups refers to; unique.
	Name string   `yaml:"name"`
	URI  GroupURI `yaml:"uri"`
	// Interfaces are the outgoing interfaces; at least one (GC-7). With a zone
	// in URI it is that one. A group without any is one that a next hop reaches.
	Interfaces []string `yaml:"interfaces"`
	// HopLimit is the IP hop limit; 0 means by address. Use
	// [Group.HopLimitFor] (GC-6).
	HopLimit int `yaml:"hop_limit"`
	// Loopback delivers the multicast to members on this host too (GC-6).
	Loopback bool `yaml:"loopback"`
	// Methods are those that may go to the group (GC-70).
	Methods []Method `yaml:"methods"`
	// MaxTimeout is as in Client (GP-29).
	MaxTimeout time.Duration `yaml:"max_timeout"`
	// MaxResponses bounds the responses relayed in one exchange (GP-61).
	MaxResponses int `yaml:"max_responses"`
	// MaxBytes bounds the payload bytes relayed in one exchange (GP-61).
	MaxBytes Bytes `yaml:"max_bytes"`
	// NStart bounds the outstanding requests to the group (GC-80).
	NStart int `yaml:"nstart"`
	// Queue bounds the requests waiting behind those (GC-80).
	Queue int `yaml:"queue"`
	// Leisure is the time over which members spread their responses (GC-35).
	Leisure time.Duration `yaml:"leisure"`
	// FireAndForgetRate is how many requests with a Multicast-Timeout of 0 the
	// group gets per second, FireAndForgetBurst how many at once (GC-80).
	FireAndForgetRate  float64 `yaml:"fire_and_forget_rate"`
	FireAndForgetBurst int     `yaml:"fire_and_forget_burst"`
	// Rate is how many requests per second the group gets from all clients
	// together, Burst how many at once; rate 0 means no limit (GP-113).
	Rate  float64 `yaml:"rate"`
	Burst int     `yaml:"burst"`
	// ProbingRate is the average, in byte/s, sent to a group from which nothing
	// has come back yet; 0 means unlimited (GC-81).
	ProbingRate int `yaml:"probing_rate"`
	// Repeat says whether and how a request is sent a second time (GC-40).
	Repeat Repeat `yaml:"repeat"`
	// AllowedSources are the networks from which responses are accepted; empty
	// means all (GC-25).
	AllowedSources []netip.Prefix `yaml:"allowed_sources"`
	// MaxRequestPayload is the largest request payload (GC-56); more is refused
	// as GC-52 says.
	MaxRequestPayload Bytes `yaml:"max_request_payload"`
	// Members are the servers known to be all of the group's, so that responses
	// of all of them can stand for the group (GP-75). Addresses only.
	Members []HostPort `yaml:"members"`
	// Learned takes those who answer for the members.
	Learned Learned `yaml:"learned"`
	// RD says where the members are registered.
	RD Directory `yaml:"rd"`
	// ProtectedRequests allows requests whose method is hidden by end-to-end
	// Group OSCORE (GC-92).
	ProtectedRequests bool `yaml:"protected_requests"`
}

// Learned says how the members of a group are learned from who answers.
type Learned struct {
	// Within is the number of recent requests of which a member answered one; 0
	// turns learning off.
	Within int `yaml:"within"`
	// Trusted takes them for all members (GP-75).
	Trusted bool `yaml:"trusted"`
}

// Cache holds what concerns stored responses.
type Cache struct {
	Enabled bool `yaml:"enabled"`
	// MaxEntries and MaxBytes bound what is stored, MaxBody one body,
	// MaxVariants the entries of one resource (FP-51).
	MaxEntries  int   `yaml:"max_entries"`
	MaxBytes    Bytes `yaml:"max_bytes"`
	MaxBody     Bytes `yaml:"max_body"`
	MaxVariants int   `yaml:"max_variants"`
	// MaxAge is the longest a response counts as fresh, in whole seconds.
	MaxAge time.Duration `yaml:"max_age"`
	// Persist names the file that keeps fresh entries across a restart; none if
	// empty. A relative path is relative to the folder for the state, see
	// statePlace.
	Persist string `yaml:"persist"`
}

// Proxy holds what applies to every client and group.
type Proxy struct {
	// MaxTimeout is the longest Multicast-Timeout, in whole seconds (GP-29).
	MaxTimeout time.Duration `yaml:"max_timeout"`
	// RefuseAboveMax answers 4.00 to a longer one instead of lowering it (GP-29).
	RefuseAboveMax bool `yaml:"refuse_above_max"`
	// MaxScope is the widest IPv6 multicast scope (GC-5). IPv4 multicast
	// addresses carry no comparable scope; there Group.HopLimit bounds the reach.
	MaxScope Scope `yaml:"max_scope"`
	// HopLimit is the value of the Hop-Limit option inserted where a request
	// has none (FP-53).
	HopLimit int `yaml:"hop_limit"`
	// OwnNames are host names and addresses by which this proxy is known beside
	// those it listens on (FP-8).
	OwnNames []string `yaml:"own_names"`
	// Identifier names this proxy in 5.08 responses (FP-54); empty means the
	// host's name.
	Identifier string `yaml:"identifier"`
	// ZoneInReplyFrom adds the interface to link-local addresses in Reply-From
	// (GP-57).
	ZoneInReplyFrom bool `yaml:"zone_in_reply_from"`
	// DefaultInterface is where a link-local target without zone is, if it has
	// not been heard anywhere; none if empty (GP-57).
	DefaultInterface string `yaml:"default_interface"`
	// ClientTypes is the message type used towards unicast targets (FP-31).
	ClientTypes ClientTypes `yaml:"client_types"`
	// ForwardNoResponse has servers told the No-Response of a client's request, not
	// only groups (FP-84).
	ForwardNoResponse bool `yaml:"forward_no_response"`
	// AllowLoopback, AllowLinkLocal and AllowPrivate say which kinds of unicast
	// target address are reachable at all, after name resolution (FP-11). They
	// add to, and never replace, what Client.Forward allows.
	AllowLoopback  bool `yaml:"allow_loopback"`
	AllowLinkLocal bool `yaml:"allow_link_local"`
	// AllowPrivate covers RFC 1918 and RFC 4193 addresses.
	AllowPrivate bool `yaml:"allow_private"`
	// RequireSecureClient lets only clients whose own hop is protected reach
	// targets under a secure scheme (FP-87).
	RequireSecureClient bool `yaml:"require_secure_client"`
	// ServersPath is the path in front of the segment that names a server of a
	// group whose servers are announced by a path (GP-53).
	ServersPath URIPath `yaml:"servers_path"`
	// ServerTargets names the file that keeps what servers were announced as across a
	// restart; none if empty. Load makes a relative path relative to the folder of the
	// configuration, or to that for state.
	ServerTargets string `yaml:"server_targets"`
	// ServerAddresses are addresses and ports of this host for servers of groups
	// that get one each (GP-54).
	ServerAddresses []PortRange   `yaml:"server_addresses"`
	OptionNumbers   OptionNumbers `yaml:"option_numbers"`
}

// OptionNumbers are the numbers of the group options, which IANA has not
// assigned yet (GP-1). They are distinct, and their bits say what the option's
// definition requires.
type OptionNumbers struct {
	MulticastTimeout uint16 `yaml:"multicast_timeout"`
	// LegacyTimeout is a second number on which Multicast-Timeout is accepted
	// from clients of the dialects legacy and both; 0 means none (GP-127).
	LegacyTimeout uint16 `yaml:"legacy_timeout"`
	ReplyFrom     uint16 `yaml:"reply_from"`
	GroupETag     uint16 `yaml:"group_etag"`
	// ResponseForwarding is the legacy form of Reply-From (GP-127).
	ResponseForwarding uint16 `yaml:"response_forwarding"`
}

// Limits bounds what the proxy holds and does.
type Limits struct {
	// MaxToken is the longest Token accepted, in bytes (FP-83).
	MaxToken int `yaml:"max_token"`
	// Exchanges bounds the exchanges running, over all clients (FP-34).
	Exchanges int `yaml:"exchanges"`
	// Observations bounds the observations running, of all clients and with all
	// servers; 0: nobody may observe.
	Observations int `yaml:"observations"`
	// DedupEntries bounds the finished idempotent requests, and the responses,
	// that are remembered for recognising repetitions (FP-90, GC-16).
	DedupEntries int `yaml:"dedup_entries"`
	// DedupNonIdempotent bounds the requests that must not be carried out twice
	// (FP-90).
	DedupNonIdempotent int `yaml:"dedup_non_idempotent"`
	// UpstreamPorts bounds the source ports used towards servers (FP-91).
	UpstreamPorts int `yaml:"upstream_ports"`
	// NStart bounds the outstanding requests to one server (FP-35, FP-92).
	NStart int `yaml:"nstart"`
	// NStartTargets are servers with a bound of their own (FP-92).
	NStartTargets []NStartTarget `yaml:"nstart_targets"`
	// UpstreamQueue bounds the requests waiting for one server (FP-35).
	UpstreamQueue int `yaml:"upstream_queue"`
	// ResponseTimeoutCon is how long a server may take over an unreliable
	// transport when asked with CON, ResponseTimeout otherwise (FP-32).
	ResponseTimeoutCon time.Duration `yaml:"response_timeout_con"`
	ResponseTimeout    time.Duration `yaml:"response_timeout"`
	// UpstreamConnections bounds the connections to servers over TCP, TLS and
	// WebSocket, UpstreamPending the requests that wait on one of them for their
	// response (FP-35).
	UpstreamConnections int `yaml:"upstream_connections"`
	UpstreamPending     int `yaml:"upstream_pending"`
	// ReceiveBuffer is the kernel receive buffer wanted per socket.
	ReceiveBuffer Bytes `yaml:"receive_buffer"`
	// Grace is how long running exchanges may go on after a signal to stop.
	Grace time.Duration `yaml:"grace"`
	// GroupRate is how many group requests per second one client may send,
	// GroupBurst how many at once; rate 0 means no limit (GP-113).
	GroupRate  float64 `yaml:"group_rate"`
	GroupBurst int     `yaml:"group_burst"`
	// RequestRate and RequestBurst are the same for all requests (FP-37).
	RequestRate  float64 `yaml:"request_rate"`
	RequestBurst int     `yaml:"request_burst"`
	// PrefixRate and PrefixBurst are the same per source network of clients that
	// have proven nothing but their address: per IPv4 address, per /64 of IPv6
	// (FP-37, HC-105).
	PrefixRate  float64 `yaml:"prefix_rate"`
	PrefixBurst int     `yaml:"prefix_burst"`
	// ReuseList bounds the freed group Tokens that wait for reuse (GC-24).
	ReuseList int `yaml:"reuse_list"`
	// ReverseMappings bounds the servers remembered because they were announced as
	// targets at the proxy, ReverseLifetime is how long after the last use (GP-102).
	ReverseMappings int           `yaml:"reverse_mappings"`
	ReverseLifetime time.Duration `yaml:"reverse_lifetime"`
}

// NStartTarget is a server with its own NSTART (FP-92).
type NStartTarget struct {
	Target HostPort `yaml:"target"`
	NStart int      `yaml:"nstart"`
}

// Log says what is logged and how.
type Log struct {
	Level  LogLevel  `yaml:"level"`
	Format LogFormat `yaml:"format"`
	Output LogOutput `yaml:"output"`
}

// HopLimitFor returns the IP hop limit of requests to addr, one of the group's
// addresses: always 1 for link-local ones, otherwise the configured value or,
// without one, 16 for IPv6 and 1 for IPv4 (GC-6).
func (g *Group) HopLimitFor(addr netip.Addr) int {
	switch {
	case staysOnLink(addr):
		return 1
	case g.HopLimit != 0:
		return g.HopLimit
	case addr.Is4():
		return 1
	default:
		return 16
	}
}

// GroupNames lists groups by name. The single entry "*" stands for every
// configured group.
type GroupNames []string

// All reports whether n stands for every configured group.
func (n GroupNames) All() bool { return len(n) == 1 && n[0] == "*" }
