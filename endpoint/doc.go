// Package endpoint speaks CoAP on datagram transports: one message layer
// (RFC 7252 §4) for every UDP port the proxy has, as a server towards clients
// and as a client towards servers.
//
// An Endpoint owns one packet connection and one reading goroutine. It decodes,
// drops duplicates, acknowledges, retransmits and resets; requests go to a
// RequestHandler, responses to a ResponseHandler. Everything runs on the
// reading goroutine until it leaves by another packet connection, and each
// batch of datagrams read ends with one flush of what it caused.
//
// Client is the client role above a growing pool of such endpoints: the leg
// that carries a request to one server.
package endpoint
