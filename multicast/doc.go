// Package multicast is the group leg: it sends a group request over IP
// multicast and pushes every server's response to the sink, for as long as the
// client said it would wait.
//
// It has sockets of its own (GC-13), one per address family, interface and
// hop limit, so that no option of a socket is ever changed between two
// requests and the outgoing interface is never left to chance (GC-7).
package multicast
