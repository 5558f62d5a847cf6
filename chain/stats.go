package chain

import "sync/atomic"

// Stats counts what happens with one next proxy.
type Stats struct {
	Up        atomic.Int64  `metric:"up" help:"Addresses of the next proxy that can be reached."`
	Requests  atomic.Uint64 `metric:"requests_total" help:"Requests for the next proxy."`
	Responses atomic.Uint64 `metric:"responses_total" help:"Responses from the next proxy that were passed on."`
	Refused   atomic.Uint64 `metric:"requests_refused_total" help:"Requests refused at once because no address of the next proxy could be reached."`
	Downs     atomic.Uint64 `metric:"downs_total" help:"Times that an address of the next proxy stopped being reachable."`
	Failovers atomic.Uint64 `metric:"failovers_total" help:"Requests sent again to the other address of the next proxy."`
	TooShort  atomic.Uint64 `metric:"timeouts_refused_total" help:"Group requests that the next proxy refused because of their timeout (5.05, GP-97)."`
	Repeats   atomic.Uint64 `metric:"timeouts_raised_total" help:"Group requests repeated with a longer timeout that the next proxy asked for (GP-97)."`
	Stopped   atomic.Uint64 `metric:"early_stops_total" help:"Group requests stopped early at the next proxy (GP-103)."`

	// What a next proxy does that it should not.
	Unnamed   atomic.Uint64 `metric:"responses_unnamed_total" help:"Responses to group requests that do not say which server they are from: is it a proxy that knows Multicast-Timeout?"`
	Malformed atomic.Uint64 `metric:"replyfrom_malformed_total" help:"Responses with a malformed Reply-From, which was passed on (GP-10)."`
	Nonsense  atomic.Uint64 `metric:"responses_nonsense_total" help:"Refusals of a timeout that contradict themselves."`
	Excess    atomic.Uint64 `metric:"responses_excess_total" help:"Responses after the one that ended the exchange, and errors in the middle of one."`
	Late      atomic.Uint64 `metric:"responses_late_total" help:"Responses that came after the timeout (GP-100)."`
	Stray     atomic.Uint64 `metric:"responses_stray_total" help:"Responses that no request waits for any more: long after the timeout, after an Early Stop, or second ones to one request."`
	Dropped   atomic.Uint64 `metric:"responses_dropped_total" help:"Responses dropped because too many came at once."`
}
