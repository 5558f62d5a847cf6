package oscorehop

// What OSCORE writes in CBOR (RFC 8949) are three fixed arrays of short strings
// and small numbers; it reads none.

// CBOR major types, and the simple value null.
const (
	cborUint  = 0
	cborBytes = 2
	cborText  = 3
	cborArray = 4
	cborNull  = 7<<5 | 22
)

// appendHead appends the shortest head of an item; arg is below 65536.
func appendHead(buf []byte, major byte, arg int) []byte {
	major <<= 5
	switch {
	case arg < 24:
		return append(buf, major|byte(arg))
	case arg < 1<<8:
		return append(buf, major|24, byte(arg))
	}
	return append(buf, major|25, byte(arg>>8), byte(arg))
}

func appendBytes(buf, value []byte) []byte {
	return append(appendHead(buf, cborBytes, len(value)), value...)
}
