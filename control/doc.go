// Package control is the local control interface: HTTP with JSON bodies over a
// Unix socket, for whoever runs the proxy on this host.
//
// The rooms of the proxy do not know it. Package service registers a Resource per thing
// that can be asked or done, under a path such as /v1/cache/entries; a Resource
// returns a value, which becomes the JSON body, or an error, which becomes
// {"error": "..."} with the status of a *StatusError. What is not JSON, a page
// or metrics in a text form, is an http.Handler of its own.
//
// Who may connect is decided twice: by the owner and mode of the socket, and by
// the credentials that the kernel tells of the peer. Everything is bounded: the
// connections, the size of what is sent, the time a request takes.
package control
