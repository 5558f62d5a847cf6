package config

import (
	"net/netip"
	"time"
)

// Default returns the configuration of an empty file. It listens on the loopback
// addresses only (FP-85) and lets nobody do anything (GP-23). The caller owns it.
func Default() *Config {
	return &Config{
		Listen: []Listener{
			{Scheme: "coap", Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), defaultPort)},
			{Scheme: "coap", Addr: netip.AddrPortFrom(netip.IPv6Loopback(), defaultPort)},
		},
		Credentials: Credentials{Servers: ServerCredentials{Authorities: SystemAuthorities}},
		Proxy: Proxy{
			MaxTimeout:          600 * time.Second, // GP-29
			RefuseAboveMax:      false,             // GP-29
			MaxScope:            ScopeSiteLocal,    // GC-5
			HopLimit:            16,                // FP-53
			ZoneInReplyFrom:     true,              // GP-57
			ClientTypes:         ClientTypesCon,    // FP-31
			AllowLoopback:       false,             // FP-11
			AllowLinkLocal:      false,             // FP-11
			AllowPrivate:        true,              // FP-11
			RequireSecureClient: true,              // FP-87
			ServersPath:         URIPath{"servers"},
			OptionNumbers: OptionNumbers{
				MulticastTimeout:   2,   // GP-1
				LegacyTimeout:      0,   // GP-127
				ReplyFrom:          248, // GP-1
				GroupETag:          24,  // GP-1
				ResponseForwarding: 96,  // GP-127
			},
		},
		Cache: Cache{
			Enabled: true, MaxEntries: 10000, MaxBytes: 32 * MiB, MaxBody: MiB, MaxVariants: 64, // FP-51
			MaxAge: 24 * time.Hour,
		},
		Control: Control{Socket: ControlAuto},
		Metrics: Metrics{Listen: MetricsAuto},
		HTTP:    defaultHTTP(),
		Limits: Limits{
			MaxToken:            8, // FP-83
			Exchanges:           65536,
			Observations:        16384,
			DedupEntries:        16384, // FP-90
			DedupNonIdempotent:  65536, // FP-90
			UpstreamPorts:       64,    // FP-91
			NStart:              1,     // FP-92
			UpstreamQueue:       16,    // FP-35
			ResponseTimeoutCon:  93 * time.Second,
			ResponseTimeout:     30 * time.Second,           // FP-32
			UpstreamConnections: 1024, UpstreamPending: 256, // FP-35
			ReceiveBuffer:   4 * MiB,
			Grace:           5 * time.Second,
			GroupRate:       0, // GP-113
			GroupBurst:      10,
			RequestRate:     0, // FP-37
			RequestBurst:    100,
			PrefixBurst:     100,
			ReuseList:       65536, // GC-24
			ReverseMappings: 16384,
			ReverseLifetime: 24 * time.Hour, // GP-102
		},
		OSCORE: OSCORE{Contexts: "oscore", Store: "oscore.db", MaxLayers: 2}, // OH-2
		Log:    Log{Level: LogInfo, Format: LogConsole, Output: LogStderr},
	}
}

// DefaultClient returns a client entry without name and networks, which allows
// nothing (GP-23, FP-85).
func DefaultClient() Client {
	return Client{
		Dialect:             DialectDraft07, // GP-127
		AllowNoResponseZero: false,          // GC-33
		FollowUp:            true,           // GP-112
		Echo:                EchoOff,        // FP-81
		MaxExchanges:        64,
		MaxObservations:     1024,
		ConOutstanding:      8, // GP-33
		ConQueue:            1024,
		ResponseBurst:       8,
		ResponseType:        ResponseSame, // GP-33
	}
}

// DefaultGroup returns a group without name, URI and interfaces.
func DefaultGroup() Group {
	return Group{
		HopLimit:           0,                                // GC-6
		Loopback:           false,                            // GC-6
		Methods:            []Method{MethodGET, MethodFETCH}, // GC-70
		MaxResponses:       10000,                            // GP-61
		MaxBytes:           64 * MiB,                         // GP-61
		NStart:             1,                                // GC-80
		Queue:              16,                               // GC-80
		Leisure:            5 * time.Second,                  // GC-35
		FireAndForgetRate:  10,                               // GC-80
		FireAndForgetBurst: 10,                               // GC-80
		Rate:               0,                                // GP-113
		Burst:              10,                               // GP-113
		ProbingRate:        1,                                // GC-81
		Repeat:             RepeatOff,                        // GC-40
		MaxRequestPayload:  1024,                             // GC-56
		ProtectedRequests:  false,                            // GC-92
	}
}

// inherit fills in the defaults that are other values of the configuration.
func (c *Config) inherit() {
	for i := range c.Clients {
		if cl := &c.Clients[i]; cl.MaxTimeout == 0 {
			cl.MaxTimeout = c.Proxy.MaxTimeout // GP-29
		}
	}
	for i := range c.Groups {
		g := &c.Groups[i]
		if g.MaxTimeout == 0 {
			g.MaxTimeout = c.Proxy.MaxTimeout // GP-29
		}
		if zone := g.URI.Addr.Zone(); zone != "" && len(g.Interfaces) == 0 {
			g.Interfaces = []string{zone} // GC-7
		}
	}
}
