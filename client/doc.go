// Package client is a CoAP client that takes many responses to one
// request: the client side of group proxying (GP-114 to GP-118), which stock
// CoAP clients lack. It also asks single servers, directly or through a proxy,
// follows observations and puts bodies that come in blocks together.
//
// A Client has one UDP port and one peer, a proxy or a server. Client.Do sends a
// request and yields what comes back:
//
//	for response, err := range c.Do(ctx, &client.Request{...}) {
//		...
//	}
//
// Ending the loop, or ctx, before the exchange has ended tells the peer to stop
// (GP-40). The message layer below is package endpoint; a Client owns its
// goroutines, and Close waits for them.
package client
