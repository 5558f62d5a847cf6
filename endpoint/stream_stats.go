package endpoint

import "sync/atomic"

// StreamStats counts what happens on connections over reliable transports. One
// StreamStats may serve a server and a client.
type StreamStats struct {
	Open                 atomic.Int64  `metric:"connections_open" help:"Connections over TCP, TLS and WebSocket that are open, handshakes included."`
	Accepted             atomic.Uint64 `metric:"connections_accepted_total" help:"Connections accepted."`
	Refused              atomic.Uint64 `metric:"connections_refused_total" help:"Connections closed at once because a limit was reached: in total, of one peer, or of handshakes."`
	HandshakesFailed     atomic.Uint64 `metric:"connection_handshakes_failed_total" help:"TLS or WebSocket handshakes that failed."`
	HandshakeTimeouts    atomic.Uint64 `metric:"connection_handshake_timeouts_total" help:"Connections closed because the peer's CSM did not arrive in time."`
	Dialled              atomic.Uint64 `metric:"connections_dialled_total" help:"Connections opened to servers."`
	DialsFailed          atomic.Uint64 `metric:"connections_dial_failed_total" help:"Connections to servers that could not be opened."`
	Lost                 atomic.Uint64 `metric:"connections_lost_total" help:"Connections to servers that ended while requests were waiting."`
	Evicted              atomic.Uint64 `metric:"connections_evicted_total" help:"Unused connections to servers closed to make room for others."`
	Received             atomic.Uint64 `metric:"connection_messages_received_total" help:"Messages received over connections."`
	Sent                 atomic.Uint64 `metric:"connection_messages_sent_total" help:"Messages queued for sending over connections."`
	Malformed            atomic.Uint64 `metric:"connection_messages_malformed_total" help:"Messages with a format error; each aborts its connection."`
	Ignored              atomic.Uint64 `metric:"connection_messages_ignored_total" help:"Responses that match no request, and unknown signaling messages."`
	RequestsRefused      atomic.Uint64 `metric:"connection_requests_refused_total" help:"Requests refused because too many of the connection were unanswered."`
	ResponsesTooBig      atomic.Uint64 `metric:"connection_responses_too_big_total" help:"Responses larger than the peer's Max-Message-Size."`
	QueueFull            atomic.Uint64 `metric:"connection_queue_full_total" help:"Connections ended because the peer read too slowly."`
	PeersSilent          atomic.Uint64 `metric:"connection_peers_silent_total" help:"Connections ended because the peer did not answer a Ping."`
	PingsSent            atomic.Uint64 `metric:"connection_pings_sent_total" help:"Ping messages sent."`
	PingsReceived        atomic.Uint64 `metric:"connection_pings_received_total" help:"Ping messages received."`
	ReleasesReceived     atomic.Uint64 `metric:"connection_releases_received_total" help:"Release messages received."`
	AbortsSent           atomic.Uint64 `metric:"connection_aborts_sent_total" help:"Connections aborted."`
	AbortsReceived       atomic.Uint64 `metric:"connection_aborts_received_total" help:"Connections aborted by the peer."`
	Observations         atomic.Int64  `metric:"connection_observations" help:"Observations at servers over connections."`
	ObservationsRefused  atomic.Uint64 `metric:"connection_observations_refused_total" help:"Observations not begun because there were too many; their clients got one response."`
	ObservationsRenewed  atomic.Uint64 `metric:"connection_observations_renewed_total" help:"Registrations repeated because nothing new had come for longer than Max-Age, or the connection was lost."`
	NotificationsDropped atomic.Uint64 `metric:"connection_notifications_dropped_total" help:"Notifications dropped because they came faster than they could be handed on."`
	Unopened             atomic.Uint64 `metric:"connection_oscore_unopened_total" help:"Responses dropped because their OSCORE layer could not be removed."`
}
