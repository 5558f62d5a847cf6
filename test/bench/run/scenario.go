package main

import (
	"fmt"
	"slices"
	"strconv"
	"time"
)

// The ways from the clients to the origin or the group.
const (
	direct        = "origin asked directly"
	nullUnbatched = "null relay, unbatched"
	nullBatched   = "null relay, batch 64"
	libcoap       = "libcoap"
	subject       = "coapproxy"
	httpFloor     = "bare HTTP handler"
	// null stands for the better of the two null relays of a round.
	null = "null relay"
)

// A scenario is one kind of load.
type scenario struct {
	name       string // unique
	title      string
	contenders []string
	load       []string // arguments of the load generator beside address, duration and URI
	sameURI    bool     // all clients ask for one resource
	maxAge     int      // of the origin's responses, in seconds
	cache      bool     // coapproxy's cache is on
	warm       int      // client endpoints that have asked before
	http       bool     // the clients speak HTTP/1.1

	// observers register after as many endpoints have asked once; each observes something else if own is set.
	observers int
	own       bool

	members int // of the group; 0 for a unicast scenario
	crowd   int // clients that ask the group all the time; 0: as many as groupFlow needs
	nstart  int // of the group and the origin; 0: high enough not to matter
	targets []target
}

func (s *scenario) has(contender string) bool { return slices.Contains(s.contenders, contender) }

// A target is a bound on a number that the results give; NaN when they do not.
type target struct {
	what   string
	value  func(results) float64
	atMost bool
	bound  float64
}

const (
	mainTitle = "NON, uncached"
	spread    = time.Second // the time within which group members answer
)

// scenarios are those that the options ask for, in the order in which they are measured.
func scenarios(o *options) []*scenario {
	unicast := []string{direct, nullUnbatched, nullBatched, libcoap, subject}
	proxies := unicast[1:]
	cpu := func(s sample) float64 { return s.cpu }
	rate := func(s sample) float64 { return s.rate }
	lost := func(s sample) float64 { return float64(s.lost) }

	all := map[string][]*scenario{
		"non": {{
			name: "non", title: mainTitle, contenders: unicast,
			targets: []target{
				{"CPU per exchange ÷ null relay", ratio("non", cpu, subject, null), true, 1.35},
				{"CPU per exchange ÷ libcoap", ratio("non", cpu, subject, libcoap), true, 0.75},
				{"exchanges/s ÷ libcoap", ratio("non", rate, subject, libcoap), false, 1.3},
				{"RSS in MiB after the load", value("non", func(s sample) float64 { return s.rss }), true, 30},
			},
		}},
		"con": {{
			name: "con", title: "CON, uncached", contenders: unicast, load: []string{"-con"},
			targets: []target{
				{"CPU per exchange ÷ libcoap", ratio("con", cpu, subject, libcoap), true, 0.3},
				{"exchanges/s ÷ libcoap", ratio("con", rate, subject, libcoap), false, 4},
			},
		}},
		"burst": {{
			name: "burst", title: "a burst of 2,048 NON requests at once", contenders: unicast,
			load:    []string{"-once", "-clients", "32", "-window", "64", "-timeout", "2s"},
			targets: []target{{"lost requests", worst("burst", lost), true, 0}},
		}},
		"cache": {{
			name: "cache", title: "NON, from the cache", contenders: unicast, sameURI: true, maxAge: 60,
			cache: true, warm: 1,
			targets: []target{
				{"exchanges/s ÷ direct", ratio("cache", rate, subject, direct), false, 0.7},
				{"requests at the origin, the first one included", worst("cache", func(s sample) float64 { return float64(s.origin) }), true, 1},
			},
		}},
		"crowd": {{
			name: "crowd", title: fmt.Sprintf("%d clients ask a group of 200 members answering within %v, NSTART 32", crowdClients, spread),
			contenders: []string{nullUnbatched, nullBatched, subject}, members: 200, crowd: crowdClients, nstart: 32,
			targets: []target{
				{"added p99 in ms", value("crowd", func(s sample) float64 { return s.p99 }), true, 5},
				{"lost responses", worst("crowd", lost), true, 0},
			},
		}},
		"http": {{
			name: "http", title: "GET over HTTP/1.1, uncached", contenders: []string{httpFloor, subject}, http: true,
			targets: []target{
				{"requests/s ÷ bare HTTP handler", ratio("http", rate, subject, httpFloor), false, 0.75},
				{"CPU per request ÷ bare HTTP handler", ratio("http", cpu, subject, httpFloor), true, 1.35},
				{"lost requests", worst("http", lost), true, 0},
			},
		}, {
			name: "http-group", title: fmt.Sprintf("batches over HTTP/1.1 of a group of 100 members answering within %v", spread),
			contenders: []string{subject}, members: 100, http: true,
			targets: []target{
				{`CPU per response ÷ that over CoAP ("group" with 100 members must be measured too)`,
					across(cpu, measured{"http-group", subject}, measured{groupName(100), subject}), true, 3},
				{"lost responses", worst("http-group", lost), true, 0},
			},
		}},
		"warm": {},
		"observers": {
			observersScenario("observers", fmt.Sprintf("%d idle observers of one resource", idleObservers), false),
			observersScenario("observers-own", fmt.Sprintf("%d idle observers, each of a resource of its own", idleObservers), true),
		},
	}
	for _, n := range []int{3_000, 100_000} {
		name := "warm-" + strconv.Itoa(n)
		sc := &scenario{name: name, title: fmt.Sprintf("NON, uncached, after %d client endpoints", n), contenders: proxies, warm: n}
		if n > 10_000 { // libcoap takes more than an hour for that many
			sc.contenders = []string{nullUnbatched, nullBatched, subject}
		}
		sc.targets = []target{{
			`CPU per exchange ÷ fresh ("non" must be measured too)`, across(cpu, measured{name, subject}, measured{"non", subject}), true, 1.15,
		}}
		if n > 10_000 {
			sc.targets = append(sc.targets, target{
				`bytes of peak RSS per client endpoint ("non" must be measured too)`, growth(measured{name, subject}, measured{"non", subject}, n), true, 1024,
			})
		}
		all["warm"] = append(all["warm"], sc)
	}
	for _, n := range o.members {
		name := groupName(n)
		all["group"] = append(all["group"], &scenario{
			name: name, title: fmt.Sprintf("a group of %d members answering within %v", n, spread), members: n,
			contenders: []string{nullUnbatched, nullBatched, subject},
			targets: []target{
				{"CPU per relayed response ÷ null relay", ratio(name, cpu, subject, null), true, 1.35},
				{"CPU per relayed response ÷ that at 100 members", across(cpu, measured{name, subject}, measured{groupName(100), subject}), true, 1.2},
				{"lost responses", worst(name, lost), true, 0},
				{"responses after T'", worst(name, func(s sample) float64 { return float64(s.late) }), true, 0},
			},
		})
	}

	var chosen []*scenario
	for _, name := range o.only {
		chosen = append(chosen, all[name]...)
	}
	return chosen
}

// crowdClients is how many clients the scenario crowd has.
const crowdClients = 20

func groupName(members int) string { return "group-" + strconv.Itoa(members) }
