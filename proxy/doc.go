// Package proxy holds the rules of proxying: the CoAP front that turns messages
// into requests and responses into messages, and the layers between a front and
// the legs.
//
//	Front ─ Targets ─ (access) ─ Groups ─ (cache) ─ Route ─┬─ group leg
//	                                                       └─ unicast leg
//
// Front talks to clients over CoAP. Targets finds out where a request goes.
// Groups applies what a group request needs before it may reach a cache. Route
// rewrites the options for the next hop and checks what comes back. The legs
// are exchange.Handlers that Route is given.
package proxy
