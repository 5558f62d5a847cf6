package multicast

import (
	"sync/atomic"

	"coapproxy/exchange"
)

// Stats counts what happens on the group leg.
type Stats struct {
	Latency             exchange.Histogram `metric:"response_latency_seconds" help:"Time from a group request to each of its responses."`
	Requests            atomic.Uint64      `metric:"requests_total" help:"Group requests multicast, once per request whatever the number of interfaces."`
	Shared              atomic.Uint64      `metric:"requests_shared_total" help:"Client requests that shared another one's multicast (GC-82)."`
	Repeats             atomic.Uint64      `metric:"requests_repeated_total" help:"Group requests multicast a second time (GC-40)."`
	SendFailed          atomic.Uint64      `metric:"send_failed_total" help:"Datagrams to a group that could not be queued for sending."`
	Responses           atomic.Uint64      `metric:"responses_total" help:"Responses received for running exchanges."`
	Late                atomic.Uint64      `metric:"responses_late_total" help:"Responses received after the timeout (GP-59)."`
	Unknown             atomic.Uint64      `metric:"responses_unknown_total" help:"Responses whose Token belongs to no exchange."`
	Foreign             atomic.Uint64      `metric:"responses_foreign_total" help:"Responses from a source the group does not allow (GC-25)."`
	Excess              atomic.Uint64      `metric:"responses_excess_total" help:"Responses beyond the limits of an exchange (GP-61)."`
	Queued              atomic.Uint64      `metric:"requests_queued_total" help:"Group requests that waited for their turn (GC-80)."`
	Displaced           atomic.Uint64      `metric:"requests_displaced_total" help:"Group requests that gave way in the queue to one of a client with fewer."`
	QueueFull           atomic.Uint64      `metric:"requests_refused_total" help:"Group requests refused because the queue was full."`
	Limited             atomic.Uint64      `metric:"requests_limited_total" help:"Group requests refused by a rate: fire-and-forget (GC-80) or probing (GC-81)."`
	Observations        atomic.Int64       `metric:"observations" help:"Observations of groups."`
	ObservationsRefused atomic.Uint64      `metric:"observations_refused_total" help:"Registrations with a group sent as plain requests because there were too many observations."`
	ObservationsRenewed atomic.Uint64      `metric:"observations_renewed_total" help:"Registrations multicast again because a member had sent nothing for longer than Max-Age."`
	NotificationsOld    atomic.Uint64      `metric:"notifications_old_total" help:"Notifications dropped because newer ones of the same server had overtaken them."`
	MembersLost         atomic.Uint64      `metric:"observed_members_lost_total" help:"Observed members that did not answer to a registration anew."`
	Rotations           atomic.Uint64      `metric:"port_rotations_total" help:"Source ports replaced because too many Tokens waited for reuse (GC-24)."`
}
