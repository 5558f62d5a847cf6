package wire

import "github.com/plgd-dev/go-coap/v3/message/codes"

// NoResponseAll is the No-Response value that asks for no response of any class
// (GC-32).
const NoResponseAll = 26

// Mute reports whether a No-Response asks for no response of any class.
func Mute(value []byte) bool {
	v, ok := Uint(value)
	return ok && v&NoResponseAll == NoResponseAll
}

// Suppressed reports whether a No-Response option with the given value asks that
// a response with this code be left out: bit 2 stands for 2.xx, 8 for 4.xx, 16
// for 5.xx (RFC 7967 §2.1, GC-32).
func Suppressed(noResponse uint32, code codes.Code) bool {
	class := code >> 5
	return class > 0 && noResponse>>(class-1)&1 != 0
}
