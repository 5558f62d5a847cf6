package wire

import "errors"

// Block is the value of a Block1, Block2, Q-Block1 or Q-Block2 option (RFC 7959
// §2.2).
type Block struct {
	Num  uint32 // block number, 0 to MaxBlockNum
	More bool   // further blocks follow
	SZX  uint8  // size exponent, 0 to 6: 16 to 1024 bytes
}

// MaxBlockNum is the largest block number that an option can carry.
const MaxBlockNum = 1<<20 - 1

var (
	errBlockLen = errors.New("block option longer than three bytes")
	errBlockSZX = errors.New("block size exponent 7 is reserved")
)

// ParseBlock reads an option value. Size exponent 7 is an error: it is reserved
// over UDP (RFC 7959 §2.2), and BERT over TCP (RFC 8323 §6) has its own reader.
func ParseBlock(value []byte) (Block, error) {
	if len(value) > 3 {
		return Block{}, errBlockLen
	}
	v, _ := Uint(value)
	if v&7 == 7 {
		return Block{}, errBlockSZX
	}
	return Block{Num: v >> 4, More: v&8 != 0, SZX: uint8(v & 7)}, nil
}

// Append appends the option value. Num must be at most MaxBlockNum and SZX at
// most 6; higher bits are cut off.
func (b Block) Append(buf []byte) []byte {
	v := b.Num&MaxBlockNum<<4 | uint32(b.SZX&7)
	if b.More {
		v |= 8
	}
	return AppendUint(buf, v)
}

// Size returns the block size in bytes.
func (b Block) Size() int { return 16 << (b.SZX & 7) }

// Offset returns the position of the block in the body, in bytes.
func (b Block) Offset() int { return int(b.Num) * b.Size() }
