package wire

import "errors"

// Block is the value of a Block1, Block2, Q-Block1 or Q-Block2 option (RFC 7959
// §2.2).
type Block struct {
	Num  uint32 // block number, 0 to MaxBlockNum
	More bool   // further blocks follow
	SZX  uint8  // size exponent, 0 to 6: 16 to 1024 bytes; BERT
}

// BERT is the size exponent of blocks that hold several of 1024 bytes, over
// reliable transports only (RFC 8323 §6).
const BERT = 7

// MaxBlockNum is the largest block number that an option can carry.
const MaxBlockNum = 1<<20 - 1

var (
	errBlockLen = errors.New("block option longer than three bytes")
	errBlockSZX = errors.New("block size exponent 7 is reserved")
)

// ParseBlock reads an option value. Size exponent 7 is an error: it is reserved
// over UDP (RFC 7959 §2.2); see ParseBERTBlock.
func ParseBlock(value []byte) (Block, error) {
	b, err := ParseBERTBlock(value)
	if err == nil && b.SZX == BERT {
		return Block{}, errBlockSZX
	}
	return b, err
}

// ParseBERTBlock reads an option value that came over a reliable transport, where
// BERT may be in use (RFC 8323 §6).
func ParseBERTBlock(value []byte) (Block, error) {
	if len(value) > 3 {
		return Block{}, errBlockLen
	}
	v, _ := Uint(value)
	return Block{Num: v >> 4, More: v&8 != 0, SZX: uint8(v & 7)}, nil
}

// Append appends the option value. Num must be at most MaxBlockNum and SZX at
// most BERT; higher bits are cut off.
func (b Block) Append(buf []byte) []byte {
	v := b.Num&MaxBlockNum<<4 | uint32(b.SZX&7)
	if b.More {
		v |= 8
	}
	return AppendUint(buf, v)
}

// Size returns the unit in bytes that Num counts, which is the size of a block
// unless it is a BERT block.
func (b Block) Size() int { return 16 << min(b.SZX&7, 6) }

// Fits reports whether a payload of n bytes can be this block: one of Size bytes,
// of BERT a multiple of it, and of the last one less.
func (b Block) Fits(n int) bool {
	switch {
	case b.SZX != BERT && b.More:
		return n == b.Size()
	case b.SZX != BERT:
		return n <= b.Size()
	case b.More:
		return n > 0 && n%b.Size() == 0
	default:
		return true
	}
}

// Offset returns the position of the block in the body, in bytes.
func (b Block) Offset() int { return int(b.Num) * b.Size() }
