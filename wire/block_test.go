package wire

import (
	"encoding/hex"
	"testing"

	"github.com/stretchr/testify/require"
)

// RFC 7959 §2.2 and §3
func TestBlock(t *testing.T) {
	for _, tt := range []struct {
		hex          string
		want         Block
		size, offset int
	}{
		{"", Block{}, 16, 0},
		{"06", Block{SZX: 6}, 1024, 0},
		{"0e", Block{More: true, SZX: 6}, 1024, 0},
		{"32", Block{Num: 3, SZX: 2}, 64, 192},
		{"1a", Block{Num: 1, More: true, SZX: 2}, 64, 64},
		{"0100", Block{Num: 16}, 16, 256},
		{"fffffe", Block{Num: MaxBlockNum, More: true, SZX: 6}, 1024, 1024 * MaxBlockNum},
	} {
		got, err := ParseBlock(unhex(t, tt.hex))
		require.NoError(t, err)
		require.Equal(t, tt.want, got)
		require.Equal(t, tt.size, got.Size())
		require.Equal(t, tt.offset, got.Offset())
		require.Equal(t, tt.hex, hex.EncodeToString(got.Append(nil)))
	}
	got, err := ParseBlock(unhex(t, "000006")) // leading zeros
	require.NoError(t, err)
	require.Equal(t, Block{SZX: 6}, got)
	_, err = ParseBlock(unhex(t, "07"))
	require.ErrorIs(t, err, errBlockSZX)
	_, err = ParseBlock(unhex(t, "00000006"))
	require.ErrorIs(t, err, errBlockLen)
	require.Equal(t, "fffff6", hex.EncodeToString(Block{Num: 1<<32 - 1, SZX: 6}.Append(nil)))
}

func FuzzBlock(f *testing.F) {
	for _, s := range []string{"", "06", "07", "0e", "fffffe", "00000006"} {
		f.Add(unhex(f, s))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		b, err := ParseBlock(value)
		if err != nil {
			return
		}
		require.LessOrEqual(t, b.Size(), 1024)
		require.LessOrEqual(t, b.Num, uint32(MaxBlockNum))
		again, err := ParseBlock(b.Append(nil))
		require.NoError(t, err)
		require.Equal(t, b, again)
	})
}
