// Package endpoint speaks CoAP on every transport, as a server towards clients
// and as a client towards servers: with one message layer (RFC 7252 §4) over UDP
// and DTLS, and with connections over TCP, TLS and WebSocket (RFC 8323). Requests
// reach the same RequestHandler whatever they come by.
//
// An Endpoint owns one packet connection and one reading goroutine. It decodes,
// drops duplicates, acknowledges, retransmits and resets; requests go to a
// RequestHandler, responses to a ResponseHandler. Everything runs on the
// reading goroutine until it leaves by another packet connection, and each
// batch of datagrams read ends with one flush of what it caused.
//
// Client is the client role above a growing pool of such endpoints: the leg
// that carries a request to one server.
//
// A DTLSConn is a packet connection whose datagrams travel in sessions, so that
// an Endpoint or a Client over it speaks coaps.
//
// A Stream is one connection, with a goroutine that reads and one that writes.
// StreamServer accepts them, StreamClient is the leg that opens them. Peers do
// not wait for one another: a handshake, a slow reader or a silent peer costs
// its own connection only.
package endpoint
