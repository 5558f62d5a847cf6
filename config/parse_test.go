package config_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/stretchr/testify/require"

	"coapproxy/config"
)

// same compares configurations without regard to where they were written.
func same(t *testing.T, want, got *config.Config) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(config.Config{}), cmpopts.EquateEmpty(),
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Fatalf("configuration differs (-want +got):\n%s", diff)
	}
}

func TestParseEmpty(t *testing.T) {
	for _, text := range []string{"", "\n", "# nothing\n", "---\n", "{}", "null", "\xef\xbb\xbf",
		"listen:\nclients:\ngroups:\nnames:\nproxy:\nlimits:\nlog:\n",
		"credentials:\nroutes: []\nnext_hop: []\nmetrics: ~\n",
		"proxy:\n  max_timeout:\n  option_numbers:\n"} {
		c, err := parse(text)
		require.NoError(t, err, "%q", text)
		same(t, config.Default(), c)
	}
}

// The defaults that rules name, one by one, so that none changes by accident.
func TestDefaults(t *testing.T) {
	c := config.Default()
	require.Equal(t, "[coap://127.0.0.1:5683 coap://[::1]:5683]", cmpString(c.Listen)) // FP-85
	require.Empty(t, c.Clients)                                                        // GP-23
	require.Empty(t, c.Groups)                                                         // GP-22
	require.Equal(t, config.Proxy{
		MaxTimeout:          600 * time.Second, // GP-29
		MaxScope:            "site-local",      // GC-5
		RequireSecureClient: true,              // FP-87
		HopLimit:            16,                // FP-53
		ZoneInReplyFrom:     true,              // GP-57
		ClientTypes:         "con",             // FP-31
		AllowPrivate:        true,              // FP-11
		ServersPath:         config.URIPath{"servers"},
		OptionNumbers: config.OptionNumbers{
			MulticastTimeout: 2, ReplyFrom: 248, GroupETag: 24, // GP-1
			ResponseForwarding: 96, // GP-127
		},
	}, c.Proxy)
	require.Equal(t, 8, c.Limits.MaxToken)                        // FP-83
	require.Equal(t, 1, c.Limits.NStart)                          // FP-92, FP-35
	require.Equal(t, 93*time.Second, c.Limits.ResponseTimeoutCon) // FP-32
	require.Equal(t, 30*time.Second, c.Limits.ResponseTimeout)    // FP-32
	require.Equal(t, config.Bytes(4<<20), c.Limits.ReceiveBuffer)
	require.Zero(t, c.Limits.GroupRate)         // GP-113
	require.Zero(t, c.Limits.RequestRate)       // FP-37
	require.Equal(t, 65536, c.Limits.ReuseList) // GC-24
	require.Equal(t, config.Client{
		Dialect: "draft-07", FollowUp: true, Echo: "off", MaxExchanges: 64, MaxObservations: 1024, // GP-127, GP-112, FP-81
		ConOutstanding: 8, ConQueue: 1024, ResponseType: "same", // GP-33
		ResponseBurst: 8, // GC-84
	}, config.DefaultClient())
	require.Equal(t, config.Group{
		Methods:      []config.Method{"GET", "FETCH"}, // GC-70
		MaxResponses: 10000, MaxBytes: 64 << 20,       // GP-61
		NStart: 1, Queue: 16, FireAndForgetRate: 10, FireAndForgetBurst: 10, Rate: 0, Burst: 10, // GC-80, GP-113
		Leisure:           5 * time.Second, // GC-35
		ProbingRate:       1,               // GC-81
		Repeat:            "off",           // GC-40
		MaxRequestPayload: 1024,            // GC-56
	}, config.DefaultGroup())
}

