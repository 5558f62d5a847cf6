package wire

import (
	"errors"
	"math"
	"unicode/utf8"
)

// The subset of CBOR (RFC 8949) that CRIs and address options are made of. The
// reader accepts definite lengths only, as HREF §5.1 asks; nothing in it
// recurses or allocates by a length that the data does not hold.

// CBOR major types.
const (
	cborUint   = 0
	cborNegint = 1
	cborBytes  = 2
	cborText   = 3
	cborArray  = 4
	cborTag    = 6
	cborSimple = 7
)

// Simple values, as arguments of major type 7.
const (
	simpleFalse = 20
	simpleTrue  = 21
	simpleNull  = 22
)

var (
	errCBORTruncated = errors.New("CBOR item truncated")
	errCBORForm      = errors.New("CBOR item of indefinite length or reserved form")
	errCBORType      = errors.New("CBOR item of an unexpected type")
	errCBORTrailing  = errors.New("bytes after the last CBOR item")
	errCBORUTF8      = errors.New("CBOR text is not UTF-8")
)

// appendCBORHead appends the initial bytes of an item in their shortest form.
func appendCBORHead(buf []byte, major byte, arg uint64) []byte {
	major <<= 5
	switch {
	case arg < 24:
		return append(buf, major|byte(arg))
	case arg <= math.MaxUint8:
		return append(buf, major|24, byte(arg))
	case arg <= math.MaxUint16:
		return append(buf, major|25, byte(arg>>8), byte(arg))
	case arg <= math.MaxUint32:
		return append(buf, major|26, byte(arg>>24), byte(arg>>16), byte(arg>>8), byte(arg))
	}
	return append(buf, major|27, byte(arg>>56), byte(arg>>48), byte(arg>>40), byte(arg>>32),
		byte(arg>>24), byte(arg>>16), byte(arg>>8), byte(arg))
}

func appendCBORText(buf []byte, s string) []byte {
	return append(appendCBORHead(buf, cborText, uint64(len(s))), s...)
}

// cborReader reads items one after the other.
type cborReader struct {
	data []byte // what has not been read
}

// peek returns the initial byte of the next item, or an error at the end.
func (r *cborReader) peek() (byte, error) {
	if len(r.data) == 0 {
		return 0, errCBORTruncated
	}
	return r.data[0], nil
}

// nextIs reports whether the next item is of the given major type.
func (r *cborReader) nextIs(major byte) bool {
	return len(r.data) > 0 && r.data[0]>>5 == major
}

// simple consumes the next item if it is the given simple value.
func (r *cborReader) simple(value byte) bool {
	if len(r.data) == 0 || r.data[0] != cborSimple<<5|value {
		return false
	}
	r.data = r.data[1:]
	return true
}

// head reads major type and argument of the next item.
func (r *cborReader) head() (major byte, arg uint64, err error) {
	initial, err := r.peek()
	if err != nil {
		return 0, 0, err
	}
	major, info := initial>>5, initial&0x1f
	if info < 24 {
		r.data = r.data[1:]
		return major, uint64(info), nil
	}
	if info > 27 {
		return 0, 0, errCBORForm
	}
	n := 1 << (info - 24)
	if len(r.data) < 1+n {
		return 0, 0, errCBORTruncated
	}
	for _, b := range r.data[1 : 1+n] {
		arg = arg<<8 | uint64(b)
	}
	r.data = r.data[1+n:]
	return major, arg, nil
}

// expect reads the head of an item that must be of the given major type.
func (r *cborReader) expect(want byte) (uint64, error) {
	major, arg, err := r.head()
	if err != nil {
		return 0, err
	}
	if major != want {
		return 0, errCBORType
	}
	return arg, nil
}

// array reads the head of an array and returns the number of its elements,
// which is never more than the number of bytes left.
func (r *cborReader) array() (int, error) {
	n, err := r.expect(cborArray)
	if err != nil {
		return 0, err
	}
	if n > uint64(len(r.data)) {
		return 0, errCBORTruncated
	}
	return int(n), nil
}

// str reads a byte or text string; the result aliases the data.
func (r *cborReader) str(major byte) ([]byte, error) {
	n, err := r.expect(major)
	if err != nil {
		return nil, err
	}
	if n > uint64(len(r.data)) {
		return nil, errCBORTruncated
	}
	value := r.data[:n:n]
	r.data = r.data[n:]
	return value, nil
}

func (r *cborReader) text() (string, error) {
	value, err := r.str(cborText)
	if err != nil {
		return "", err
	}
	if !utf8.Valid(value) {
		return "", errCBORUTF8
	}
	return string(value), nil
}

// end checks that everything has been read.
func (r *cborReader) end() error {
	if len(r.data) > 0 {
		return errCBORTrailing
	}
	return nil
}
