package access

import (
	"net/netip"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// GP-22: no group is configured at all.
func TestGroupsDisabled(t *testing.T) {
	l := &leg{}
	p := New(config(func(c *Config) { c.Groups = nil }), l, NewHeard())
	refused(t, l, try(p, worker, toGroup(allNodes)), exchange.GroupsDisabled)
}

// GP-23: who may reach which group.
func TestGroupPermission(t *testing.T) {
	only := func(names ...string) func(*Config) {
		return func(c *Config) { c.Clients[0].Groups = names }
	}
	for name, tt := range map[string]struct {
		change func(*Config)
		peer   string
		target string
		reason exchange.Reason
		ok     bool
	}{
		"allowed":        {only("nodes"), "192.0.2.10:1", "224.0.1.187:5683", 0, true},
		"unknown client": {only("nodes"), "203.0.113.1:1", "224.0.1.187:5683", exchange.Denied, false},
		"other group":    {only("nodes"), "192.0.2.10:1", "[ff05::fd]:5683", exchange.Denied, false},
		"no group":       {only(), "192.0.2.10:1", "224.0.1.187:5683", exchange.Denied, false},
		"unknown group":  {only("nodes"), "192.0.2.10:1", "239.255.0.1:5683", exchange.Denied, false},
		"other port":     {only("nodes"), "192.0.2.10:1", "224.0.1.187:5685", exchange.Denied, false}, // GC-2
		"all groups":     {func(c *Config) { c.Clients[0].AllGroups = true; c.Clients[0].Groups = nil }, "192.0.2.10:1", "[ff05::fd]:5683", 0, true},
		"all but these":  {func(c *Config) { c.Clients[0].AllGroups = true }, "192.0.2.10:1", "[ff05::fe]:5683", exchange.Denied, false},
		"zone":           {only("lights"), "192.0.2.10:1", "[ff05::fd%eth0]:5683", 0, true}, // GC-2
		"no such name":   {only("nodes", "typo"), "192.0.2.10:1", "224.0.1.187:5683", 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			l := &leg{}
			p := New(config(tt.change), l, NewHeard())
			o := try(p, netip.MustParseAddrPort(tt.peer), toGroup(netip.MustParseAddrPort(tt.target)))
			if !tt.ok {
				refused(t, l, o, tt.reason)
				return
			}
			require.NotEmpty(t, allowed(t, l, o).Target.GroupName)
		})
	}
}

// GC-2: a group is an address and a port, whatever name a request has for it. A
// group that is configured by its name alone is known by it, and by the
// addresses the name is known to stand for.
func TestNamedGroups(t *testing.T) {
	named := config(func(c *Config) {
		c.Groups = append(c.Groups, Group{Name: "halls", Host: "halls.example", Port: 5683,
			Addrs:   []netip.Addr{netip.MustParseAddr("ff05::1234"), lights.Addr()},
			Methods: []codes.Code{codes.POST}, MaxTimeout: time.Minute})
		c.Clients[0].Groups = []string{"nodes", "lights", "halls"}
	})
	request := func(host, addr string, method codes.Code, also ...string) *exchange.Request {
		r := toGroup(netip.MustParseAddrPort(addr))
		r.Target.Host, r.Method = host, method
		for _, a := range also {
			r.Target.Also = append(r.Target.Also, exchange.GroupAddr{Addr: netip.MustParseAddrPort(a)})
		}
		return r
	}
	for name, tt := range map[string]struct {
		r      *exchange.Request
		groups []string // none: denied
	}{
		"by its name":               {request("halls.example", "239.255.0.1:5683", codes.POST), []string{"halls"}},
		"by its name, two groups":   {request("halls.example", "239.255.0.1:5683", codes.POST, "239.255.0.2:5683"), []string{"halls", "halls"}},
		"by a known address":        {request("", "[ff05::1234]:5683", codes.POST), []string{"halls"}},
		"by another name":           {request("other.example", "[ff05::1234]:5683", codes.POST), []string{"halls"}},
		"address of another group":  {request("", lights.String(), codes.PUT), []string{"lights"}},
		"other name, literal group": {request("other.example", lights.String(), codes.GET, allNodes.String()), []string{"lights", "nodes"}},
		"one of two unknown":        {request("other.example", lights.String(), codes.GET, "239.255.0.1:5683"), nil},
		"its name, other port":      {request("halls.example", "239.255.0.1:5685", codes.POST), nil},
		"unknown address":           {request("", "239.255.0.1:5683", codes.POST), nil},
	} {
		t.Run(name, func(t *testing.T) {
			l := &leg{}
			o := try(New(named, l, NewHeard()), worker, tt.r)
			if tt.groups == nil {
				refused(t, l, o, exchange.Denied)
				return
			}
			r := allowed(t, l, o)
			got := []string{r.Target.GroupName}
			for _, a := range r.Target.Also {
				got = append(got, a.Name)
			}
			require.Equal(t, tt.groups, got)
		})
	}
}

