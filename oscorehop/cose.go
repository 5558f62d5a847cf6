package oscorehop

import (
	"crypto/subtle"
	"encoding/binary"
)

// maxPartialIV is the length in bytes of the longest Partial IV (RFC 8613 §5).
const maxPartialIV = 5

// maxSequence is the highest Sender Sequence Number (OH-111).
const maxSequence = 1<<40 - 1

// partialIV encodes a Sender Sequence Number in its shortest form, in which zero
// is one byte (OC-15).
func partialIV(sequence uint64) []byte {
	buf := binary.BigEndian.AppendUint64(nil, sequence)
	for len(buf) > 1 && buf[0] == 0 {
		buf = buf[1:]
	}
	return buf
}

// sequenceOf decodes a Partial IV.
func sequenceOf(partialIV []byte) uint64 {
	var n uint64
	for _, b := range partialIV {
		n = n<<8 | uint64(b)
	}
	return n
}

// nonce builds the AEAD nonce for a Partial IV of the endpoint whose Sender ID
// is id (OC-11).
func nonce(iv, id, partialIV []byte) []byte {
	n := make([]byte, len(iv))
	n[0] = byte(len(id))
	copy(n[len(n)-maxPartialIV-len(id):], id)
	copy(n[len(n)-len(partialIV):], partialIV)
	subtle.XORBytes(n, n, iv)
	return n
}

// additionalData is the Enc_structure of every message that belongs to the
// request with the given kid and Partial IV (OC-12). There are no Class I
// options.
func additionalData(a Algorithm, requestKID, requestPartialIV []byte) []byte {
	external := make([]byte, 0, 32)
	external = appendHead(external, cborArray, 5)
	external = appendHead(external, cborUint, 1) // oscore_version
	external = appendHead(external, cborArray, 1)
	external = appendHead(external, cborUint, int(a))
	external = appendBytes(external, requestKID)
	external = appendBytes(external, requestPartialIV)
	external = appendBytes(external, nil)

	const kind = "Encrypt0"
	data := make([]byte, 0, len(external)+16)
	data = appendHead(data, cborArray, 3)
	data = append(appendHead(data, cborText, len(kind)), kind...)
	data = appendBytes(data, nil) // OC-13: nothing in the protected header
	return appendBytes(data, external)
}
