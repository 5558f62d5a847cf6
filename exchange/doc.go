// Package exchange is the vocabulary of the proxy: one Request in, many
// Responses out, handled by Handlers around Handlers and delivered to Sinks.
//
// It knows no sockets and no configuration. Fronts (CoAP, HTTP) and legs
// (unicast, group, next hop) meet only here and never know each other.
//
// # The contract of an exchange
//
// A Handler starts an exchange and returns; it never blocks. Responses are
// pushed to the Sink as they arrive, on whatever goroutine received them.
//
//   - Calls on one Sink are serialised. After any number of Respond calls,
//     End is called exactly once, always, also after a cancellation, and
//     nothing is called after it. End may come before Exchange returns.
//   - No Sink is called while its caller holds a lock.
//   - Cancel may be called at any time, from any goroutine, from inside
//     Respond too, any number of times; after End it does nothing.
//   - Request and Response are borrowed: they and the bytes they refer to are
//     valid during the call and may alias a receive buffer. Who keeps one
//     clones it; a request that is there only to be made once more, if it ever
//     is, is Kept. A layer may change the fields of a Request (never the bytes
//     they refer to) before it passes it on; a Response is never changed, a
//     layer that wants another one passes on a copy of the struct.
//   - Who makes datagrams leave flushes: a batch of received datagrams ends
//     with one Engine.Flush, and so does a run of due deadlines. Any other
//     goroutine that calls Exchange or Cancel calls Engine.Flush after it.
package exchange
