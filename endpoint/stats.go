package endpoint

import (
	"sync/atomic"

	"coapproxy/exchange"
)

// Stats counts what happens on the message layer. One Stats may serve several
// endpoints.
type Stats struct {
	Received              atomic.Uint64 `metric:"datagrams_received_total" help:"Datagrams received."`
	Sent                  atomic.Uint64 `metric:"datagrams_sent_total" help:"Datagrams handed to the kernel."`
	SendDropped           atomic.Uint64 `metric:"datagrams_send_dropped_total" help:"Datagrams dropped because the send queue or socket buffer was full."`
	SendFailed            atomic.Uint64 `metric:"datagrams_send_failed_total" help:"Datagrams the kernel refused to send."`
	Undeliverable         atomic.Uint64 `metric:"datagrams_undeliverable_total" help:"Datagrams that came back with an ICMP error."`
	Malformed             atomic.Uint64 `metric:"messages_malformed_total" help:"Messages with a format error."`
	Ignored               atomic.Uint64 `metric:"messages_ignored_total" help:"Datagrams that are no CoAP version 1 message, and messages that match nothing."`
	Duplicates            atomic.Uint64 `metric:"messages_duplicate_total" help:"Messages received again."`
	DedupEvicted          atomic.Uint64 `metric:"dedup_evicted_total" help:"Remembered messages forgotten early because the table was full."`
	Displaced             atomic.Uint64 `metric:"upstream_displaced_total" help:"Requests waiting for a server that gave way to one of a client with fewer."`
	DedupFull             atomic.Uint64 `metric:"dedup_refused_total" help:"Non-idempotent requests refused because the table of remembered ones was full."`
	Retransmissions       atomic.Uint64 `metric:"retransmissions_total" help:"Confirmable messages sent again."`
	Timeouts              atomic.Uint64 `metric:"confirmable_timeouts_total" help:"Confirmable messages never acknowledged."`
	ResetsReceived        atomic.Uint64 `metric:"resets_received_total" help:"Reset messages that matched something sent."`
	ResetsSent            atomic.Uint64 `metric:"resets_sent_total" help:"Reset messages sent."`
	MessageIDWraps        atomic.Uint64 `metric:"message_id_wraps_total" help:"Message ID sequences that wrapped within EXCHANGE_LIFETIME."`
	PortsExhausted        atomic.Uint64 `metric:"client_ports_exhausted_total" help:"Requests refused because every client port had used its Message IDs."`
	Observations          atomic.Int64  `metric:"observations" help:"Observations at servers over UDP and DTLS."`
	ObservationsRefused   atomic.Uint64 `metric:"observations_refused_total" help:"Observations not begun because there were too many; their clients got one response."`
	ObservationsRenewed   atomic.Uint64 `metric:"observations_renewed_total" help:"Registrations repeated because nothing new had come for longer than Max-Age."`
	DeregistrationsUnsent atomic.Uint64 `metric:"upstream_deregistrations_unsent_total" help:"Servers that were not told that an observation has ended, because they were too busy; their next notification is reset."`
	NotificationsOld      atomic.Uint64 `metric:"notifications_old_total" help:"Notifications dropped because newer ones had overtaken them."`
	NotificationsDropped  atomic.Uint64 `metric:"notifications_dropped_total" help:"Notifications dropped because they came faster than they could be handed on."`
	Unopened              atomic.Uint64 `metric:"oscore_unopened_total" help:"Responses dropped because their OSCORE layer could not be removed."`

	Latency exchange.Histogram `metric:"upstream_latency_seconds" help:"Time from a request to a single server over UDP or DTLS to its response."`
}
