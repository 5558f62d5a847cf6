package endpoint

import "sync/atomic"

// DTLSStats counts what happens to DTLS sessions. One DTLSStats may serve several
// connections.
type DTLSStats struct {
	Sessions           atomic.Int64  `metric:"dtls_sessions" help:"DTLS sessions that are established."`
	Handshakes         atomic.Uint64 `metric:"dtls_handshakes_total" help:"DTLS handshakes begun."`
	HandshakesFailed   atomic.Uint64 `metric:"dtls_handshakes_failed_total" help:"DTLS handshakes that failed or took too long."`
	HandshakesRepeated atomic.Uint64 `metric:"dtls_handshakes_repeated_total" help:"DTLS handshakes begun anew because the one before took too long and requests still waited."`
	Established        atomic.Uint64 `metric:"dtls_established_total" help:"DTLS sessions established."`
	Refused            atomic.Uint64 `metric:"dtls_refused_total" help:"DTLS handshakes given up because a limit was reached."`
	Evicted            atomic.Uint64 `metric:"dtls_evicted_total" help:"Silent DTLS sessions that gave way to a new one."`
	Idle               atomic.Uint64 `metric:"dtls_idle_total" help:"DTLS sessions ended because nothing was heard for long."`
	Silent             atomic.Uint64 `metric:"dtls_silent_total" help:"DTLS sessions given up because the server did not answer any more, as after its restart."`
	UnknownIdentities  atomic.Uint64 `metric:"dtls_unknown_identities_total" help:"DTLS handshakes with an unknown PSK identity."`
	Dropped            atomic.Uint64 `metric:"dtls_datagrams_dropped_total" help:"Datagrams dropped because a queue was full."`
	Ignored            atomic.Uint64 `metric:"dtls_datagrams_ignored_total" help:"Datagrams that belong to no DTLS session."`
}
