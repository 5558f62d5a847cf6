// Package httpbridge is the HTTP side towards clients: the cross-proxy of RFC
// 8075 and of section 9 of the group proxy draft (HC rules).
//
// A Front turns an HTTP request into the same exchange.Request that the CoAP
// front makes, and the responses into one HTTP response: that of the server for
// a unicast target, and for a group a batch (multipart/mixed), parts as they
// come, or one merged document. A Listener carries HTTP/1.1, HTTP/2 and HTTP/3
// to it.
//
// The request target is always read raw: routers that clean paths turn "coap://"
// into "coap:/" (HC-5), so no http.ServeMux stands in front of a Front.
//
// Responses are pushed by the goroutines that receive them and pulled by the
// goroutine of the HTTP request; between them is a bounded store per exchange.
package httpbridge
