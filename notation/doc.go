// Package notation writes messages down for people: options in words, payloads by
// their Content-Format, JSON laid out, CBOR in diagnostic notation (RFC 8949 §8).
//
// Whatever a message has in it, what comes out is made of printable characters
// alone: a terminal obeys none of it.
package notation
