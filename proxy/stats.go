package proxy

import (
	"sync/atomic"

	"coapproxy/exchange"
)

// Stats counts what the front and the proxying rules see.
type Stats struct {
	Requests              atomic.Uint64                   `metric:"requests_total" help:"Requests received from clients."`
	GroupRequests         atomic.Uint64                   `metric:"group_requests_total" help:"Requests received with a Multicast-Timeout."`
	Responses             atomic.Uint64                   `metric:"responses_total" help:"Responses sent to clients."`
	Relayed               atomic.Uint64                   `metric:"responses_relayed_total" help:"Group responses relayed to clients."`
	Running               atomic.Int64                    `metric:"group_exchanges" help:"Group exchanges running."`
	EarlyStops            atomic.Uint64                   `metric:"early_stops_total" help:"Group exchanges ended by an Early Stop Request."`
	ResetStops            atomic.Uint64                   `metric:"reset_stops_total" help:"Group exchanges ended because the client reset a response or vanished."`
	TokenReuses           atomic.Uint64                   `metric:"token_reuses_total" help:"Group exchanges ended because their Token was used again."`
	Late                  atomic.Uint64                   `metric:"responses_late_total" help:"Responses that could not be sent before the timeout."`
	DeliveryDropped       atomic.Uint64                   `metric:"responses_undelivered_total" help:"Responses dropped because the client's queue was full."`
	Paced                 atomic.Uint64                   `metric:"responses_paced_total" help:"Responses that waited because of the client's response_rate."`
	LayersSilenced        atomic.Uint64                   `metric:"oscore_silenced_total" help:"Protected requests that failed and got no answer, because their source had enough of them."`
	LayersSkipped         atomic.Uint64                   `metric:"oscore_skipped_total" help:"Protected requests dropped unread, because too many forged ones came from their source."`
	Challenges            atomic.Uint64                   `metric:"echo_challenges_total" help:"Requests answered with an Echo challenge, for an address that was not proven."`
	Proven                atomic.Uint64                   `metric:"echo_answers_total" help:"Echo challenges answered: addresses proven."`
	Trimmed               atomic.Uint64                   `metric:"errors_trimmed_total" help:"Errors sent without their text, because they were too long for an unproven address."`
	MappingsEvicted       atomic.Uint64                   `metric:"reverse_mappings_evicted_total" help:"Announced servers forgotten because too many were remembered."`
	PoolExhausted         atomic.Uint64                   `metric:"reverse_pool_exhausted_total" help:"Responses of servers for which no address of the pool was free."`
	Overshoot             exchange.Histogram              `metric:"timeout_overshoot_seconds" help:"How long after its timeout a group exchange ended: up to 8 ms, together with others."`
	Exchanges             [kinds][outcomes]atomic.Uint64  `metric:"exchanges_total" help:"Exchanges that have ended, by kind and outcome." label:"kind,outcome"`
	Failures              [exchange.Reasons]atomic.Uint64 `metric:"failures_total" help:"Requests the proxy answered with an error of its own." label:"reason"`
	Observers             atomic.Int64                    `metric:"observers" help:"Observations of clients, those of groups included."`
	ObserversRefused      atomic.Uint64                   `metric:"observers_refused_total" help:"Registrations answered as plain requests because there were too many observations."`
	ObserversAsked        atomic.Uint64                   `metric:"observers_asked_total" help:"Observers asked early whether they are still there, because places for observations were scarce."`
	ObserversReset        atomic.Uint64                   `metric:"observers_reset_total" help:"Observations ended because the client reset a notification."`
	ObserversLost         atomic.Uint64                   `metric:"observers_lost_total" help:"Observations ended because the client did not acknowledge a notification or is gone."`
	Notifications         atomic.Uint64                   `metric:"notifications_total" help:"Notifications sent to clients."`
	NotificationsReplaced atomic.Uint64                   `metric:"notifications_replaced_total" help:"Notifications not sent because a newer one came before their turn."`
}
