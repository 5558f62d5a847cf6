package httpbridge

import (
	"sync/atomic"

	"coapproxy/exchange"
)

// Stats counts what the HTTP side sees.
type Stats struct {
	Requests        atomic.Uint64                   `metric:"requests_total" help:"HTTP requests received from clients."`
	GroupRequests   atomic.Uint64                   `metric:"group_requests_total" help:"HTTP requests forwarded with a Multicast-Timeout."`
	Running         atomic.Int64                    `metric:"exchanges" help:"Exchanges of HTTP clients running."`
	Parts           atomic.Uint64                   `metric:"parts_total" help:"Group responses written to HTTP clients."`
	Dropped         atomic.Uint64                   `metric:"parts_dropped_total" help:"Group responses dropped because a batch was full."`
	Omitted         atomic.Uint64                   `metric:"parts_omitted_total" help:"Group responses that the form of the document cannot hold."`
	EventStreams    atomic.Int64                    `metric:"event_streams" help:"Streams of server-sent events open."`
	SlowReaders     atomic.Uint64                   `metric:"slow_readers_total" help:"Exchanges ended because the HTTP client did not take its responses."`
	SlowSenders     atomic.Uint64                   `metric:"slow_senders_total" help:"Requests refused because their body did not come in time."`
	Disconnects     atomic.Uint64                   `metric:"disconnects_total" help:"Exchanges whose HTTP client went away before the end."`
	Refused         atomic.Uint64                   `metric:"refused_total" help:"Requests refused before anything was forwarded."`
	Unauthenticated atomic.Uint64                   `metric:"unauthenticated_total" help:"Requests without, or with wrong, credentials."`
	Malformed       atomic.Uint64                   `metric:"malformed_messages_total" help:"HTTP/1 messages refused for their framing."`
	Connections     atomic.Int64                    `metric:"connections" help:"HTTP connections open."`
	RefusedConns    atomic.Uint64                   `metric:"connections_refused_total" help:"HTTP connections closed at once because there were too many."`
	Streams         atomic.Int64                    `metric:"http3_streams" help:"Streams of HTTP/3 open for a request."`
	RefusedStreams  atomic.Uint64                   `metric:"http3_streams_refused_total" help:"Streams of HTTP/3 reset at once because there were too many, of all clients or of one address."`
	Failures        [exchange.Reasons]atomic.Uint64 `metric:"failures_total" help:"Forwarded requests that ended in an error of the proxy's own." label:"reason"`
}