func TestParse(t *testing.T) {
	c, err := parse(`
listen: ["coap://0.0.0.0:0", "coap://0.0.0.0:0", "coap://[fe80::1%eth0]/", "COAP://[fe80::2%25eth0]:61616"]
clients:
- name: dashboard
  networks: [192.0.2.0/24, 2001:db8::7]
  dialect: legacy
  preset_timeout: 20
  groups: [lights, "site"]
  methods: [GET]
  max_timeout: 1m30s
  allow_no_response_zero: true
  forward:
  - coap://Device.example
  - coap://device.example:*
  - coap://10.0.0.0/8
  - coap://[2001:db8::]/32:61616
  - coap://192.0.2.9:5700
  - coap://[2001:db8::9]
  - coap://*:*
  follow_up: false
  echo: off
  max_exchanges: 2
  max_observations: 3
  con_outstanding: 3
  con_queue: 0
  response_rate: 2.5
  response_burst: 3
  response_type: non
- name: all
  networks: [198.51.100.1]
  groups: "*"
groups:
- name: lights
  uri: coap://Lights.Example:5700
  interfaces: [eth0, lo]
  hop_limit: 3
  loopback: true
  methods: [PUT, iPATCH]
  max_timeout: 30s
  max_responses: 5
  max_bytes: 1MiB
  nstart: 2
  queue: 0
  leisure: 0
  fire_and_forget_rate: 0.5
  fire_and_forget_burst: 1
  rate: 5
  burst: 6
  probing_rate: 0
  repeat: same-mid
  allowed_sources: [192.0.2.0/24]
  max_request_payload: 64
  protected_requests: true
- name: site
  uri: coap://[ff02::fd%eth0]
names:
  LIGHTS.example: [ff05::fd, 239.255.0.7]
proxy:
  max_timeout: 120
  own_names: [gw.example, "2001:db8::1"]
  identifier: gw1
limits:
  nstart_targets:
  - {target: "Device.example", nstart: 4}
  - {target: "[2001:db8::9]:61616"}
  group_rate: 0.5
log: {level: debug, format: json, output: stdout}
`)
	require.NoError(t, err)

	want := config.Default()
	eth0 := netip.MustParseAddrPort
	want.Listen = []config.Listener{
		{Scheme: "coap", Addr: eth0("0.0.0.0:0")},
		{Scheme: "coap", Addr: eth0("0.0.0.0:0")},
		{Scheme: "coap", Addr: eth0("[fe80::1%eth0]:5683")},
		{Scheme: "coap", Addr: eth0("[fe80::2%eth0]:61616")},
	}
	all := config.DefaultClient()
	all.Name = "all"
	all.Networks = []netip.Prefix{netip.MustParsePrefix("198.51.100.1/32")}
	all.Groups = config.GroupNames{"*"}
	all.MaxTimeout = 120 * time.Second // the proxy's, GP-29
	want.Clients = []config.Client{{
		Name:                "dashboard",
		Networks:            []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::7/128")},
		Dialect:             config.DialectLegacy,
		PresetTimeout:       20 * time.Second,
		Groups:              config.GroupNames{"lights", "site"},
		Methods:             []config.Method{config.MethodGET},
		MaxTimeout:          90 * time.Second,
		AllowNoResponseZero: true,
		Forward: []config.Target{
			{Scheme: "coap", Host: "device.example", Port: 5683},
			{Scheme: "coap", Host: "device.example", AnyPort: true},
			{Scheme: "coap", Network: netip.MustParsePrefix("10.0.0.0/8"), Port: 5683},
			{Scheme: "coap", Network: netip.MustParsePrefix("2001:db8::/32"), Port: 61616},
			{Scheme: "coap", Network: netip.MustParsePrefix("192.0.2.9/32"), Port: 5700},
			{Scheme: "coap", Network: netip.MustParsePrefix("2001:db8::9/128"), Port: 5683},
			{Scheme: "coap", Any: true, AnyPort: true},
		},
		FollowUp:        false,
		Echo:            config.EchoOff,
		MaxExchanges:    2,
		MaxObservations: 3,
		ConOutstanding:  3,
		ConQueue:        0,
		ResponseRate:    2.5,
		ResponseBurst:   3,
		ResponseType:    config.ResponseNon,
	}, all}
	site := config.DefaultGroup()
	site.Name = "site"
	site.URI = config.GroupURI{HostPort: config.HostPort{Addr: netip.MustParseAddr("ff02::fd%eth0"), Port: 5683}}
	site.Interfaces = []string{"eth0"} // GC-7
	site.MaxTimeout = 120 * time.Second
	want.Groups = []config.Group{{
		Name:               "lights",
		URI:                config.GroupURI{HostPort: config.HostPort{Host: "lights.example", Port: 5700}},
		Interfaces:         []string{"eth0", "lo"},
		HopLimit:           3,
		Loopback:           true,
		Methods:            []config.Method{config.MethodPUT, config.MethodIPATCH},
		MaxTimeout:         30 * time.Second,
		MaxResponses:       5,
		MaxBytes:           config.MiB,
		NStart:             2,
		FireAndForgetRate:  0.5,
		FireAndForgetBurst: 1, Rate: 5, Burst: 6,
		Repeat:            config.RepeatSameMID,
		AllowedSources:    []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
		MaxRequestPayload: 64,
		ProtectedRequests: true,
	}, site}
	want.Names = map[string][]netip.Addr{"lights.example": {netip.MustParseAddr("ff05::fd"), netip.MustParseAddr("239.255.0.7")}}
	want.Proxy.MaxTimeout = 120 * time.Second
	want.Proxy.OwnNames = []string{"gw.example", "2001:db8::1"}
	want.Proxy.Identifier = "gw1"
	want.Limits.NStartTargets = []config.NStartTarget{
		{Target: config.HostPort{Host: "device.example", Port: 5683}, NStart: 4},
		{Target: config.HostPort{Addr: netip.MustParseAddr("2001:db8::9"), Port: 61616}, NStart: 1},
	}
	want.Limits.GroupRate = 0.5
	want.Log = config.Log{Level: config.LogDebug, Format: config.LogJSON, Output: config.LogStdout}
	same(t, want, c)

	require.True(t, c.Clients[1].Groups.All())
	require.False(t, c.Clients[0].Groups.All())
	require.NoError(t, c.Validate(config.WithInterfaces(nil)), "a parsed configuration stays valid")
}