// GC-70: methods by group, restricted further by client. GC-92: the method of a
// protected request says nothing; such requests are a permission of their own.
func TestMethods(t *testing.T) {
	protected := message.Option{ID: wire.OSCORE, Value: []byte{9}}
	for name, tt := range map[string]struct {
		change func(*Config)
		r      *exchange.Request
		reason exchange.Reason // 0 (internal): allowed
	}{
		"listed":                  {nil, &exchange.Request{Method: codes.PUT}, 0},
		"not listed":              {nil, &exchange.Request{Method: codes.POST}, exchange.MethodNotAllowed},
		"unknown":                 {nil, &exchange.Request{Method: 0x1f}, exchange.MethodNotAllowed},
		"client may less":         {func(c *Config) { c.Clients[0].Methods = []codes.Code{codes.GET} }, &exchange.Request{Method: codes.PUT}, exchange.MethodNotAllowed},
		"client may more":         {func(c *Config) { c.Clients[0].Methods = []codes.Code{codes.GET, codes.POST} }, &exchange.Request{Method: codes.POST}, exchange.MethodNotAllowed},
		"client may":              {func(c *Config) { c.Clients[0].Methods = []codes.Code{codes.GET} }, &exchange.Request{Method: codes.GET}, 0},
		"protected":               {nil, &exchange.Request{Method: codes.POST, Options: message.Options{protected}}, exchange.Denied},
		"protected GET":           {nil, &exchange.Request{Method: codes.GET, Options: message.Options{protected}}, exchange.Denied},
		"protected and permitted": {func(c *Config) { c.Groups[1].Protected = true }, &exchange.Request{Method: codes.POST, Options: message.Options{protected}}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			c := config()
			if tt.change != nil {
				tt.change(&c)
			}
			l := &leg{}
			tt.r.Target = toGroup(lights).Target
			o := try(New(c, l, NewHeard()), worker, tt.r)
			if tt.reason != 0 {
				refused(t, l, o, tt.reason)
				return
			}
			allowed(t, l, o)
		})
	}
}

// GC-5: the scope of an IPv6 group is bounded; an IPv4 address tells none.
func TestScope(t *testing.T) {
	c := config(func(c *Config) {
		c.Clients[0].AllGroups = true
		for _, a := range []string{"ff02::fd", "ff08::fd", "ff0e::fd", "ff1e::fd", "239.0.0.1"} {
			c.Groups = append(c.Groups, Group{Name: a, Addr: netip.AddrPortFrom(netip.MustParseAddr(a), 5683), Methods: []codes.Code{codes.GET}})
		}
	})
	for addr, ok := range map[string]bool{"[ff02::fd%eth0]:5683": true, "[ff05::fd]:5683": true, "[ff08::fd]:5683": false,
		"[ff0e::fd]:5683": false, "[ff1e::fd]:5683": false, "239.0.0.1:5683": true} {
		l := &leg{}
		o := try(New(c, l, NewHeard()), worker, toGroup(netip.MustParseAddrPort(addr)))
		if ok {
			allowed(t, l, o)
		} else {
			refused(t, l, o, exchange.Denied)
		}
	}
}

// GC-33: a No-Response of 0 asks for more responses than there would be without
// it; whoever may not do so has it removed. GC-32: any other value stays.
func TestNoResponseZero(t *testing.T) {
	etag := message.Option{ID: wire.ETag, Value: []byte{1}}
	tag := message.Option{ID: wire.RequestTag, Value: []byte{2}}
	no := func(value ...byte) message.Option { return message.Option{ID: wire.NoResponse, Value: value} }
	for name, tt := range map[string]struct {
		may      bool
		in, want message.Options
	}{
		"empty":     {false, message.Options{etag, no(), tag}, message.Options{etag, tag}},
		"zero":      {false, message.Options{etag, no(0), tag}, message.Options{etag, tag}},
		"26":        {false, message.Options{etag, no(26)}, message.Options{etag, no(26)}},
		"none":      {false, message.Options{etag}, message.Options{etag}},
		"permitted": {true, message.Options{etag, no()}, message.Options{etag, no()}},
	} {
		t.Run(name, func(t *testing.T) {
			l := &leg{}
			p := New(config(func(c *Config) { c.Clients[0].AllowNoResponseZero = tt.may }), l, NewHeard())
			r := allowed(t, l, try(p, worker, toGroup(allNodes, tt.in...)))
			require.Len(t, r.Options, len(tt.want))
			for i := range tt.want {
				require.Equal(t, tt.want[i].ID, r.Options[i].ID)
				require.Equal(t, append([]byte{}, tt.want[i].Value...), append([]byte{}, r.Options[i].Value...))
			}
		})
	}
}

// GP-29: the smallest of what proxy, client and groups allow.
func TestMaxTimeout(t *testing.T) {
	for name, tt := range map[string]struct {
		proxy, client, nodes, lights time.Duration
		also                         bool
		want                         time.Duration
	}{
		"proxy":       {1, 2, 2, 2, false, 1},
		"client":      {2, 1, 2, 2, false, 1},
		"group":       {2, 2, 1, 2, false, 1},
		"other group": {2, 2, 2, 1, false, 2},
		"further":     {2, 2, 2, 1, true, 1},
	} {
		t.Run(name, func(t *testing.T) {
			p := New(config(func(c *Config) {
				c.MaxTimeout, c.Clients[0].MaxTimeout = tt.proxy, tt.client
				c.Groups[0].MaxTimeout, c.Groups[1].MaxTimeout = tt.nodes, tt.lights
			}), &leg{}, NewHeard())
			r := toGroup(allNodes)
			r.Client = p.Identify(worker, nil)
			if tt.also {
				r.Target.Also = []exchange.GroupAddr{{Addr: lights}}
			}
			require.Equal(t, tt.want, p.MaxTimeout(r))
		})
	}
}
