// Package blockwise joins and cuts bodies that do not fit one message
// (RFC 7959). Block options belong to one leg each, so everything between the
// legs sees whole bodies (FP-72).
//
// Downstream is the layer towards clients, Upstream the one towards a single
// server. Continuation is the layer above the group leg: it completes the
// responses of servers that send their body in blocks (GC-54, GC-55).
package blockwise