// What "*" in a list means is what "*" alone means.
func TestParseAllGroups(t *testing.T) {
	c, err := parse(client + "  groups: [\"*\"]\n")
	require.NoError(t, err)
	require.True(t, c.Clients[0].Groups.All())
}

// A wildcard of one family says nothing about the other, and a port is taken on
// one address only.
func TestParseListenersApart(t *testing.T) {
	_, err := parse("listen: [\"coap://0.0.0.0\", \"coap://[::]\", \"coap://[::1]:5700\", \"coap://127.0.0.1:5700\", \"coap://127.0.0.2:5700\"]\n")
	require.NoError(t, err)
}

func TestInterfacesNotLookedUp(t *testing.T) {
	text := []byte("groups:\n- name: g\n  uri: coap://224.0.1.187\n  interfaces: [nosuch0]\n")
	_, err := config.Parse("c.yaml", text, config.WithInterfaces(nil))
	require.NoError(t, err)
	_, err = config.Parse("c.yaml", text)
	require.EqualError(t, err, "c.yaml:4: groups[0].interfaces[0]: this host has no interface nosuch0; write one that `ip link` lists")
}

// GC-6
func TestHopLimitFor(t *testing.T) {
	tests := []struct {
		addr       string
		configured int
		want       int
	}{
		{"224.0.0.251", 0, 1},
		{"224.0.0.251", 9, 1},
		{"224.0.1.187", 0, 1},
		{"224.0.1.187", 9, 9},
		{"ff01::fd", 9, 1},
		{"ff02::fd", 0, 1},
		{"ff02::fd%eth0", 9, 1},
		{"ff03::fd", 0, 16},
		{"ff05::fd", 0, 16},
		{"ff05::fd", 9, 9},
	}
	for _, tt := range tests {
		g := config.Group{HopLimit: tt.configured}
		require.Equal(t, tt.want, g.HopLimitFor(netip.MustParseAddr(tt.addr)), "%s, %d", tt.addr, tt.configured)
	}
}

// GC-1
func TestScopeValue(t *testing.T) {
	for scope, want := range map[config.Scope]uint8{
		"interface-local": 1, "link-local": 2, "realm-local": 3, "admin-local": 4, "site-local": 5,
		"organization-local": 8, "global": 14, "": 0,
	} {
		require.Equal(t, want, scope.Value(), scope)
	}
}
