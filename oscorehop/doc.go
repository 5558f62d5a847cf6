// Package oscorehop is OSCORE (RFC 8613), one layer at a time: Security
// Contexts, protecting and verifying requests and responses, replay windows,
// AEAD usage limits, and Sender Sequence Numbers that survive a crash.
//
// A sender calls [Context.ProtectRequest] and keeps the returned [Requester],
// which verifies every response to that request. A recipient reads the option
// with [RequestOption], finds the context with [Namespace.Find], calls
// [Context.UnprotectRequest] and keeps the returned [Responder], which protects
// every response. Nested layers are the same calls again on the result. Which
// options go inside a layer is decided by the [Classes] that the caller passes.
//
// Nothing here opens sockets, and nothing blocks except what says so: opening and
// closing contexts and their store. Rules such as OC-20 and OH-41 are in docs/rules.
package oscorehop
