package wire

import (
	"bytes"
	"encoding/csv"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// csvRows yields the options of testdata/option-numbers.csv that have a name of
// their own, by column.
func csvRows(t *testing.T) []map[string]string {
	t.Helper()
	rows, err := csv.NewReader(bytes.NewReader(readTestdata(t, "option-numbers.csv"))).ReadAll()
	require.NoError(t, err)
	var out []map[string]string
	for _, row := range rows[1:] {
		if strings.HasPrefix(row[1], "(") {
			continue
		}
		m := make(map[string]string)
		for i, column := range rows[0] {
			m[column] = row[i]
		}
		out = append(out, m)
	}
	require.Greater(t, len(out), 35)
	return out
}

func TestDefinitionsMatchRegistry(t *testing.T) {
	known := 0
	for _, row := range csvRows(t) {
		t.Run(row["name"], func(t *testing.T) {
			known++
			number, err := strconv.ParseUint(row["number"], 10, 16)
			require.NoError(t, err)
			id := message.OptionID(number)

			require.Equal(t, row["C"] == "x", Critical(id), "critical")
			require.Equal(t, row["U"] == "x", Unsafe(id), "unsafe")
			if row["N"] == "x" || row["U"] != "x" {
				require.Equal(t, row["N"] == "x", NoCacheKey(id), "NoCacheKey")
			}

			d, ok := Lookup(id)
			require.True(t, ok)
			require.Equal(t, row["name"], d.Name)
			require.Equal(t, row["format"], d.Format.String())
			require.Equal(t, row["R"] == "x", d.Repeatable, "repeatable")
			shortest, longest, isRange := strings.Cut(row["len"], "-")
			switch {
			case row["len"] == "any":
				shortest, longest = "0", strconv.Itoa(maxOptionValue)
			case !isRange:
				longest = shortest
			}
			require.Equal(t, shortest, strconv.Itoa(d.MinLen))
			require.Equal(t, longest, strconv.Itoa(d.MaxLen))
		})
	}
	// Nothing is known that the registry does not have.
	for id := 0; id <= 0xffff; id++ {
		if _, ok := Lookup(message.OptionID(id)); ok {
			known--
		}
	}
	require.Zero(t, known)
}

// GP-1
func TestDefaultNumbers(t *testing.T) {
	require.Equal(t, Numbers{MulticastTimeout: 2, ReplyFrom: 248, GroupETag: 24, ResponseForwarding: 96}, DefaultNumbers())
	for _, v := range readOptionVectors(t).OptionNumbers {
		id := message.OptionID(v.Number)
		d, ok := Lookup(id)
		require.True(t, ok)
		require.Equal(t, v.Name, d.Name)
		require.Equal(t, v.Critical, Critical(id))
		require.Equal(t, v.Unsafe, Unsafe(id))
		require.Equal(t, v.NoCacheKey, NoCacheKey(id))
	}
}

// FP-22
func TestDefinitionValid(t *testing.T) {
	d, _ := Lookup(ETag)
	require.False(t, d.Valid(nil))
	require.True(t, d.Valid(make([]byte, 1)))
	require.True(t, d.Valid(make([]byte, 8)))
	require.False(t, d.Valid(make([]byte, 9)))
}

// GP-2, GP-3
func TestUint(t *testing.T) {
	for _, tt := range []struct {
		value string
		want  uint32
		ok    bool
	}{
		{"", 0, true},
		{"00", 0, true},
		{"3c", 60, true},
		{"003c", 60, true},
		{"0000003c", 60, true},
		{"ffffffff", 1<<32 - 1, true},
		{"0000000001", 0, false},
	} {
		got, ok := Uint(unhex(t, tt.value))
		require.Equal(t, tt.ok, ok, tt.value)
		require.Equal(t, tt.want, got, tt.value)
	}
	rapid.Check(t, func(t *rapid.T) {
		v := rapid.Uint32().Draw(t, "v")
		value := AppendUint(nil, v)
		got, ok := Uint(value)
		require.True(t, ok)
		require.Equal(t, v, got)
		require.True(t, len(value) == 0 || value[0] != 0, "not the shortest form")
	})
}

func TestFindOptions(t *testing.T) {
	opts := message.Options{
		{ID: URIHost, Value: []byte("h")},
		{ID: URIPath, Value: []byte("a")},
		{ID: URIPath, Value: []byte("b")},
		{ID: URIQuery},
	}
	first, ok := First(opts, URIPath)
	require.True(t, ok)
	require.Equal(t, "a", string(first))
	require.True(t, Has(opts, URIQuery))
	require.False(t, Has(opts, ETag))
	require.Equal(t, [][]byte{[]byte("a"), []byte("b")}, slices.Collect(All(opts, URIPath)))
	for range All(opts, URIPath) {
		break // must end the iteration
	}
}
